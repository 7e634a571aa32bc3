"""Heads that are solved again for a merged body."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    FEATURES,
    bert_model,
    failing_loss,
    same,
    save_bert,
    token_task,
    toy_body,
    toy_definition,
    toy_task,
    toy_tasks,
)
from torch import Tensor, nn

import optuna_merge as om
from optuna_merge._base.tensors import load_tensors, save_tensors
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.models import from_module
from optuna_merge.previews import PreviewSettings, refinement_settings
from optuna_merge.tasks import Evaluation

RESOLVED = PreviewSettings(heads="resolved", head_examples=24, anchor="none")
MERGED = PreviewSettings(heads="merged", anchor="none")
WEIGHTS = {"red": 0.4, "blue": 0.6}


def fitted(tmp_path: Path, settings: PreviewSettings = RESOLVED, **changes: Any) -> om.FittedStudy:
    return om.fit(toy_definition(preview=settings, **changes), tmp_path, progress=False)


def shared_definition(settings: PreviewSettings = RESOLVED) -> om.StudyDefinition:
    """Two tasks with one head."""
    tasks = [toy_task(name, seed, head="one") for seed, name in enumerate(("red", "blue"))]
    return toy_definition(tasks, preview=settings)


def gradient(study: om.FittedStudy, task: str) -> dict[str, Tensor]:
    """Of the task's mean loss on all its training data, under the model's present parameters."""
    model = study.model.eval()
    [found] = [t for t in study.tasks if t.name == task]
    model.zero_grad()
    data = found.data("train")
    batch = data[list(range(len(data)))]
    assert not isinstance(found.loss, str)
    found.loss(model(batch, task), batch["labels"]).mean().backward()
    return {
        name: parameter.grad.double().clone()
        for name, parameter in model.named_parameters()
        if name.startswith("heads.") and parameter.grad is not None
    }


@pytest.mark.parametrize("shared", [False, True])
def test_the_weighted_gradient_is_what_the_runs_left_and_the_pull(
    shared: bool, tmp_path: Path
) -> None:
    definition = shared_definition() if shared else toy_definition(preview=RESOLVED)
    study = om.fit(definition, tmp_path, progress=False)
    plain = {
        n: t.double()
        for n, t in om.fit(
            shared_definition(MERGED) if shared else toy_definition(preview=MERGED),
            tmp_path,
            progress=False,
        )
        .previewer.merged(WEIGHTS)
        .items()
    }
    solved = study.previewer.merged(WEIGHTS)
    heads = [name for name in solved if name.startswith("heads.")]
    body = [name for name in solved if name not in heads]
    assert same({n: solved[n].double() for n in body}, {n: plain[n] for n in body})
    decay = RESOLVED.head_decay
    total = {n: decay * (solved[n].double() - plain[n]) for n in heads}
    for task, weight in WEIGHTS.items():
        study.model.load(solved)
        for name, value in gradient(study, task).items():
            total[name] += weight * value
        study.model.reset()
        study.model.load(study.runs[task].parameters())
        for name, value in gradient(study, task).items():
            total[name] -= weight * value
    for name in heads:
        assert not torch.equal(solved[name].double(), plain[name])
        assert total[name].abs().max() < 1e-4, name  # the solver's own tolerance


@pytest.mark.parametrize("shared", [False, True])
def test_a_task_alone_gives_back_its_own_run(shared: bool, tmp_path: Path) -> None:
    definition = shared_definition() if shared else toy_definition(preview=RESOLVED)
    study = om.fit(definition, tmp_path, progress=False)
    alone = study.previewer.merged({"red": 1.0, "blue": 0.0})
    for name, tensor in study.runs["red"].parameters().items():
        torch.testing.assert_close(alone[name], tensor)


def test_a_task_without_weight_keeps_its_head(tmp_path: Path) -> None:
    tasks = (*toy_tasks(), toy_task("green", 3))
    study = fitted(tmp_path, tasks=tasks, model=toy_definition(tasks).model)
    own = study.model.own_names("green")
    merged = study.previewer.merged({"red": 0.5, "blue": 0.5, "green": 0.0})
    parameters = study.runs["green"].parameters()
    assert own and same({n: merged[n] for n in own}, {n: parameters[n] for n in own})


def test_previews_are_the_same_however_they_are_made(tmp_path: Path) -> None:
    study = fitted(tmp_path)
    first = study.previewer(WEIGHTS).evaluations
    study.previewer({"red": 0.9, "blue": 0.1})
    study.model.reset()
    assert study.previewer(WEIGHTS).evaluations == first
    other = fitted(tmp_path / "another process")
    assert other.previewer(WEIGHTS).evaluations == first


def head_files(folder: Path) -> list[Path]:
    return sorted((folder / "posteriors").glob("head-*.safetensors"))


def test_what_the_runs_left_is_kept_for_the_next_process(tmp_path: Path) -> None:
    first = fitted(tmp_path).previewer(WEIGHTS).evaluations
    red, blue = sorted(head_files(tmp_path), key=lambda path: "blue" in path.name)
    assert fitted(tmp_path).previewer(WEIGHTS).evaluations == first
    tensors, _ = load_tensors(red)
    save_tensors({name: tensor + 1.0 for name, tensor in tensors.items()}, red)
    assert fitted(tmp_path).previewer(WEIGHTS).evaluations != first  # it is the file that is read
    red.write_bytes(red.read_bytes()[:-8])
    blue.unlink()
    assert fitted(tmp_path).previewer(WEIGHTS).evaluations == first
    assert same(load_tensors(red)[0], tensors) and blue.exists()


def test_what_other_runs_or_examples_left_is_not_read(tmp_path: Path) -> None:
    def preview(folder: Path, **changes: Any) -> dict[str, Evaluation]:
        settings = replace(RESOLVED, head_examples=changes.pop("examples", 24))
        return fitted(folder, settings, **changes).previewer(WEIGHTS).evaluations

    preview(tmp_path)
    assert len(head_files(tmp_path)) == 2
    other = toy_definition().finetuning
    for count, changes in enumerate(
        (
            {"examples": 12},
            {"finetuning": replace(other, learning_rate=other.learning_rate / 2)},
            {"tasks": (toy_tasks()[0], toy_task("blue", 9, classes=3))},
        ),
        start=2,
    ):
        assert preview(tmp_path, **changes) == preview(tmp_path / str(count), **changes)


def test_refinements_start_from_the_solved_heads(tmp_path: Path) -> None:
    study = fitted(tmp_path)
    settings = refinement_settings(study.definition.finetuning, 2, rate=1e-9)
    run = study.store.run(study.model, study.tasks, WEIGHTS, settings, start=study.merge(WEIGHTS))
    expected = study.previewer(WEIGHTS).evaluations
    for task, found in run.evaluations.items():
        assert found.loss.value == pytest.approx(expected[task].loss.value, abs=1e-4)


def test_a_transformer_on_its_cached_trunk(tmp_path: Path) -> None:
    tasks = (token_task("red", 1), token_task("blue", 2, classes=3))
    model = bert_model(save_bert(tmp_path / "bert"), tasks)
    study = fitted(tmp_path, tasks=tasks, model=model)
    assert "trunk_activations" in study.tasks[0].data("train")[[0]]
    merged = fitted(tmp_path, MERGED, tasks=tasks, model=model)
    found, plain = (s.previewer.merged(WEIGHTS) for s in (study, merged))
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, plain[name])}
    assert changed == {n for task in WEIGHTS for n in model.own_names(task)}


def test_it_is_part_of_the_definition(tmp_path: Path) -> None:
    study = om.open_study("s", om.create_storage(None), "maximize")
    om.prepare_study(study, fitted(tmp_path))
    with pytest.raises(DefinitionMismatchError, match="preview"):
        om.prepare_study(study, fitted(tmp_path, MERGED))
    assert PreviewSettings(heads="resolved").describe() != RESOLVED.describe()


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Identity()])
def test_heads_that_do_not_end_in_a_linear_layer_are_refused(
    last: nn.Module, tmp_path: Path
) -> None:
    tasks = toy_tasks()
    heads: dict[str, nn.Module] = {
        "red": nn.Sequential(nn.Linear(FEATURES, 2), last),
        "blue": nn.Linear(FEATURES, 3),
    }
    model = from_module(toy_body(), tasks, heads=heads, inputs=["x"])
    if isinstance(last, nn.Identity):
        fitted(tmp_path, tasks=tasks, model=model)  # its outputs are the layer's
        return
    with pytest.raises(ValueError, match="'red': heads='resolved' needs a head that ends in a"):
        fitted(tmp_path, tasks=tasks, model=model)


def test_a_loss_that_is_not_finite_leaves_the_head_of_the_merge(tmp_path: Path) -> None:
    study = fitted(tmp_path)
    assert study.previewer(WEIGHTS).evaluations  # what the task runs left is found
    object.__setattr__(study.tasks[0], "loss", failing_loss(2, math.nan))  # in the line search
    found, plain = study.previewer.merged(WEIGHTS), fitted(tmp_path, MERGED).previewer
    own = study.model.own_names("red")
    assert own and same({n: found[n] for n in own}, {n: plain.merged(WEIGHTS)[n] for n in own})


def test_batch_norms_that_are_estimated_again_come_before_the_features(tmp_path: Path) -> None:
    tasks = toy_tasks()
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    model = from_module(body, tasks, features=8, inputs=["x"], batch_norm="reestimated")
    study = fitted(tmp_path, tasks=tasks, model=model)
    plain = fitted(tmp_path, MERGED, tasks=tasks, model=model).previewer.merged(WEIGHTS)
    found = study.previewer.merged(WEIGHTS)
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, plain[name])}
    assert changed == {n for task in WEIGHTS for n in model.own_names(task)}


def test_auto_is_what_the_heads_allow(tmp_path: Path) -> None:
    study = fitted(tmp_path, PreviewSettings(head_examples=24, anchor="none"))
    resolved = fitted(tmp_path)
    assert study.fingerprint == resolved.fingerprint
    assert same(study.previewer.merged(WEIGHTS), resolved.previewer.merged(WEIGHTS))
    tasks = toy_tasks()
    heads = {
        "red": nn.Sequential(nn.Linear(FEATURES, 2), nn.ReLU()),
        "blue": nn.Linear(FEATURES, 3),
    }
    model = from_module(toy_body(), tasks, heads=heads, inputs=["x"])
    auto = fitted(tmp_path, PreviewSettings(anchor="none"), tasks=tasks, model=model)
    assert auto.fingerprint == fitted(tmp_path, MERGED, tasks=tasks, model=model).fingerprint


def test_auto_solves_no_head_for_a_loss_that_may_not_be_convex() -> None:
    def saturating(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none").tanh()

    red, blue = toy_tasks()
    tasks = (replace(red, loss=saturating), blue)
    definition = toy_definition(tasks, preview=PreviewSettings())
    assert definition.settled_preview.heads == "merged"
    assert toy_definition(preview=PreviewSettings()).settled_preview.heads == "resolved"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": "new"}, "heads: auto, merged or resolved, got 'new'"),
        ({"head_examples": 0}, "head_examples must be at least 1"),
        ({"head_decay": 0.0}, "head_decay must be positive"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreviewSettings(**changes)
