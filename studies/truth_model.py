"""Which model of the truth chooses best from what every study has, on stored tables.

    python studies/truth_model.py
    python studies/truth_model.py film conflict --into studies/results/transfer

From the finetunes of one seed at uniform weights and on each task alone, and from previews, a
model predicts every task's metric at all weights of a table. The weights where the score is
expected to be best are judged by the other seeds: the regret is the best mean over all seeds less
theirs, in units of the noise of a finetune (as in `judge.py`). More truths are drawn at random
among the interior weights; 20 previews are those at the truths of every study, the others random.

Simple rules are compared with forms of `TruthModel`, which differ in what the truth may be built
from (`optuna_merge/surrogate/_members.py`). For each suite one form is chosen by the regrets of
the others after the first truths, interior and with faces, all previews and 20; the row "chosen
without the suite" is what that gives.

Writes truth_model.csv and truth_model.md into `studies/results`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
import typer
from scipy.special import ndtri
from scipy.stats import qmc

from optuna_merge._base.files import atomic_path
from optuna_merge.commands import Debug, guarded
from optuna_merge.goals import Score
from optuna_merge.surrogate._members import OF_A_METRIC, Grid
from optuna_merge.surrogate._truth import TruthModel
from optuna_merge.trials import Series
from studies.judge import alone_of, scores_of
from studies.preview_quality import last_rungs, read_points, write_csv
from studies.simple_rules import own_weight_curves

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

STUDIES = Path(__file__).resolve().parent

SUITES = {
    "mnist": ("diagonal+heads+anchor", "mnist/results"),
    "fashion": ("diagonal+heads+anchor", "fashion/results/tenths"),
    "text": ("diagonal+heads+anchor", "text/results/sixths"),
    "newsgroups": ("diagonal+heads0.1+anchor", "newsgroups/results/sixths"),
    "sentiment": ("diagonal+heads+anchor", "sentiment/results/sixths"),
    "digits": ("diagonal+heads+anchor", "digits/results/tenths"),
    "groups": ("diagonal+heads0.1+anchor", "groups/results"),
}
"""By suite the previews' family, as studies make them, and the folder."""

UNUSED = {
    "film": ("diagonal+heads+anchor", "film/results"),
    "conflict": ("diagonal+heads+anchor", "conflict/results"),
}
"""Suites that have chosen no default, and are looked at only when they are named."""

CASES = ((0, 0, 1), (0, 20, 5), (6, 0, 5), (10, 0, 5))
"""Truths (0: uniform weights and the tasks alone), previews (0: all) and random draws."""

PLACES = ("interior", "all")
CHOSEN = "chosen without the suite"
FIELDS = ("suite", "score", "truths", "previews", "place", "row", "regret")


@dataclass(frozen=True)
class Suite:
    """A suite's tables: weights `n x T`, truths `seeds x n x T`, previews `sets x n x T`.

    A set of previews is corrected by the finetune at uniform weights of one seed: `anchors` has
    its place among the truths.
    """

    name: str
    weights: Array
    truths: Array
    previews: Array
    anchors: tuple[int, ...]
    scores: tuple[Score, ...]
    alone: Mapping[str, float]

    @classmethod
    def read(cls, name: str) -> Suite:
        """From the stored tables: the weights that have truths and previews of all seeds."""
        family, folder = (SUITES | UNUSED)[name]
        points, tasks = read_points(STUDIES / folder / "truth.csv")
        alone = alone_of(last_rungs(points), tasks)
        assert alone is not None, f"{name} has no finetunes of each task alone"
        truths = {(p.seed, p.weights): p.metrics for p in last_rungs(points)}
        previews = {
            (p.seed, p.weights): p.metrics
            for p in read_points(STUDIES / folder / "previews.csv")[0]
            if p.family == family and p.start == "merged" and not p.steps
        }
        weights = sorted({w for _, w in truths})
        seeds, sets = (sorted({s for s, _ in found}) for found in (truths, previews))
        kept = [
            w
            for w in weights
            if all((s, w) in truths for s in seeds) and all((s, w) in previews for s in sets)
        ]
        return cls(
            name,
            np.array(kept),
            np.array([[truths[s, w] for w in kept] for s in seeds]),
            np.array([[previews[s, w] for w in kept] for s in sets]),
            tuple(seeds.index(s) for s in sets),
            tuple(scores_of(tasks)),
            alone,
        )

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.weights.min(axis=1) > 0)

    @property
    def baselines(self) -> list[int]:
        """Places of uniform weights and of each task alone."""
        n_tasks = self.weights.shape[1]
        wanted = [np.full(n_tasks, 1 / n_tasks), *np.eye(n_tasks)]
        return [int(np.abs(self.weights - w).max(axis=1).argmin()) for w in wanted]

    def values(self, score: Score, metrics: Array) -> Array:
        """Scores, larger is better."""
        return score.over(metrics, self.alone) * (1.0 if score.maximize else -1.0)


