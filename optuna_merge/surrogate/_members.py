"""The members of the mixture that models the truth: what each supposes of it.

A member says what the truth is built from (its side), and how large, wide and noisy the rest is:

    truth = c + r p(w) + s (g(w_i) - 1/2) + d(w) + [w_i = 0] z(w) + noise

`p` is the preview: of a score standardised, for its previews may have any unit; of a metric in
the truth's unit, where a slope r of 1 says that previews differ as truths do. For the metric of a
task i, `g` is the curve of its own weight: it saturates,
`g(x) = (1 - exp(-x T / k)) / (1 - exp(-T / k))`, k in units of uniform weights. That more own
weight is better is the mean of s, and no rule. `d` is a smooth process over the task weights. A
task without any weight is another regime, where nothing has taught it: `z` is an offset and a
process of its own, shared by all such points, so that neither the jump nor what happens on that
side of it sets the scale and the noise of the rest. The offset c and the slopes r and s are
normal, and integrated out as `d` and `z` are.

Where it isn't known whose metric it is (a score), there is no curve and no other regime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from optuna_merge.surrogate._kernels import own_curve, similarities

OFFSET_VARIANCE = 1.0
JUMP_VARIANCE = 0.5  # of z: its offset's, and its process's, whose length is 1


@dataclass(frozen=True)
class Side:
    """What the truth is built from.

    Attributes:
        odds: Prior odds against the other sides.
        slope: Mean and variance of r; zeros where the preview isn't used.
        curve: Mean and variance of s, likewise.
    """

    odds: float
    slope: tuple[float, float] = (0.0, 0.0)
    curve: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Grid:
    """Points at which what is not known is tried.

    Variances are in units of the standardised truth, lengths in units of `features`.

    Attributes:
        sides: What the truth may be built from.
        amplitudes: Variances of d.
        lengths: Length scales of d.
        noises: Variances of a truth's noise.
        saturations: Of the curve, k.
        least_alone: Smallest amplitude where d has to explain everything.
        most_beside: Largest amplitude beside a curve.
        most: Points that are kept, the best.
        load: Points that are kept times truths, at most: with many truths each point costs more,
            and leaves less open.
    """

    sides: tuple[Side, ...]
    amplitudes: tuple[float, ...] = (0.003, 0.03, 0.3, 3.0)
    lengths: tuple[float, ...] = (0.4, 0.8, 1.6, 3.2, 6.4)
    noises: tuple[float, ...] = (1e-6, 1e-4, 1e-2, 1e-1, 0.5)
    saturations: tuple[float, ...] = ()
    least_alone: float = 0.3
    most_beside: float = 0.3
    most: int = 24
    load: int = 2400

    def kept(self, n_truths: int) -> int:
        """How many points are kept."""
        return max(_LEAST_KEPT, min(self.most, self.load // max(n_truths, 1)))


_LEAST_KEPT = 3
_PREVIEW, _CURVE = (0.7, 0.5), (2.0, 1.0)
_METRIC_PREVIEW = (0.8, 0.2)
_HALF_PREVIEW, _HALF_CURVE = (0.5, 0.2), (1.0, 0.75)

OF_A_SCORE = Grid(sides=(Side(1.0), Side(3.0, slope=_PREVIEW)))
"""Of a quantity that is no task's own."""

OF_A_METRIC = Grid(
    sides=(
        Side(0.5),
        Side(1.0, slope=_METRIC_PREVIEW),
        Side(2.0, curve=_CURVE),
        Side(3.0, slope=_HALF_PREVIEW, curve=_HALF_CURVE),
    ),
    amplitudes=(0.01, 0.1, 1.0),
    lengths=(0.8, 2.4),
    noises=(1e-4, 3e-3, 1e-1),
    saturations=(0.1, 0.25, 0.5, 1.0),
    most=12,
    load=144,
)
"""Of a task's metric: chosen by `studies/truth_model.py`, each suite judged by what the others
choose."""


@dataclass(frozen=True)
class Points:
    """Task weights as members see them, `n` of them.

    Attributes:
        x: Features, `n x T`.
        p: Standardised means of the previews.
        own: The own task's weight, as a multiple of uniform weights; None: there is no such task.
    """

    x: Tensor
    p: Tensor
    own: Tensor | None = None

    def take(self, rows: Tensor) -> Points:
        """Some of them."""
        return Points(self.x[rows], self.p[rows], None if self.own is None else self.own[rows])

    def with_more(self, other: Points) -> Points:
        """These, then others."""
        own = None
        if self.own is not None and other.own is not None:
            own = torch.cat([self.own, other.own])
        return Points(torch.cat([self.x, other.x]), torch.cat([self.p, other.p]), own)

    @property
    def untaught(self) -> Tensor:
        """Places of those whose own task has no weight."""
        if self.own is None:
            return torch.zeros(0, dtype=torch.long)
        return torch.nonzero(self.own == 0.0)[:, 0]


