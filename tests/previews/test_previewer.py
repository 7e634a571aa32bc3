from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same, toy_definition, toy_model, toy_task, toy_tasks

from optuna_merge.definition import PosteriorSettings
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.merging import merge
from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian
from optuna_merge.previews import Previewer, PreviewSettings
from optuna_merge.tasks import EvaluationBatches, evaluate


@pytest.fixture(scope="module", params=["diagonal", "isotropic"])
def fitted(request: Any, tmp_path_factory: pytest.TempPathFactory) -> FittedStudy:
    settings = PosteriorSettings(family=request.param, examples=16, chunk_size=8)
    definition = toy_definition(
        posterior=settings, preview=PreviewSettings(heads="merged", anchor="none")
    )
    return fit(definition, tmp_path_factory.mktemp("workdir"), progress=False)


def test_all_weight_on_a_task_gives_that_task_s_run_exactly(fitted: FittedStudy) -> None:
    for name, run in fitted.runs.items():
        weights = {task.name: float(task.name == name) for task in fitted.tasks}
        preview = fitted.previewer(weights)
        assert preview.evaluations[name] == run.evaluations[name]
        parameters = run.parameters()
        merged = fitted.previewer.merged(weights)
        assert same({n: merged[n] for n in parameters}, parameters)


def test_the_body_is_merged_and_every_task_keeps_its_head(fitted: FittedStudy) -> None:
    weights = {"red": 0.3, "blue": 0.7}
    merged = fitted.previewer.merged(weights)
    for name, run in fitted.runs.items():
        parameters = run.parameters()
        for head in fitted.model.own_names(name):
            assert torch.equal(merged[head], parameters[head])
    body = "body.3.weight"
    means = [run.parameters()[body] for run in fitted.runs.values()]
    low, high = torch.minimum(*means), torch.maximum(*means)
    assert bool(((merged[body] >= low - 1e-6) & (merged[body] <= high + 1e-6)).all())
    assert not torch.equal(merged[body], means[0]) and not torch.equal(merged[body], means[1])
    if fitted.damping is None:
        torch.testing.assert_close(merged[body], 0.3 * means[0] + 0.7 * means[1])


def test_a_preview_evaluates_the_merged_model(fitted: FittedStudy) -> None:
    weights = {"red": 0.3, "blue": 0.7}
    preview = fitted.previewer(weights)
    model = toy_model(fitted.definition.tasks)
    model.load(fitted.previewer.merged(weights))
    for task in fitted.definition.tasks:
        expected = evaluate(
            lambda batch, name=task.name: model(batch, name), task, EvaluationBatches(task)
        )
        assert preview.evaluations[task.name] == expected
        assert expected.metric.standard_error > 0
    assert preview.weights == weights
    assert 0 < preview.seconds < 10


def test_previews_do_not_depend_on_what_the_model_did_before(fitted: FittedStudy) -> None:
    weights = {"red": 0.5, "blue": 0.5}
    first = fitted.previewer(weights).evaluations
    fitted.previewer({"red": 1.0, "blue": 0.0})
    fitted.model.train()
    assert fitted.previewer(weights).evaluations == first


def test_a_limited_number_of_examples() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    state = model.state(model.shared_names())
    posteriors = {task.name: IsotropicGaussian(state) for task in tasks}
    heads = {task.name: model.state(model.own_names(task.name)) for task in tasks}
    weights = {"red": 0.5, "blue": 0.5}
    few = Previewer(model, tasks, posteriors, heads, limit=7)(weights).evaluations
    assert [e.num_examples for e in few.values()] == [7, 7]
    many = Previewer(model, tasks, posteriors, heads, limit=1000)(weights).evaluations
    assert many == Previewer(model, tasks, posteriors, heads)(weights).evaluations


def test_shared_heads_are_merged_as_well(tmp_path: Path) -> None:
    tasks = (toy_task("red", 1, head="both"), toy_task("blue", 2, head="both"))
    model = toy_model(tasks)
    head = "heads.both.head.weight"
    means = [model.state(), {n: t + 1 for n, t in model.state().items()}]
    posteriors = {
        t.name: IsotropicGaussian(mean, precision)
        for t, mean, precision in zip(tasks, means, (1.0, 3.0))
    }
    previewer = Previewer(model, tasks, posteriors, {"red": {}, "blue": {}})
    merged = previewer.merged({"red": 0.5, "blue": 0.5})
    torch.testing.assert_close(merged[head], means[0][head] + 0.75)


def test_weights_are_by_name_and_posteriors_in_the_tasks_order() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    shared = model.state(model.shared_names())
    posteriors = {
        name: DiagonalGaussian({n: t + shift for n, t in shared.items()}, ones(shared, precision))
        for name, shift, precision in (("blue", 1.0, 2.0), ("red", 0.0, 1.0))
    }
    heads = {t.name: model.state(model.own_names(t.name)) for t in tasks}
    merged = Previewer(model, tasks, posteriors, heads).merged({"blue": 0.25, "red": 0.75})
    expected = merge(posteriors, {"blue": 0.25, "red": 0.75})
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor)
        torch.testing.assert_close(merged[name], shared[name] + 0.5 / 1.25)


def ones(like: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in like.items()}


def test_posteriors_of_another_body_are_refused_by_name() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    wide = {"body.0.weight": torch.zeros(9, 6)}
    posteriors = {task.name: IsotropicGaussian(wide, 1.0) for task in tasks}
    previewer = Previewer(model, tasks, posteriors, {"red": {}, "blue": {}})
    with pytest.raises(
        ValueError, match=r"'body\.0\.weight' has shape \(8, 6\), expected \(9, 6\)"
    ):
        previewer({"red": 0.5, "blue": 0.5})
    with pytest.raises(KeyError, match="blue"):
        Previewer(model, tasks, {"red": posteriors["red"]}, {"red": {}, "blue": {}})
