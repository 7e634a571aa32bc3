"""Layers whose weights are computed from other tensors: they work right, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same, toy_definition, toy_task, toy_tasks
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import optuna_merge as om
from optuna_merge.definition import PosteriorSettings
from optuna_merge.fitting._curvature import estimate
from optuna_merge.models import Matching, MultitaskModel, from_module
from optuna_merge.posteriors import FAMILIES, DiagonalGaussian
from optuna_merge.tasks import Loss, cross_entropy

Wrap = Callable[[nn.Linear], Any]


def body(wrap: Wrap) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(wrap(nn.Linear(6, 8)), nn.Tanh(), wrap(nn.Linear(8, 8)), nn.Tanh())


def model_of(wrap: Wrap, tasks: Any, **options: Any) -> MultitaskModel:
    return from_module(body(wrap), tasks, features=8, inputs=["x"], **options)


def plain(layer: nn.Linear) -> nn.Linear:
    return layer


def pruned(layer: nn.Linear) -> Any:
    return prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]


def pruned_twice(layer: nn.Linear) -> Any:
    return prune.random_unstructured(pruned(layer), "weight", 0.5)  # type: ignore[no-untyped-call]


def old_weight_norm(layer: nn.Linear) -> Any:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


SOUND: list[Wrap] = [parametrizations.weight_norm, parametrizations.orthogonal]


@pytest.mark.parametrize("wrap", SOUND)
@pytest.mark.parametrize("family", ["isotropic", "diagonal", "kronecker", "low_rank", "full"])
def test_weights_computed_from_parameters_are_trained_and_merged_as_these(
    tmp_path: Path, wrap: Wrap, family: Any
) -> None:
    tasks = toy_tasks()
    posterior = PosteriorSettings(
        family=family, examples=12, chunk_size=5, damping_examples=20, rank=2
    )
    model = model_of(wrap, tasks)
    initial = model.state()
    definition = toy_definition(tasks, model=model, posterior=posterior)
    fitted = om.fit(definition, tmp_path, progress=False)
    computed = [name for name in model.shared_names() if "parametrizations" in name]
    assert len(computed) == (4 if wrap is parametrizations.weight_norm else 2)
    runs = {name: run.parameters() for name, run in fitted.runs.items()}
    for name, trained in runs.items():
        assert all(not torch.equal(trained[n], initial[n]) for n in computed)
        alone = {task.name: float(task.name == name) for task in tasks}
        merged = fitted.previewer.merged(alone)
        assert same({n: merged[n] for n in trained}, trained)
        assert fitted.previewer(alone).evaluations[name] == fitted.runs[name].evaluations[name]
    merged = fitted.previewer.merged({"red": 0.4, "blue": 0.6})
    assert any(not torch.equal(merged[n], runs["red"][n]) for n in computed)
    assert any(not torch.equal(merged[n], runs["blue"][n]) for n in computed)


@pytest.mark.parametrize("wrap", SOUND)
def test_their_squared_gradients_are_those_of_single_examples(wrap: Wrap) -> None:
    tasks = toy_tasks()
    model = model_of(wrap, tasks)
    task = tasks[1]
    assert isinstance(task.loss, Loss)
    task = replace(task, loss=replace(task.loss, sample_labels=None))
    settings = PosteriorSettings(examples=24, chunk_size=7)
    curvature = FAMILIES["diagonal"].curvature
    assert curvature is not None
    found = estimate(curvature, model, task, model.state(), settings)
    assert isinstance(found, DiagonalGaussian)
    expected = {name: torch.zeros_like(tensor) for name, tensor in found.precision.items()}
    parameters = dict(model.named_parameters())
    for index in range(24):
        batch = task.data("train")[[index]]
        loss = cross_entropy(model(batch, task.name), batch["labels"]).sum()
        gradients = torch.autograd.grad(loss, [parameters[name] for name in expected])
        for total, gradient in zip(expected.values(), gradients):
            total += gradient.square() / 24
    assert any("parametrizations" in name for name in expected)
    for name, tensor in expected.items():
        assert tensor.abs().sum() > 0
        torch.testing.assert_close(found.precision[name], tensor, rtol=1e-4, atol=1e-7)


def test_a_head_under_weight_norm_is_merged_as_it_is() -> None:
    tasks = (toy_task("red", head="both"), toy_task("blue", 2, head="both"))
    head = parametrizations.weight_norm(nn.Linear(8, 2))
    model = from_module(body(plain), tasks, heads={"both": head}, inputs=["x"])
    assert toy_definition(tasks, model=model).settled_preview.heads == "merged"
    solvable = toy_definition(tasks, model=model_of(parametrizations.weight_norm, tasks))
    assert solvable.settled_preview.heads == "resolved"


REFUSED: list[tuple[Wrap, str, str]] = [
    (parametrizations.spectral_norm, "spectral norm", r"remove_parametrizations\(layer, 'weight'"),
    (nn.utils.spectral_norm, "spectral norm", r"remove_spectral_norm\(layer, 'weight'\)"),
    (old_weight_norm, "old-style weight norm", r"remove_weight_norm\(layer, 'weight'\)"),
    (pruned, "pruning", r"prune.remove\(layer, 'weight'\)"),
    (pruned_twice, "pruning", r"prune.remove\(layer, 'weight'\)"),
]
IDS = ["spectral", "old spectral", "old weight norm", "pruned", "pruned twice"]


@pytest.mark.parametrize("wrap, what, undo", REFUSED, ids=IDS)
def test_weights_that_forward_passes_leave_behind_are_refused(
    wrap: Wrap, what: str, undo: str
) -> None:
    tasks = toy_tasks()
    with pytest.raises(
        ValueError, match=rf"'weight' of the layer 'body.0' is under {what}.*{undo}"
    ):
        model_of(wrap, tasks)
    with pytest.raises(ValueError, match=rf"layer 'body.2' is under {what}"):
        model_of(wrap, tasks, trainable=Matching(r"^2\."))
    heads = {task.name: wrap(nn.Linear(8, task.num_outputs)) for task in tasks}
    with pytest.raises(ValueError, match=rf"layer 'heads.red.head' is under {what}"):
        from_module(body(plain), tasks, heads=heads, inputs=["x"])


@pytest.mark.parametrize("wrap", [wrap for wrap, *_ in REFUSED], ids=IDS)
def test_they_may_be_frozen(tmp_path: Path, wrap: Wrap) -> None:
    tasks = toy_tasks()
    half = body(wrap)
    half[2] = nn.Linear(8, 8)
    model = from_module(half, tasks, features=8, inputs=["x"], trainable=Matching(r"^2\."))
    fitted = om.fit(toy_definition(tasks, model=model), tmp_path, progress=False)
    for name, run in fitted.runs.items():
        preview = fitted.previewer({task.name: float(task.name == name) for task in tasks})
        assert preview.evaluations[name] == run.evaluations[name]


class Tied(nn.Module):
    """The second layer's weight is the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 6)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).tanh()).tanh()


def test_tied_parameters_are_merged_as_one(tmp_path: Path) -> None:
    tasks = toy_tasks()
    model = from_module(Tied(), tasks, features=6, inputs=["x"])
    fitted = om.fit(toy_definition(tasks, model=model), tmp_path, progress=False)
    for name, run in fitted.runs.items():
        preview = fitted.previewer({task.name: float(task.name == name) for task in tasks})
        assert preview.evaluations[name] == run.evaluations[name]
    assert model.body.up.weight is model.body.down.weight
