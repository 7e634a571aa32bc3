from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    InterruptedData,
    bert_model,
    files_below,
    flip_byte,
    largest_file,
    same,
    save_bert,
    token_task,
    toy_definition,
    toy_settings,
    toy_task,
    toy_tasks,
    truncate,
)
from torch import Tensor

from optuna_merge._base.files import check_writable
from optuna_merge._base.tensors import read_metadata
from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import MULTIPLES, FittedStudy, fit, trial_weightings
from optuna_merge.models import evaluate_tasks, task_batches
from optuna_merge.models._multitask import TRUNK
from optuna_merge.posteriors import (
    DiagonalGaussian,
    IsotropicGaussian,
    load_posterior,
    save_posterior,
)
from optuna_merge.previews import PreviewSettings
from optuna_merge.tasks import Loss, Task, TensorData, cross_entropy


def fit_toy(workdir: Path, definition: StudyDefinition | None = None) -> FittedStudy:
    return fit(definition or toy_definition(), workdir, progress=False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a finished fit; not to be written to."""
    folder = tmp_path_factory.mktemp("workdir")
    fit_toy(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(workdir: Path) -> FittedStudy:
    return fit_toy(workdir)


@pytest.fixture
def copied(workdir: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(workdir, tmp_path / "workdir"))


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


def test_a_second_fit_does_nothing(workdir: Path, fitted: FittedStudy) -> None:
    before = files_below(workdir)
    assert sorted(re.sub("[0-9a-f]{24}", "*", name) for name in before) == [
        "finetunes/*/model.safetensors",
        "finetunes/*/model.safetensors",
        "finetunes/*/model.safetensors",
        "posteriors/blue-*.safetensors",
        "posteriors/curvature-blue-*.safetensors",
        "posteriors/curvature-red-*.safetensors",
        "posteriors/damping-*.json",
        "posteriors/red-*.safetensors",
    ]
    again = fit_toy(workdir)
    assert files_below(workdir) == before
    assert again.fingerprint == fitted.fingerprint
    assert again.damping == fitted.damping
    assert again.costs == fitted.costs
    assert all(run.reused for run in again.runs.values())


def test_a_fit_elsewhere_comes_to_the_same(fitted: FittedStudy, tmp_path: Path) -> None:
    torch.manual_seed(123)
    other = fit_toy(tmp_path / "new" / "folder")
    assert other.fingerprint == fitted.fingerprint
    assert other.parts == fitted.parts


def test_what_a_fit_gives(fitted: FittedStudy) -> None:
    assert list(fitted.runs) == ["red", "blue"]
    assert fitted.alone == {n: run.evaluations[n].metric.value for n, run in fitted.runs.items()}
    assert fitted.goal.score_of({"red": 0.25, "blue": 0.75}) == 0.5
    assert fitted.costs["task_run_steps"] == 14
    assert fitted.costs["task_run_seconds"] == sum(r.seconds for r in fitted.runs.values())
    assert fitted.costs["posterior_seconds"] > 0
    described = fitted.definition.describe()
    assert {key: fitted.parts[key] for key in described} == described
    assert sorted(fitted.parts["posteriors"]) == sorted(fitted.parts["heads"]) == ["blue", "red"]
    # The store knows the runs under the weights of a task alone: those are its truths.
    settings = fitted.definition.finetuning
    assert fitted.store.find({"red": 1.0, "blue": 0.0}, settings) == fitted.runs["red"]


def test_the_posterior_is_the_run_with_its_curvature_and_the_damping(
    workdir: Path, fitted: FittedStudy
) -> None:
    assert fitted.damping is not None
    shared = fitted.model.shared_names()
    for name, run in fitted.runs.items():
        path = one(workdir, f"posteriors/{name}-*")
        posterior = load_posterior(path)
        assert read_metadata(path)["sha256"] == fitted.parts["posteriors"][name]
        assert isinstance(posterior, DiagonalGaussian)
        undamped = load_posterior(one(workdir, f"curvature-{name}-*"))
        assert isinstance(undamped, DiagonalGaussian)
        curvature = undamped.precision
        assert sorted(posterior.mean) == sorted(shared) == sorted(curvature)
        for n in shared:
            assert torch.equal(posterior.mean[n], run.parameters()[n])
            assert torch.equal(posterior.precision[n], curvature[n] + fitted.damping.value)
        metadata = read_metadata(path)
        assert metadata["task"] == name
        assert float(metadata["damping"]) == fitted.damping.value


def test_the_damping_is_the_best_of_the_sweep_and_recorded(
    workdir: Path, copied: Path, fitted: FittedStudy
) -> None:
    damping = fitted.damping
    assert damping is not None
    assert len(damping.sweep) == len(MULTIPLES)
    assert len(set(damping.sweep.values())) > 1
    assert damping.sweep[damping.value] == min(damping.sweep.values())
    recorded = json.loads(one(workdir, "damping-*.json").read_text())
    assert recorded["value"] == damping.value
    assert {float(k): v for k, v in recorded["sweep"].items()} == damping.sweep
    # The sweep's number is the weighted loss of the merges, not corrected, with their own heads.
    bare = PreviewSettings(heads="merged", anchor="none")
    plain = fit_toy(copied, toy_definition(preview=bare))
    losses = []
    for weights in trial_weightings(["red", "blue"]):
        plain.previewer.load(weights)
        batches = task_batches(plain.model, plain.tasks, limit=20)
        found = evaluate_tasks(plain.model, plain.tasks, batches)
        losses.append(sum(w * found[name].loss.value for name, w in weights.items()))
    assert damping.sweep[damping.value] == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_a_given_damping_is_taken_and_curvature_is_kept(copied: Path, fitted: FittedStudy) -> None:
    before = files_below(copied)
    settings = PosteriorSettings(examples=16, damping_examples=20, chunk_size=8, damping=0.125)
    other = fit_toy(copied, toy_definition(posterior=settings))
    assert other.damping is not None
    assert (other.damping.value, other.damping.sweep) == (0.125, {})
    assert other.fingerprint != fitted.fingerprint
    new = set(files_below(copied)) - set(before)
    assert {Path(name).name.split("-")[0] for name in new} == {"red", "blue"}
    assert {name: time for name, time in files_below(copied).items() if name in before} == before


def test_isotropic_posteriors_need_no_curvature(tmp_path: Path) -> None:
    found = fit_toy(tmp_path, toy_definition(posterior=PosteriorSettings(family="isotropic")))
    assert found.damping is None
    assert isinstance(load_posterior(one(tmp_path, "red-*")), IsotropicGaussian)
    assert not list(tmp_path.rglob("curvature-*"))
    plain = found.previewer.anchored(None)
    merged = plain.merged({"red": 0.25, "blue": 0.75})["body.0.weight"]
    means = [run.parameters()["body.0.weight"] for run in found.runs.values()]
    torch.testing.assert_close(merged, 0.25 * means[0] + 0.75 * means[1])


def interrupted(split: str, at: int) -> StudyDefinition:
    """The toy study, the reading of whose second task's data is interrupted."""
    red, blue = toy_tasks()
    data = blue.data(split)
    assert isinstance(data, TensorData)
    changed = toy_task("blue", 2, classes=3, **{split: InterruptedData(data.columns, at)})
    return toy_definition((red, changed))


@pytest.mark.parametrize(
    "split, at, finished",
    [
        # A `Task` reads once when it is made; a run has 7 steps and 3 rungs of 2 batches.
        ("train", 1 + 4, ["checkpoint", "model", "curvature-red"]),
        ("train", 1 + 7 + 1, ["model", "model", "curvature-red"]),
        ("validation", 1 + 3 * 6 + 3, ["model"] * 3 + ["curvature-red", "curvature-blue"]),
    ],
    ids=["task run", "curvature", "damping"],
)
def test_an_interrupted_fit_goes_on(
    split: str, at: int, finished: list[str], tmp_path: Path, fitted: FittedStudy
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_toy(tmp_path, interrupted(split, at))
    before = files_below(tmp_path)
    names = [re.sub(r"(-[0-9a-f]{24})?\.safetensors", "", Path(name).name) for name in before]
    assert sorted(names) == sorted(finished)
    again = fit_toy(tmp_path)
    assert again.fingerprint == fitted.fingerprint
    after = files_below(tmp_path)
    kept = {name: time for name, time in before.items() if "checkpoint" not in name}
    assert {name: after[name] for name in kept} == kept
    assert again.runs["red"].reused
    assert again.runs["blue"].reused == ("checkpoint" not in finished)
    assert same(again.runs["blue"].parameters(), fitted.runs["blue"].parameters())


@pytest.mark.parametrize("damage", [truncate, flip_byte], ids=["truncated", "altered"])
@pytest.mark.parametrize("pattern", ["blue-*", "curvature-blue-*", "damping-*", "*/model.*"])
def test_a_damaged_file_is_made_again_and_nothing_else(
    damage: Callable[[Path], None],
    pattern: str,
    copied: Path,
    fitted: FittedStudy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = sorted(copied.rglob(pattern))[0]
    before = files_below(copied)
    damage(path)
    with caplog.at_level(logging.WARNING):
        again = fit_toy(copied)
    assert str(path) in caplog.text and "again" in caplog.text
    assert again.fingerprint == fitted.fingerprint
    after = files_below(copied)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {str(path.relative_to(copied))}


@pytest.mark.parametrize("kind", ["posterior", "curvature"])
def test_tensors_of_another_body_are_refused_by_task_and_name(kind: str, copied: Path) -> None:
    pattern = "blue-*" if kind == "posterior" else "curvature-blue-*"
    path = one(copied / "posteriors", pattern)
    mean = load_posterior(one(copied, "curvature-blue-*")).mean
    other = {name: h.clone() for name, h in mean.items()}
    other["body.3.weight"] = torch.ones(9, 8)

    def refused(found: str) -> None:
        message = (
            f"task 'blue': {path}: 'body.3.weight' has shape {found}, expected (8, 8); it belongs "
            f"to another body: use another --workdir"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            fit_toy(copied)

    if kind == "curvature":
        save_posterior(DiagonalGaussian(other, other), path, {"seconds": "1.0"})
        refused("(9, 8)")
        few = {"body.0.weight": mean["body.0.weight"]}
        save_posterior(DiagonalGaussian(few, few), path, {"seconds": "1.0"})
        with pytest.raises(ValueError, match=r"has no 'body\.0\.bias'; .*another body"):
            fit_toy(copied)
    else:
        save_posterior(IsotropicGaussian(other, 1.0), path)
        refused("(9, 8)")


def test_losses_that_are_not_finite_lose_the_sweep(tmp_path: Path) -> None:
    calls = {"left": 0}

    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        calls["left"] -= 1
        return cross_entropy(outputs, labels) * (math.inf if calls["left"] >= 0 else 1.0)

    loss = Loss("infinite at first", function, cross_entropy.sample_labels, classification=True)

    def definition(**changes: Any) -> StudyDefinition:
        tasks = (toy_task("red", 1, loss=loss), toy_task("blue", 2, classes=3, loss=loss))
        return toy_definition(
            tasks, posterior=PosteriorSettings(examples=16, chunk_size=8, **changes)
        )

    fit_toy(tmp_path, definition(damping=1.0))  # leaves only the sweep to do
    calls["left"] = 1
    found = fit_toy(tmp_path, definition()).damping
    assert found is not None
    assert [math.isinf(value) for value in found.sweep.values()] == [True] + [False] * 7
    assert math.isfinite(found.sweep[found.value])
    assert fit_toy(tmp_path, definition()).damping == found


def test_a_curvature_of_zero_says_what_to_do(tmp_path: Path) -> None:
    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum(1) * 0

    tasks = [toy_task(name, i, loss=Loss("flat", function)) for i, name in enumerate("ab")]
    with pytest.raises(ValueError, match=r"zero everywhere.*or the isotropic family"):
        fit_toy(tmp_path, toy_definition(tasks))


def test_a_transformer_is_fitted_on_its_cached_trunk(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")

    def definition() -> StudyDefinition:
        tasks: tuple[Task, ...] = (token_task("one", 1), token_task("two", 2, classes=3))
        return StudyDefinition(
            tasks,
            bert_model(folder, tasks),
            FinetuneSettings(steps=3, batch_size=4, num_rungs=1, learning_rate=1e-3),
            PosteriorSettings(examples=6, chunk_size=3),
        )

    found = fit_toy(tmp_path / "workdir", definition())
    assert all(TRUNK in task.data("train")[[0]] for task in found.tasks)
    preview = found.previewer({"one": 0.0, "two": 1.0})
    assert preview.evaluations["two"] == found.runs["two"].evaluations["two"]
    before = files_below(tmp_path / "workdir")
    assert fit_toy(tmp_path / "workdir", definition()).fingerprint == found.fingerprint
    assert files_below(tmp_path / "workdir") == before


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may write everywhere: then be nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        folder.chmod(0o555)
        for path in (folder, folder / "new"):
            with without_rights(), pytest.raises(PermissionError) as caught:
                fit_toy(path)
            message = f"can't write in the working folder {path}: Permission denied; give another"
            assert message in str(caught.value)
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_in_the_folder_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=re.escape(f"can't write in the working folder {path}")):
            check_writable(path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(
    copied: Path, tmp_path: Path, fitted: FittedStudy
) -> None:
    message = r"can't write .*safetensors: .*free disk space \(nothing was left half-written\)"
    with largest_file(500), pytest.raises(OSError, match=message):
        fit_toy(tmp_path / "new")
    assert files_below(tmp_path / "new") == {}
    for pattern in ("curvature-red-*", "red-*", "damping-*"):
        lost = one(copied, pattern)
        lost.unlink()
        before = files_below(copied)
        with largest_file(100), pytest.raises(OSError, match=re.escape(f"can't write {lost}")):
            fit_toy(copied)
        assert files_below(copied) == before
        assert fit_toy(copied).fingerprint == fitted.fingerprint


def test_other_settings_train_anew_in_the_same_folder(copied: Path) -> None:
    before = files_below(copied)
    fit_toy(copied, toy_definition(finetuning=toy_settings(steps=8)))
    after = files_below(copied)
    assert {name: time for name, time in after.items() if name in before} == before
    assert len(after) == 2 * len(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "per_tensor"},
        {"family": "low_rank", "rank": 3},
        {"family": "kronecker"},
        {"family": "full"},
        {"family": "rows_columns"},
        {"estimator": "ivon"},
        {"family": "per_tensor", "estimator": "ivon"},
        {"estimator": "ivon", "components": 2},
        {"components": 2},
        {"components": 2, "responsibilities": "layer"},
        {"family": "isotropic", "components": 2},
    ],
    ids=str,
)
def test_every_family_is_fitted_and_found_again(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = PosteriorSettings(examples=16, damping_examples=20, chunk_size=8, **changes)
    optimizer = "ivon" if settings.estimator == "ivon" else "adamw"

    def definition() -> StudyDefinition:
        finetuning = toy_settings(optimizer=optimizer)
        return toy_definition(posterior=settings, finetuning=finetuning)

    made = fit_toy(tmp_path, definition())
    before = files_below(tmp_path)
    again = fit_toy(tmp_path, definition())
    assert files_below(tmp_path) == before
    assert again.fingerprint == made.fingerprint
    assert made.costs["task_run_steps"] == 14 * settings.components
    inside = made.previewer({"red": 0.5, "blue": 0.5}).evaluations
    assert inside == again.previewer({"red": 0.5, "blue": 0.5}).evaluations
    if settings.components == 1:
        alone = made.previewer({"red": 1.0, "blue": 0.0}).evaluations["red"]
        assert alone.metric.value == made.alone["red"]


def settings_of(**changes: Any) -> PosteriorSettings:
    fields = {"examples": 16, "damping_examples": 20, "chunk_size": 8} | changes
    return PosteriorSettings(**fields)


def test_one_precision_per_tensor_is_the_diagonal_s_mean_and_made_from_its_file(
    copied: Path, fitted: FittedStudy
) -> None:
    before = files_below(copied)
    fit_toy(copied, toy_definition(posterior=settings_of(family="per_tensor", damping=0.25)))
    new = {Path(name).name.split("-")[0] for name in set(files_below(copied)) - set(before)}
    assert new == {"red", "blue"}  # the curvature is there
    undamped = load_posterior(one(copied, "curvature-red-*"))
    assert isinstance(undamped, DiagonalGaussian)
    made = [load_posterior(path) for path in copied.rglob("posteriors/red-*")]
    (found,) = (posterior for posterior in made if isinstance(posterior, IsotropicGaussian))
    for name, curvature in undamped.precision.items():
        assert found.elementwise(name) == pytest.approx(float(curvature.mean()) + 0.25, rel=1e-6)


def test_ivon_s_curvature_is_taken_from_the_run(tmp_path: Path) -> None:
    found = fit_toy(
        tmp_path,
        toy_definition(
            finetuning=toy_settings(optimizer="ivon"),
            posterior=settings_of(estimator="ivon", damping=0.25),
        ),
    )
    assert not list(tmp_path.rglob("curvature-*"))
    assert found.costs["posterior_seconds"] == 0
    for task, run in found.runs.items():
        posterior = load_posterior(one(tmp_path, f"posteriors/{task}-*"))
        assert isinstance(posterior, DiagonalGaussian)
        for name, precision in posterior.precision.items():
            assert torch.equal(precision, run.curvature()[name] + 0.25)
            assert torch.equal(posterior.mean[name], run.parameters()[name])
