"""What searches cost and how good they are: regret against cost, tables, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.pictures import svg, text
from studies.search.replay import AXES, Array, Landscape, Truth

RESAMPLES = 2000
COLOURS = {
    "uniform": "#999999",
    "proportional": "#bbbbbb",
    "doubling rule": "#000000",
    "own-weight curve": "#5d5d8d",
    "random": "#777777",
    "TPE": "#56b4e9",
    "TPE (-log u)": "#9bd0f0",
    "GPSampler": "#0072b2",
    "GPSampler (-log u)": "#6aaed6",
    "TPE + Hyperband": "#3b9bb3",
    "TPE + Hyperband (-log u)": "#7fc4d4",
    "SMAC": "#e69f00",
    "SMAC (-log u)": "#f2c25e",
    "ASHA": "#c9a227",
    "ASHA (-log u)": "#dcc36f",
    "BOHB": "#a6761d",
    "BOHB (-log u)": "#c79a55",
    "best previews": "#cc79a7",
    "quadratic": "#9467bd",
    "simplex GP": "#009e73",
    "metric GPs": "#4daf4a",
    "metric GPs from corners": "#1b7837",
    "ours at a fixed pace": "#e8a3d1",
    "ours with one model": "#d0a05a",
    "ours without curves": "#b0c4a0",
    "ours until flat": "#f08a8a",
    "ours": "#d62728",
}
"""By method, in the order of the tables."""

_WIDTH, _HEIGHT, _GAP, _LEFT = 300.0, 210.0, 62.0, 56.0


@dataclass(frozen=True)
class Search:
    """One replay: the costs at which another truth looked best, and what it then was worth.

    Attributes:
        costs: By axis, in finetunes, rising.
        regrets: The best mean over all seeds less what the truth that looked best is worth by the
            seeds that the search has not seen, in units of the score.
    """

    costs: tuple[tuple[float, ...], ...]
    regrets: tuple[float, ...]

    @classmethod
    def of(cls, truths: Sequence[Truth], landscape: Landscape, seed: int) -> Search:
        """Of the search with this seed, which says whom it is judged by."""
        best, worth = -math.inf, landscape.truth.max() - landscape.judged(seed)
        costs: list[tuple[float, ...]] = []
        regrets: list[float] = []
        for truth in truths:
            if truth.seen > best:
                best = truth.seen
                costs.append(truth.costs)
                regrets.append(float(worth[truth.point]))
        return cls(tuple(zip(*costs)), tuple(regrets))

    def at(self, costs: Array, axis: int = 0) -> Array:
        """The regret at each cost on an axis; NaN before the first truth."""
        places = np.searchsorted(np.array(self.costs[axis]), costs + 1e-9) - 1
        return np.where(places < 0, np.nan, np.array(self.regrets)[places])

    def cost_until(self, regret: float, axis: int = 0) -> float:
        """The cost from which on the regret is no larger; infinite if it is at the end.

        Not the first time: what looks best by the search's own seed may change for the worse, and
        a judge with noise of its own would let whoever changes often pass by chance.
        """
        found = math.inf
        for cost, r in zip(self.costs[axis], self.regrets):
            found = min(found, cost) if r <= regret else math.inf
        return found


@dataclass(frozen=True)
class Curve:
    """Mean regret of a method's searches at some costs, with its 90% interval (bootstrap)."""

    costs: Array
    mean: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, searches: Sequence[Search], costs: Array, axis: int = 0) -> Curve:
        """Where not all searches have a truth there is no mean: NaN."""
        values = np.stack([s.at(costs, axis) for s in searches])
        draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
        means = values[draws].mean(axis=1)
        low, high = np.quantile(means, (0.05, 0.95), axis=0)
        return cls(costs, values.mean(axis=0), low, high)


Searches = Mapping[str, Sequence[Search]]
"""By method, in any order."""


def ordered(methods: Iterable[str]) -> list[str]:
    """In the order of the tables."""
    there = set(methods)
    return [method for method in COLOURS if method in there]


def difficulty(landscape: Landscape, uniform: float) -> str:
    """One line that says what there is to find.

    Args:
        landscape: One score.
        uniform: Regret of uniform weights.
    """
    truth, noise = landscape.truth, landscape.noise
    near = float(np.mean(truth >= truth.max() - noise))
    return (
        f"best {truth.max():.4f}, worst {truth.min():.4f}, uniform weights {uniform:.4f} below "
        f"the best; noise of one finetune {noise:.4f}; {near:.0%} of the {len(truth)} weightings "
        f"are within it"
    )


def quartiles(
    searches: Sequence[Search], regret: float, axis: int = 0
) -> tuple[float, float, float]:
    """Quartiles of the cost until the regret is no larger; infinite where it never is."""
    until = [s.cost_until(regret, axis) for s in searches]
    low, middle, high = np.quantile(until, (0.25, 0.5, 0.75), method="inverted_cdf").tolist()
    return low, middle, high


def reached(searches: Sequence[Search], regret: float, budget: float, axis: int = 0) -> float:
    """Share of the searches whose regret is no larger when so much is spent on an axis."""
    at = [float(s.at(np.array([budget]), axis)[0]) for s in searches]
    return float(np.mean([r <= regret for r in at]))  # NaN is not