@dataclass(frozen=True)
class Seen:
    """What a rule may look at: weights of all points, and what is known at some of them."""

    weights: Array
    at: Indices
    truths: Array
    previewed: Indices
    previews: Array

    @property
    def everywhere(self) -> bool:
        """Whether all weights have previews; the simple rules need these."""
        return len(self.previewed) == len(self.weights)

    @property
    def n_tasks(self) -> int:
        return int(self.weights.shape[1])


Moments = tuple[Array, Array]
"""Means and standard deviations of all metrics at all weights."""

Rule = Callable[[Seen], Moments | None]
"""None where it does not apply."""


def certain(rule: Callable[[Seen], Array]) -> Rule:
    """A rule that has no opinion of its own errors, and needs previews everywhere."""

    def moments(seen: Seen) -> Moments | None:
        if not seen.everywhere:
            return None
        mean = rule(seen)
        return mean, np.zeros_like(mean)

    return moments


def curve(seen: Seen) -> Array:
    """The own-weight curve of the simple rules."""
    n = seen.n_tasks
    alone = seen.truths[1 : n + 1]
    return np.asarray(own_weight_curves(alone, seen.truths[0], seen.weights))


def shifted(seen: Seen) -> Array:
    """Previews plus what is missing at uniform weights."""
    return np.asarray(seen.previews + (seen.truths[0] - seen.previews[seen.at[0]]))


def interpolated(seen: Seen) -> Array:
    """Previews plus their residuals, linear between uniform weights and the tasks alone."""
    least = seen.weights.min(axis=1, keepdims=True)
    shares = np.concatenate([seen.n_tasks * least, seen.weights - least], axis=1)
    baselines = slice(0, seen.n_tasks + 1)
    residuals = seen.truths[baselines] - seen.previews[seen.at[baselines]]
    return np.asarray(seen.previews + shares @ residuals)


def modelled(grid: Grid | None, *, own: bool = True, anchored: bool = True) -> Rule:
    """A form of `TruthModel`, one for each task.

    Args:
        grid: What it tries.
        own: Whether it is told whose metric it models.
        anchored: Whether the truth at uniform weights is no evidence for previews, which are
            corrected by it.
    """

    def moments(seen: Seen) -> Moments:
        found = []
        weights = seen.weights[seen.at]
        equal = weights.max(axis=1) == 1.0
        if anchored:
            equal = equal | (np.abs(weights - 1 / seen.n_tasks).max(axis=1) < 1e-6)
        for task in range(seen.n_tasks):
            series = Series(
                seen.weights[seen.previewed],
                seen.previews[:, task],
                weights,
                seen.truths[:, task],
                own=task if own else None,
                anchored=equal if own else np.zeros_like(equal),
            )
            with torch.no_grad():
                found.append(TruthModel(series, grid).predict(seen.weights))
        return np.stack([m for m, _ in found], 1), np.stack([s for _, s in found], 1)

    return moments


