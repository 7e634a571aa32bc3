"""What racing saves: recorded previews of the text study, replayed in many random orders.

    pytest tests/benchmarks/test_racing.py -s --override-ini addopts=""

The previews (baselines, Dirichlet draws, faces) are made once, which takes some minutes, and kept
example by example in the folder OPTUNA_MERGE_BENCHMARKS, or else in a temporary one. A replay
takes previews and examples in a random order through the ledger, the bar and the test that a study
uses, promoting the best preview at the text study's fraction after the default warmup. Prints
`ratio racing_examples_saved <value>`, the examples of all previews over those evaluated, and the
share of orders in which the same previews are promoted; then the same for other settings.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from optuna_merge import Objective, PreviewSampler, PromotionPruner, fit, prepare_study
from optuna_merge.previews import Racing, RacingPreviewer
from optuna_merge.previews._race_test import RaceTest
from optuna_merge.previews._racing import _ENDS
from optuna_merge.pruners import RACED_OUT, Budget, Promote, best_scores_first, decide, race_bar
from studies.digits.optimize import definition as digits
from studies.text.optimize import definition

FRACTION = 0.15
ORDERS = 200
ORDERS_ELSEWHERE = 50
SEEDS = range(5)
BASELINES = 4

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """Previews x tasks weights, and previews x tasks x examples metric values."""

    weights: Array
    values: Array

    @property
    def scores(self) -> Array:
        return self.values.mean(axis=(1, 2)).round(9)  # equal ones are, in any order of examples

    def shuffled(self, rng: np.random.Generator) -> Recording:
        """With the examples in another order, as if the race order had been drawn again."""
        order = rng.permutation(self.values.shape[2])
        return Recording(self.weights, np.ascontiguousarray(self.values[:, :, order]))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = folder_of(tmp_path_factory.mktemp("racing"))
    path = folder / "previews.npz"
    if not path.exists():
        fitted = fit(definition(), folder / "text", progress=False)
        racer = RacingPreviewer(fitted.previewer, fitted.scores, maximize=True, racing=Racing())
        weights = list(weightings())
        for row in weights:
            racer(dict(zip(fitted.definition.names, row)))
        values = [racer._values[tuple(row)] for row in weights]
        np.savez(path, weights=weights, values=values)
    with np.load(path) as found:
        return Recording(found["weights"], found["values"])


def weightings() -> Iterator[list[float]]:
    """The four baselines, 36 draws from the simplex, 12 from its edges, 12 from its middle."""
    rng = np.random.default_rng(0)
    yield [1 / 3] * 3
    yield from np.eye(3).tolist()
    yield from rng.dirichlet(np.ones(3), 36).tolist()
    for edge in range(12):
        yield np.insert(rng.dirichlet(np.ones(2)), edge % 3, 0.0).tolist()
    yield from rng.dirichlet(np.full(3, 4.0), 12).tolist()


def test_examples_saved_at_the_same_promotions(recording: Recording) -> None:
    saved, same, stopped = summary(recording, Racing(), ORDERS)
    print(f"\nratio racing_examples_saved {saved:.3f}")
    print(f"ratio racing_same_promotions {same:.3f}")
    print(f"ratio racing_previews_stopped {stopped:.3f}")


def test_studies_with_and_without_races(tmp_path: Path) -> None:
    """Whole studies of the digits, promoted by the posterior of the truth as by default."""
    fitted = fit(digits(), tmp_path, progress=False)
    names, rows = fitted.definition.names, []
    for seed in SEEDS:
        best = []
        for racing in (None, Racing()):
            search = {"score": fitted.scores, "seed": seed}
            study = optuna.create_study(
                direction="maximize",
                sampler=PreviewSampler(names, **search),
                pruner=PromotionPruner(fraction=FRACTION, **search),
            )
            prepare_study(study, fitted)
            study.optimize(Objective(fitted, racing=racing, progress=False), n_trials=64)
            best.append(study.best_value)
        shares = [t.user_attrs.get("preview_examples", 1.0) for t in previews_of(study)]
        rows.append((len(shares) / sum(shares), best[1] - best[0]))
        print(f"seed {seed}: {rows[-1][0]:.2f} times fewer examples, truth {rows[-1][1]:+.4f}")
    saved, gain = np.array(rows).T
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    print(f"ratio racing_examples_saved_in_digits_studies {saved.mean():.3f}")
    print(f"best truth with races minus without {gain.mean():+.4f}, standard error {error:.4f}")


def previews_of(study: optuna.Study) -> list[FrozenTrial]:
    return [t for t in study.trials if "promoted_from" not in t.user_attrs]


def test_what_the_settings_trade(recording: Recording) -> None:
    print(f"\n{'alpha':>6} {'slack':>6} {'saved':>6} {'same':>6}")
    for alpha in (0.01, 0.05):
        for slack in (0.0, 0.5, 1.0, 1.5):
            found = summary(recording, Racing(alpha, slack), ORDERS_ELSEWHERE)
            print(f"{alpha:6} {slack:6} {found[0]:6.2f} {found[1]:6.2f}")


def test_what_a_preview_in_parts_costs(tmp_path: Path) -> None:
    """Parts are smaller batches, and less sorted by length, than a pass over all data."""
    fitted = fit(definition(), folder_of(tmp_path) / "text", progress=False)
    racer = RacingPreviewer(fitted.previewer, fitted.scores, maximize=True, racing=Racing())
    uniform = dict.fromkeys(fitted.definition.names, 1 / 3)
    seconds = [
        [preview(uniform).seconds for preview in (fitted.previewer, racer)] for _ in range(8)
    ]
    whole, parts = np.median(seconds[1:], axis=0)
    print(f"\nratio racing_full_preview_in_parts_to_whole {parts / whole:.3f}")


def folder_of(temporary: Path) -> Path:
    kept = os.environ.get("OPTUNA_MERGE_BENCHMARKS")
    return Path(kept) / "racing" if kept else temporary


def summary(recording: Recording, racing: Racing, orders: int) -> tuple[float, float, float]:
    """Examples saved, share of orders with the same promotions, share of previews stopped."""
    used, same, stopped = 0.0, 0, 0.0
    rest = np.arange(BASELINES, len(recording.weights))
    for seed in range(orders):
        rng = np.random.default_rng(seed)
        order = [*range(BASELINES), *rng.permutation(rest).tolist()]
        _, plain, _ = replay(recording, order, None)
        share, raced, lost = replay(recording.shuffled(rng), order, racing)
        used, same, stopped = used + share, same + (plain == raced), stopped + lost
    return orders / used, same / orders, stopped / orders / len(order)


def replay(
    recording: Recording, order: list[int], racing: Racing | None
) -> tuple[float, set[int], int]:
    """Share of the examples that was evaluated, what was promoted, how many were raced out."""
    budget, by_score = Budget(FRACTION), best_scores_first(True)
    trials: list[FrozenTrial] = []
    recorded: dict[int, int] = {}  # trial number -> preview
    promoted: set[int] = set()
    used, lost = 0.0, 0
    for preview in order:
        baseline = preview < BASELINES
        bar = None
        if racing is not None and not baseline:
            bar = race_bar(trials, budget, slack=racing.slack, maximize=True)
        share = 1.0
        if racing is not None and bar is not None:
            references = [recorded[trial.number] for trial in bar.references]
            share = race(recording, preview, bar.score, references, racing)
        used += share
        number = len(trials)
        recorded[number] = preview
        if share < 1.0:
            lost += 1
            assert bar is not None
            trials.append(made(number, TrialState.PRUNED, None, {RACED_OUT: bar.trial.number}))
            decisions = decide(trials, None, budget=budget, order=by_score)
        else:
            score = float(recording.scores[preview])
            trials.append(
                made(number, TrialState.RUNNING, score, {"baseline": "x"} if baseline else {})
            )
            decisions = () if baseline else decide(trials, number, budget=budget, order=by_score)
            state = TrialState.COMPLETE if baseline else TrialState.PRUNED
            if Promote(number) in decisions:
                trials[number].user_attrs["preview_decision"] = "promote"
                state = TrialState.COMPLETE
            trials[number].state = state
        for decision in decisions:
            if isinstance(decision, Promote):
                promoted.add(recorded[decision.number])
                if decision.number != number:
                    copy = {"promoted_from": decision.number, "preview_decision": "promote"}
                    score = trials[decision.number].intermediate_values[0]
                    trials.append(made(len(trials), TrialState.COMPLETE, score, copy))
    return used / len(order), promoted, lost


def race(
    recording: Recording, preview: int, bar: float, references: list[int], racing: Racing
) -> float:
    """Share of the examples after which the preview is given up; 1.0 where it isn't."""
    weights, values = recording.weights, recording.values
    nearest = min(references, key=lambda r: np.square(weights[r] - weights[preview]).sum())
    test = RaceTest(
        list(values[nearest]),
        bar,
        lambda metrics: metrics.mean(-1),
        [1.0] * values.shape[1],
        True,
        racing.alpha,
        len(_ENDS) - 1,
    )
    size = values.shape[2]
    for end in _ENDS[:-1]:
        seen = round(size * end)
        if test.is_lost([task[:seen] for task in values[preview]]):
            return seen / size
    return 1.0


def made(
    number: int, state: TrialState, score: float | None, attrs: dict[str, object]
) -> FrozenTrial:
    trial = create_trial(
        state=state,
        params={"w": 1.0},
        distributions={"w": FloatDistribution(0, 1)},
        intermediate_values={} if score is None else {0: score},
        value=score if state == TrialState.COMPLETE else None,
        user_attrs=attrs,
    )
    trial.number = number
    assert score is None or math.isfinite(score)
    return trial