def table(
    searches: Searches, noise: float, costs: Sequence[float], budgets: Mapping[str, float]
) -> str:
    """Markdown: cost until within the noise of the best on each axis, and mean regret at costs.

    Args:
        searches: By method.
        noise: Of one finetune.
        costs: Where regrets are given, in steps; at the last also with the other axes' costs.
        budgets: By method, how far its searches went; the smallest is where they are compared.
    """
    common = min(budgets.values())
    last = costs[-1]
    heads = ["method", "searches"]
    heads += [f"within noise: {AXES[0]} (quartiles)", *AXES[1:], f"at {common:g}"]
    heads += [*(f"{cost:g}" for cost in costs), *(f"{last:g} {axis}" for axis in AXES[1:])]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for method in ordered(searches):
        found, budget = searches[method], budgets[method]
        low, middle, high = (_cost(q, budget) for q in quartiles(found, noise))
        others = [_cost(quartiles(found, noise, axis)[1], budget) for axis in (1, 2)]
        curve = Curve.of(found, np.array(costs, dtype=float))
        cells = [method, str(len(found)), f"{middle} ({low} to {high})", *others]
        cells.append(f"{reached(found, noise, common):.0%}")
        cells += [_regret(value) for value in curve.mean]
        for axis in (1, 2):
            at_end = Curve.of(found, np.array([float(last)]), axis)
            cells.append(_regret(at_end.mean[0]))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def difference_table(searches: Searches, method: str, cost: float) -> str:
    """Markdown: how much lower a method's mean regret is than each other's, with standard errors.

    Paired by the searches' seeds, which share finetunes' seed, judge and ties. In training steps.
    """
    rows = ["| regret less that of | difference | standard error | pairs |", "|---|---|---|---|"]
    mine = [float(s.at(np.array([cost]))[0]) for s in searches.get(method, ())]
    for other in ordered(searches):
        its = [float(s.at(np.array([cost]))[0]) for s in searches[other]]
        pairs = np.array([m - i for m, i in zip(mine, its)])
        pairs = pairs[np.isfinite(pairs)]
        if other == method or len(pairs) < 2:
            continue
        error = pairs.std(ddof=1) / math.sqrt(len(pairs))
        rows.append(f"| {other} | {pairs.mean():+.4f} | {error:.4f} | {len(pairs)} |")
    return "\n".join(rows)


def _cost(value: float, budget: float) -> str:
    return f"{value:.1f}" if value <= budget + 3 else f">{budget:g}"


def _regret(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}".replace("0.", ".", 1)


def picture(panels: Mapping[str, tuple[Searches, float]], budget: float) -> str:
    """Mean regret against cost as SVG, a panel for each title, with 90% intervals.

    Args:
        panels: By title, the searches, and the noise of one finetune, which is a dashed line.
        budget: Where the axis of costs ends, in finetunes.
    """
    parts = []
    costs = np.round(np.arange(1.0, budget + 0.125, 0.25), 6)
    for index, (title, (searches, noise)) in enumerate(panels.items()):
        x0, y0 = _LEFT + index * (_WIDTH + _GAP), 30.0
        curves = {m: Curve.of(searches[m], costs) for m in ordered(searches)}
        tops = [float(np.nanmax(c.high)) for c in curves.values() if not np.isnan(c.high).all()]
        top = max([*tops, noise]) * 1.03

        def at(cost: float, regret: float, x0: float = x0, top: float = top) -> str:
            x, y = x0 + _WIDTH * cost / budget, 30.0 + _HEIGHT * (1 - regret / top)
            return f"{x:.1f},{y:.1f}"

        frame = f'width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"'
        parts.append(f'<rect x="{x0}" y="{y0}" {frame}/>')
        parts.append(text(x0 + _WIDTH / 2, 20, title, bold=True))
        parts.append(
            f'<polyline points="{at(0, noise)} {at(budget, noise)}" fill="none" stroke="#444" '
            f'stroke-dasharray="4 3"/>'
        )
        for method, curve in curves.items():
            there = [i for i in range(len(costs)) if not math.isnan(curve.mean[i])]
            if not there:
                continue
            mine = method.startswith("ours")
            band = [at(costs[i], curve.high[i]) for i in there]
            band += [at(costs[i], curve.low[i]) for i in reversed(there)]
            opacity = 0.15 if mine else 0.04
            parts.append(
                f'<polygon points="{" ".join(band)}" fill="{COLOURS[method]}" '
                f'fill-opacity="{opacity}"/>'
            )
            line = " ".join(at(costs[i], curve.mean[i]) for i in there)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{COLOURS[method]}" '
                f'stroke-width="{2.4 if mine else 1.3}"><title>{method}</title></polyline>'
            )
        for share in (0.0, 0.5, 1.0):
            label, y = f"{share * top:.3f}".removeprefix("0"), y0 + _HEIGHT * (1 - share) + 4
            parts.append(text(x0 - 5, y, label, size=9, anchor="end"))
        for share in np.linspace(0, 1, 5):
            x = x0 + _WIDTH * share
            parts.append(text(x, y0 + _HEIGHT + 13, f"{share * budget:g}", size=9))
        parts.append(text(x0 + _WIDTH / 2, y0 + _HEIGHT + 28, "cost in finetunes", size=9))
    methods = ordered({m for searches, _ in panels.values() for m in searches})
    for i, method in enumerate(methods):
        x, y = _LEFT + 168 * (i % 6), 30 + _HEIGHT + 50 + 18 * (i // 6)
        parts.append(f'<circle cx="{x}" cy="{y - 4:.1f}" r="4" fill="{COLOURS[method]}"/>')
        parts.append(text(x + 9, y, method, anchor="start"))
    width = max(_LEFT + len(panels) * (_WIDTH + _GAP), _LEFT + 168 * 6)
    return svg(width, 30 + _HEIGHT + 72 + 18 * math.ceil(len(methods) / 6), parts)