_NEITHER, _PREVIEW, _CURVE, _BOTH = OF_A_METRIC.sides

RULES: dict[str, Rule] = {
    "raw previews": certain(lambda seen: seen.previews),
    "own-weight curve": certain(curve),
    "shifted": certain(shifted),
    "half curve, half shifted": certain(lambda seen: (curve(seen) + shifted(seen)) / 2),
    "half curve, half interpolated": certain(lambda seen: (curve(seen) + interpolated(seen)) / 2),
    "model before: no own weight": modelled(None, own=False),
}

FORMS: dict[str, Rule] = {
    "previews or neither": modelled(replace(OF_A_METRIC, sides=(_NEITHER, _PREVIEW))),
    "curve or neither": modelled(replace(OF_A_METRIC, sides=(_NEITHER, _CURVE))),
    "both or neither": modelled(replace(OF_A_METRIC, sides=(_NEITHER, _BOTH))),
    "all four, odds of the previews threefold": modelled(
        replace(OF_A_METRIC, sides=(_NEITHER, replace(_PREVIEW, odds=3.0), _CURVE, _BOTH))
    ),
    "all four, odds of the curve threefold": modelled(
        replace(OF_A_METRIC, sides=(_NEITHER, _PREVIEW, replace(_CURVE, odds=6.0), _BOTH))
    ),
    "all four, three saturations": modelled(replace(OF_A_METRIC, saturations=(0.1, 0.3, 0.9))),
    "all four": modelled(OF_A_METRIC),
}
"""The last one is the default of `TruthModel`."""

EVIDENT = {"all four, uniform weights evidence": modelled(OF_A_METRIC, anchored=False)}


def views(suite: Suite, n_truths: int, n_previews: int, draws: int) -> Iterator[tuple[int, Seen]]:
    """What there is to see, with the seed of the truths, which has corrected the previews."""
    start = suite.baselines
    others = np.setdiff1d(np.flatnonzero(suite.inside), start)
    rest = np.setdiff1d(np.arange(len(suite.weights)), start)
    for draw in range(draws):
        for seed, previews in zip(suite.anchors, suite.previews, strict=True):
            rng = np.random.default_rng([draw, seed])
            more = rng.permutation(others)[: max(n_truths - len(start), 0)]
            at = np.array([*start, *more], dtype=np.intp)
            previewed = np.arange(len(suite.weights))
            if n_previews:
                drawn = rng.permutation(rest)[: n_previews - len(start)]
                previewed = np.array([*start, *drawn], dtype=np.intp)
            truths = suite.truths[seed]
            yield seed, Seen(suite.weights, at, truths[at], previewed, previews[previewed])


def regrets(suite: Suite, seed: int, moments: Moments) -> dict[tuple[str, str], float]:
    """By score and place, in units of the noise."""
    mean, std = moments
    normal = ndtri(np.clip(qmc.Sobol(mean.shape[1], seed=0).random(128), 1e-6, 1 - 1e-6))
    draws = mean + std * normal[:, None, :]
    found = {}
    for score in suite.scores:
        expected = suite.values(score, draws).mean(axis=0)
        each = suite.values(score, suite.truths)
        noise = np.sqrt(each[:, suite.inside].var(axis=0, ddof=1).mean())
        judge = np.delete(each, seed, axis=0).mean(axis=0)
        for place in PLACES:
            allowed = suite.inside | (place == "all")
            best = int(np.where(allowed, expected, -np.inf).argmax())
            loss = each.mean(axis=0)[allowed].max() - judge[best]
            found[score.name, place] = float(loss / noise)
    return found


Key = tuple[str, str, int, int, str, str]
"""Suite, score, truths, previews, place and row."""


