from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy_definition, toy_model, toy_task

from optuna_merge.posteriors import IsotropicGaussian
from optuna_merge.previews import PartialPreview, Preview, Previewer, Racing, RacingPreviewer
from optuna_merge.previews._racing import _ENDS
from optuna_merge.tasks import EvaluationBatches, Metric, Task, macro_f1, mean_squared_error
from optuna_merge.tasks import negative_squared_error as squared

GOOD, BAD = {"red": 0.5, "blue": 0.5}, {"red": 0.0, "blue": 1.0}


def big_task(name: str, seed: int, **changes: Any) -> Task:
    """A toy task with 600 validation examples."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(624, 6, generator=generator)
    labels = (x[:, 0] > 0).long()
    return toy_task(
        name,
        train={"x": x[:24], "labels": labels[:24]},
        validation={"x": x[24:], "labels": labels[24:]},
        **changes,
    )


def made(**racing: Any) -> RacingPreviewer:
    """A model of two tasks that is right at equal weights, and guesses as "blue" alone has it."""
    tasks = (big_task("red", 1), big_task("blue", 2))
    model = toy_model(tasks)
    state = model.state(model.shared_names())
    good = {name: torch.zeros_like(t) for name, t in state.items()}
    good["body.0.weight"][0, 0] = 1.0
    good["body.3.weight"][0, 0] = 4.0
    noise = {name: torch.randn_like(t) for name, t in state.items()}
    posteriors = {
        "red": IsotropicGaussian({name: 2 * good[name] - noise[name] for name in state}),
        "blue": IsotropicGaussian(noise),
    }
    heads = {}
    for task in tasks:
        head = model.state(model.own_names(task.name))
        for tensor in head.values():
            tensor.zero_()
            if tensor.ndim == 2:
                tensor[0, 0], tensor[1, 0] = -1.0, 1.0
        heads[task.name] = head
    previewer = Previewer(model, tasks, posteriors, heads)
    return RacingPreviewer(
        previewer, lambda metrics: metrics.mean(-1), maximize=True, racing=Racing(**racing)
    )


def score(preview: Preview) -> float:
    return sum(e.metric.value for e in preview.evaluations.values()) / 2


@pytest.fixture
def racer() -> RacingPreviewer:
    torch.manual_seed(0)
    return made()


def test_a_race_that_is_not_lost_gives_the_full_preview(racer: RacingPreviewer) -> None:
    full = racer(GOOD)
    raced = racer.race(GOOD, score(full), [GOOD])
    assert isinstance(raced, Preview)
    assert raced.evaluations == full.evaluations
    plain = racer._previewer(GOOD)  # other batches
    for name, evaluation in plain.evaluations.items():
        assert full.evaluations[name].loss.value == pytest.approx(evaluation.loss.value, abs=1e-5)
        assert full.evaluations[name].metric == evaluation.metric
        assert full.evaluations[name].num_examples == evaluation.num_examples == 600


def test_a_lost_race_stops_early_and_estimates_the_full_preview(racer: RacingPreviewer) -> None:
    bar = score(racer(GOOD))
    found = racer.race(BAD, bar, [GOOD])
    assert isinstance(found, PartialPreview)
    assert found.weights == BAD
    assert found.fraction < 0.3
    for name, evaluation in racer(BAD).evaluations.items():
        estimate, full = found.metrics[name], evaluation.metric
        assert abs(estimate.value - full.value) < 4 * estimate.standard_error
        assert estimate.standard_error > full.standard_error


def test_only_as_many_examples_are_read_as_are_needed(
    racer: RacingPreviewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = score(racer(GOOD))
    parts: list[int] = []
    read = EvaluationBatches.part

    def counted(self: EvaluationBatches, index: int) -> Any:
        parts.append(index)
        return read(self, index)

    monkeypatch.setattr(EvaluationBatches, "part", counted)
    found = racer.race(BAD, bar, [GOOD])
    assert isinstance(found, PartialPreview)
    assert max(parts) < len(_ENDS) - 1
    assert found.fraction == pytest.approx(_ENDS[max(parts)], abs=1e-3)


def test_the_nearest_reference_is_taken_and_made_where_it_is_unknown(
    racer: RacingPreviewer,
) -> None:
    near = {"red": 0.1, "blue": 0.9}
    bar = score(racer(GOOD))
    known = racer.race(BAD, bar, [GOOD, near])
    assert tuple(near.values()) in racer._values
    torch.manual_seed(0)
    fresh = made()
    again = fresh.race(BAD, bar, [GOOD, near])
    assert isinstance(known, PartialPreview)
    assert isinstance(again, PartialPreview)
    assert again.metrics == known.metrics
    assert again.fraction == known.fraction
    assert tuple(GOOD.values()) not in fresh._values


def test_parts_are_disjoint_random_samples_that_cover_the_data() -> None:
    task = big_task("red", 1)
    batches = EvaluationBatches(task, batch_size=16, ends=(0.1, 0.5, 1.0))
    assert [sum(map(len, part)) for part in batches._rows] == [60, 240, 300]
    rows = [row for part in batches._rows for batch in part for row in batch]
    assert sorted(rows) == list(range(600))
    assert max(len(batch) for part in batches._rows for batch in part) <= 16
    first = [row for batch in batches._rows[0] for row in batch]
    assert 200 < sum(first) / len(first) < 400
    again = EvaluationBatches(task, batch_size=16, ends=(0.1, 0.5, 1.0))
    assert again._rows == batches._rows
    labels = torch.cat([batch["labels"] for batch in batches])
    assert torch.equal(labels, task.data("validation")[rows]["labels"])


def test_fewer_examples_than_parts() -> None:
    tasks = (toy_task("red", 1, validation=toy_task("x", 3).data("validation")[[0, 1, 2]]),)
    model = toy_model(tasks)
    posteriors = {"red": IsotropicGaussian(model.state(model.shared_names()))}
    heads = {"red": model.state(model.own_names("red"))}
    racer = RacingPreviewer(
        Previewer(model, tasks, posteriors, heads),
        lambda metrics: metrics.mean(-1),
        maximize=True,
        racing=Racing(),
    )
    found = racer.race({"red": 1.0}, 2.0, [{"red": 1.0}])
    assert isinstance(found, Preview)
    assert found.evaluations["red"].num_examples == 3


def test_metrics_that_are_no_means_are_not_raced(tmp_path: Path) -> None:
    tasks = (toy_task("red", 1, metrics=(macro_f1,)), toy_task("blue", 2))
    definition = toy_definition(tasks)
    previewer = Previewer(
        definition.model,
        tasks,
        {t.name: IsotropicGaussian(definition.model.state()) for t in tasks},
        {t.name: {} for t in tasks},
    )
    with pytest.raises(ValueError, match="'macro_f1' of task 'red' is no mean over examples"):
        RacingPreviewer(previewer, lambda m: m.mean(-1), maximize=True, racing=Racing())


def test_values_of_metrics_that_are_means() -> None:
    outputs, labels = torch.randn(30, 2), torch.randn(30, 2)
    assert squared.per_example is not None
    values = squared.per_example(*squared.condense(outputs, labels))
    assert float(values.double().mean()) == pytest.approx(squared(outputs, labels).value)
    torch.testing.assert_close(-values, mean_squared_error(outputs, labels))
    assert Metric("own", squared.function).per_example is None


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"alpha": 0.5}, {"slack": -1.0}])
def test_settings_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Racing(**bad)
