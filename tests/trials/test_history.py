from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge.surrogate import TruthModel
from optuna_merge.trials import History, TrialReader

TASKS = ("a", "b")


def make(
    state: TrialState,
    weights: tuple[float, ...] = (1.0, 3.0),
    *,
    preview: float | None = None,
    value: float | None = None,
    **attrs: object,
) -> FrozenTrial:
    names = [f"w_{t}" for t in TASKS][: len(weights)]
    return create_trial(
        state=state,
        params=dict(zip(names, weights)),
        distributions={n: FloatDistribution(0, 10) for n in names},
        intermediate_values={} if preview is None else {0: preview, 5: 77.0},
        value=value,
        user_attrs=attrs,
    )


def read(*trials: FrozenTrial) -> History:
    study = optuna.create_study()
    for trial in trials:
        study.add_trial(trial)
    return TrialReader(TASKS).read("s", study.trials)


def test_previews_that_have_an_error() -> None:
    history = read(
        make(TrialState.PRUNED, (0.5, 0.5), preview=0.1, preview_a=0.2, preview_a_se=0.01),
        make(TrialState.PRUNED, (1.0, 3.0), preview=0.1, preview_a=0.2, preview_a_se=0.0),
        make(TrialState.PRUNED, (3.0, 1.0), preview=0.1),
    )
    assert len(history.previewed()) == 3
    np.testing.assert_array_equal(history.previewed(noisy=True), [[0.5, 0.5]])