@dataclass(frozen=True)
class Members:
    """Points of the grid, an entry each: tensors of length S.

    Attributes:
        use_preview: 1 where the preview is used, else 0.
        slope_mean, slope_variance: Of r.
        curve_mean, curve_variance: Of s.
        amplitude, length: Of d.
        noise: Variance.
        saturation: Of the curve.
        log_prior: Log probabilities.
        n_tasks: Number of tasks.
    """

    use_preview: Tensor
    slope_mean: Tensor
    slope_variance: Tensor
    curve_mean: Tensor
    curve_variance: Tensor
    amplitude: Tensor
    length: Tensor
    noise: Tensor
    saturation: Tensor
    log_prior: Tensor
    n_tasks: int

    @classmethod
    def of(cls, grid: Grid, n_tasks: int, *, with_preview: bool) -> Members:
        """All points of a grid.

        Args:
            grid: The grid.
            n_tasks: Number of tasks.
            with_preview: Whether there are previews.
        """
        parts = []
        for side in grid.sides:
            uses = side.slope != (0.0, 0.0)
            if not uses or with_preview:
                parts.append(_part(side, grid, uses))
        *columns, log_prior = torch.cat(parts).unbind(1)
        named = dict(zip((f.name for f in fields(cls)), columns))
        log_prior = log_prior - torch.logsumexp(log_prior, 0)
        return cls(**named, log_prior=log_prior, n_tasks=n_tasks)

    def take(self, index: Tensor) -> Members:
        """Some of them."""
        names = [f.name for f in fields(self) if f.name != "n_tasks"]
        taken: dict[str, Tensor] = {name: getattr(self, name)[index] for name in names}
        return Members(**taken, n_tasks=self.n_tasks)

    def basis(self, points: Points) -> Tensor:
        """What the offset and the slopes multiply, times their deviations: `S x n x 2 or 3`."""
        shape = (len(self.noise), len(points.p))
        columns = [
            torch.full(shape, math.sqrt(OFFSET_VARIANCE), dtype=torch.float64),
            self.slope_variance.sqrt()[:, None] * points.p,
        ]
        if points.own is not None:
            columns.append(self.curve_variance.sqrt()[:, None] * self.curve(points))
        return torch.stack(columns, -1)

    def curve(self, points: Points) -> Tensor:
        """Of the own weight, between -1/2 without any and 1/2 alone: `S x n`."""
        assert points.own is not None
        kinds, which = torch.unique(self.saturation, return_inverse=True)  # few: each once
        return own_curve(points.own, kinds[:, None], self.n_tasks)[which]

    def mean(self, points: Points) -> Tensor:
        """Prior means, `S x n`."""
        mean = self.slope_mean[:, None] * points.p
        if points.own is not None:
            mean = mean + self.curve_mean[:, None] * self.curve(points)
        return mean

    def variance(self, points: Points) -> Tensor:
        """Prior variances without noise, `S x n`."""
        variance = self.amplitude[:, None] + self.basis(points).square().sum(-1)
        variance[:, points.untaught] += 2.0 * JUMP_VARIANCE
        return variance

    def kernel(self, a: Points, b: Points) -> Tensor:
        """Prior covariances, `S x a x b`."""
        lengths, which = torch.unique(self.length, return_inverse=True)  # few: each once
        shapes = torch.stack([similarities(a.x / length, b.x / length) for length in lengths])
        kernel = shapes[which].mul_(self.amplitude[:, None, None])
        kernel.baddbmm_(self.basis(a), self.basis(b).transpose(1, 2))
        rows, columns = a.untaught, b.untaught
        if len(rows) and len(columns):
            jump = JUMP_VARIANCE * (1.0 + similarities(a.x[rows], b.x[columns]))
            kernel[:, rows[:, None], columns] += jump
        return kernel


def _part(side: Side, grid: Grid, uses: bool) -> Tensor:
    """The points of the grid on a side, a row each."""
    curved = side.curve != (0.0, 0.0)
    amplitudes = [
        a
        for a in grid.amplitudes
        if (uses or curved or a >= grid.least_alone) and (not curved or a <= grid.most_beside)
    ]
    saturations = grid.saturations if curved else (1.0,)
    axes = (amplitudes, grid.lengths, grid.noises, saturations)
    points = torch.cartesian_prod(*(torch.tensor(a, dtype=torch.float64) for a in axes))
    log_prior = -0.5 * (points[:, 1] / 2.0).log().square()
    log_prior -= 0.5 * ((points[:, 2] / 1e-4).log() / 4.0).square()
    log_prior += math.log(side.odds) - torch.logsumexp(log_prior, 0)
    same = torch.tensor([float(uses), *side.slope, *side.curve], dtype=torch.float64)
    return torch.cat([same.expand(len(points), -1), points, log_prior[:, None]], 1)