def measure(suites: Sequence[str]) -> dict[Key, float]:
    """The mean regrets of all rows."""
    found: dict[Key, list[float]] = defaultdict(list)
    for name in suites:
        suite = Suite.read(name)
        for n_truths, n_previews, draws in CASES:
            for seed, seen in views(suite, n_truths, n_previews, draws):
                for row, rule in {**RULES, **FORMS, **EVIDENT}.items():
                    moments = rule(seen)
                    if moments is not None:
                        for (score, place), value in regrets(suite, seed, moments).items():
                            key = (name, score, n_truths, n_previews, place, row)
                            found[key].append(value)
        typer.echo(
            f"{name}: {suite.weights.shape[0]} weights, {len(suite.truths)} seeds", err=True
        )
    means = {key: float(np.mean(values)) for key, values in found.items()}
    return means | _chosen(means)


def _chosen(means: Mapping[Key, float]) -> dict[Key, float]:
    """What the form gives that is best on the other suites after the first truths."""
    found: dict[Key, float] = {}
    for suite in dict.fromkeys(key[0] for key in means):
        others = {
            form: [
                value
                for key, value in means.items()
                if key[5] == form and key[0] != suite and not key[2] and composite(key[1])
            ]
            for form in FORMS
        }
        if not all(others.values()):
            continue
        best = min(FORMS, key=lambda form: float(np.mean(others[form])))
        typer.echo(f"{suite}: the others choose {best!r}", err=True)
        found |= {(*k[:5], CHOSEN): v for k, v in means.items() if k[0] == suite and k[5] == best}
    return found


def composite(score: str) -> bool:
    """Whether it is a score of all tasks, and not a single target."""
    return not score.startswith("target")


def report(means: Mapping[Key, float]) -> str:
    """Tables, as Markdown."""
    suites = list(dict.fromkeys(key[0] for key in means))
    rows = [*RULES, *FORMS, *EVIDENT, CHOSEN]
    parts = []
    for n_truths, n_previews, _ in CASES:
        for place in PLACES:
            truths = f"{n_truths} truths" if n_truths else "uniform weights and the tasks alone"
            previews = f"{n_previews} previews" if n_previews else "previews everywhere"
            among = "interior weights" if place == "interior" else "all weights, faces too"
            lines = [f"{truths}, {previews}, among {among}:".capitalize(), ""]
            head = ["regret in noises", "mean", "largest of a suite", *suites, "targets"]
            lines += [_line(head), _line(["---"] * len(head))]
            for row in rows:
                here = {
                    (k[0], k[1]): v
                    for k, v in means.items()
                    if k[2:] == (n_truths, n_previews, place, row)
                }
                if not here:
                    continue
                of = {
                    s: float(
                        np.mean([v for k, v in here.items() if k[0] == s and composite(k[1])])
                    )
                    for s in suites
                }
                targets = float(np.mean([v for k, v in here.items() if not composite(k[1])]))
                every = [v for k, v in here.items() if composite(k[1])]
                cells = [float(np.mean(every)), max(of.values()), *of.values(), targets]
                lines.append(_line([row, *(f"{c:.2f}" for c in cells)]))
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites; none: all that choose.")
    ] = None,
    into: Annotated[Path, typer.Option(help="Folder of the tables.")] = STUDIES / "results",
    debug: Debug = False,
) -> None:
    """Judge models of the truth on stored tables.

    Example: python studies/truth_model.py mnist fashion --into /tmp/tables
    """

    def work() -> None:
        known = SUITES | UNUSED
        unknown = [name for name in suites or () if name not in known]
        if unknown:
            raise ValueError(f"no suite {unknown[0]!r}; there are {', '.join(known)}")
        torch.set_num_threads(1)
        means = measure(suites or list(SUITES))
        into.mkdir(parents=True, exist_ok=True)
        table = [[*key, f"{value:.4f}"] for key, value in means.items()]
        write_csv(into / "truth_model.csv", [FIELDS, *table])
        text = report(means)
        with atomic_path(into / "truth_model.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        typer.echo(text)

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