def test_fidelities_and_pending() -> None:
    history = read(
        make(TrialState.PRUNED, (0.5, 0.5), preview=0.1),
        make(TrialState.COMPLETE, (1.0, 3.0), preview=0.2, value=0.9),
        make(TrialState.RUNNING, (1.0, 0.0), preview=0.3),
        make(TrialState.RUNNING, (0.0, 0.0)),
        make(TrialState.WAITING, (0.0, 2.0)),
        make(TrialState.FAIL, (0.2, 0.8), preview=9.0),
        make(TrialState.COMPLETE, (0.5, 0.5), preview=0.1, value=0.8, promoted_from=0),
    )
    series = history.score(-1.0)
    assert series.sign == -1.0
    np.testing.assert_array_equal(series.previews, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(series.preview_weights, [[0.5, 0.5], [0.25, 0.75], [1, 0]])
    np.testing.assert_array_equal(series.truths, [0.9, 0.8])
    np.testing.assert_array_equal(series.truth_weights, [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_array_equal(series.pending, [[1, 0], [0.5, 0.5], [0, 1]])
    assert len(history.visited()) == 7


def test_unusable_trials_are_left_out() -> None:
    history = read(
        make(TrialState.PRUNED, (0.5,), preview=1.0),  # a parameter is missing
        make(TrialState.PRUNED, preview=math.nan),
        make(TrialState.PRUNED, preview=math.inf),
        make(TrialState.COMPLETE, value=math.inf),
        create_trial(value=1.0),
        make(TrialState.PRUNED, preview=4.0),
    )
    series = history.score(1.0)
    np.testing.assert_array_equal(series.previews, [4.0])
    assert len(series.truths) == 0


def test_metrics_and_their_noise() -> None:
    history = read(
        make(TrialState.PRUNED, preview_a=0.1, preview_b=0.2, preview_a_se=0.1),
        make(TrialState.COMPLETE, value=1.0, preview_a=0.3, truth_a=0.5),
        make(TrialState.PRUNED, preview_a="text"),
    )
    series = history.metric(0)
    np.testing.assert_array_equal(series.previews, [0.1, 0.3])
    np.testing.assert_array_equal(series.truths, [0.5])
    np.testing.assert_allclose(series.preview_noise, [0.01, math.nan])
    assert len(history.metric(1).previews) == 1
    assert len(history.metric(1).truths) == 0


def test_enqueued_weights_are_seen_before_they_run() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"w_a": 1.0, "w_b": 1.0})
    np.testing.assert_array_equal(
        TrialReader(TASKS).read("s", study.trials).visited(), [[0.5, 0.5]]
    )


def test_reader_follows_changes_and_equals_a_fresh_one() -> None:
    study = optuna.create_study()
    reader = TrialReader(TASKS)
    for i in range(6):
        trial = study.ask({f"w_{t}": FloatDistribution(0, 1) for t in TASKS})
        reader.read("s", study.trials)
        trial.report(float(i), 0)
        reader.read("s", study.trials)
        if i % 2:
            study.tell(trial, float(i))
        else:
            study.tell(trial, state=TrialState.PRUNED)
        assert reader.read("s", study.trials) == TrialReader(TASKS).read("s", study.trials)
    other = optuna.create_study()
    other.add_trial(make(TrialState.PRUNED, preview=42.0))
    np.testing.assert_array_equal(reader.read("t", other.trials).score(1.0).previews, [42.0])
    assert len(reader.read("s", study.trials, skip=5).records) == 5


def test_an_older_list_of_trials_is_read_as_it_is() -> None:
    """Threads share a reader, and one of them may still hold the trials of a moment ago."""
    study = optuna.create_study()
    for i in range(4):
        study.add_trial(make(TrialState.PRUNED, preview=float(i)))
    running = study.ask({f"w_{t}": FloatDistribution(0, 1) for t in TASKS})
    older = study.get_trials(deepcopy=False)
    study.tell(running, 5.0)
    study.add_trial(make(TrialState.PRUNED, preview=9.0))
    reader = TrialReader(TASKS)
    newer = study.get_trials(deepcopy=False)
    for trials in (newer, older, older[:2], newer[::2], newer):
        found, fresh = reader.read("s", trials), TrialReader(TASKS).read("s", trials)
        assert found == fresh
        np.testing.assert_array_equal(found.score(1.0).previews, fresh.score(1.0).previews)
        np.testing.assert_array_equal(found.score(1.0).truths, fresh.score(1.0).truths)
        np.testing.assert_array_equal(found.pending(), fresh.pending())


def test_values_of_several_objectives_are_told_apart() -> None:
    study = optuna.create_study(directions=["maximize"] * 2)
    reader = TrialReader(TASKS)
    one = create_trial(values=[0.1, 0.2], params={}, distributions={})
    study.add_trial(one)  # without weights
    without = reader.read("s", study.get_trials(deepcopy=False))
    assert len(without.visited()) == len(without.objective(0, 2, 1.0).truths) == 0
    space = {f"w_{t}": FloatDistribution(0, 1) for t in TASKS}
    params = {f"w_{t}": 0.5 for t in TASKS}
    study.add_trial(create_trial(values=[0.3, 0.4], params=params, distributions=space))
    history = reader.read("s", study.get_trials(deepcopy=False))
    np.testing.assert_array_equal(history.objective(0, 2, 1.0).truths, [0.3])
    np.testing.assert_array_equal(history.objective(1, 2, 1.0).truths, [0.4])
    assert len(history.objective(2, 3, 1.0).truths) == 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_collapsed_metric_does_not_set_the_scale(sign: float) -> None:
    """One bad value, the lowest or the highest, hides nothing of the others."""
    trials = []
    for number, w in enumerate(np.linspace(0.05, 0.95, 20).tolist()):
        bad = number == 0
        value = sign * (-1e4 if bad else -((w - 0.5) ** 2))
        trials.append(
            create_trial(
                state=TrialState.PRUNED,
                params={"w_a": w, "w_b": 1 - w},
                distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
                user_attrs={"preview_a": value, "preview_b": value},
            )
        )
        trials[-1].number = number
    series = TrialReader(("a", "b")).read("s", trials).metric(0, sign)
    points = np.array([[0.5, 0.5], [0.9, 0.1]])
    best, worse = sign * TruthModel.fit(series).predict(points)[0]
    assert best > worse + 0.05


def test_truths_that_made_their_previews_are_told_apart() -> None:
    """Uniform weights where the attribute says so, a task alone always, and their second seeds."""

    def trial(number: int, share: float, **attrs: object) -> FrozenTrial:
        done = attrs.pop("done", True)
        metrics = {f"preview_{task}": 0.5 for task in "ab"} | {
            f"truth_{task}": 0.6 for task in "ab"
        }
        found = create_trial(
            state=TrialState.COMPLETE if done else TrialState.PRUNED,
            value=0.6 if done else None,
            params={"w_a": share, "w_b": 1 - share},
            distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
            intermediate_values={0: 0.5},
            user_attrs=({} if "promoted_from" in attrs or "repeat" in attrs else metrics) | attrs,
        )
        if "promoted_from" in attrs or "repeat" in attrs:
            for task in "ab":
                found.user_attrs[f"truth_{task}"] = 0.6
        found.number = number
        return found

    trials = [
        trial(0, 0.5, preview_at_anchor=True),
        trial(1, 1.0),
        trial(2, 0.3, done=False),
        trial(3, 0.7, done=False, preview_at_anchor=True),
        trial(4, 0.5, repeat=1),
        trial(5, 0.3, promoted_from=2),
        trial(6, 0.7, promoted_from=3),
    ]
    history = TrialReader(("a", "b")).read("s", trials)
    for series in (history.metric(0), history.score(1.0)):
        np.testing.assert_allclose(series.truth_weights[:, 0], [0.5, 1.0, 0.5, 0.3, 0.7])
        assert series.anchored is not None
        assert series.anchored.tolist() == [True, True, True, False, True]
    assert (history.metric(1).own, history.score(1.0).own) == (1, None)


def test_a_study_of_a_score_alone_has_no_such_truths() -> None:
    alone = create_trial(
        value=1.0,
        params={"w_a": 1.0, "w_b": 0.0},
        distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
    )
    alone.number = 0
    series = TrialReader(("a", "b")).read("s", [alone]).score(1.0)
    assert series.equal_by_construction.tolist() == [False]
