from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optuna_merge.surrogate import startup_design
from optuna_merge.surrogate._kernels import features
from optuna_merge.surrogate._members import OF_A_METRIC, OF_A_SCORE, Grid, Members, Points


def points(n_tasks: int, n: int, own: int | None = 0) -> Points:
    weights = startup_design(n_tasks, n, seed=0)
    share = None if own is None else torch.as_tensor(weights[:, own] * n_tasks)
    return Points(features(weights), torch.as_tensor(np.sin(9 * weights[:, -1])), share)


@pytest.mark.parametrize(("grid", "own"), [(OF_A_SCORE, None), (OF_A_METRIC, 0)])
def test_prior_odds_are_those_of_the_sides(grid: Grid, own: int | None) -> None:
    members = Members.of(grid, 3, with_preview=True)
    shares = [
        members.log_prior[
            (members.slope_mean == side.slope[0]) & (members.curve_mean == side.curve[0])
        ].exp()
        for side in grid.sides
    ]
    total = sum(side.odds for side in grid.sides)
    for share, side in zip(shares, grid.sides):
        assert share.sum().item() == pytest.approx(side.odds / total)
    alone = Members.of(grid, 3, with_preview=False)
    assert not alone.use_preview.any()
    assert alone.log_prior.exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("n_tasks", [1, 2, 4, 16])
@pytest.mark.parametrize("own", [0, None])
def test_prior_covariances_are_positive_and_agree_with_variances(
    n_tasks: int, own: int | None
) -> None:
    at = points(n_tasks, 30, own)
    members = Members.of(OF_A_METRIC if own == 0 else OF_A_SCORE, n_tasks, with_preview=True)
    kernel = members.kernel(at, at)
    torch.testing.assert_close(kernel, kernel.transpose(1, 2))
    torch.testing.assert_close(kernel.diagonal(dim1=1, dim2=2), members.variance(at))
    assert (torch.linalg.eigvalsh(kernel) > -1e-9).all()
    rows = torch.tensor([3, 0])
    some = at.take(rows[rows < len(at.p)]).with_more(at)
    torch.testing.assert_close(members.kernel(some, at)[:, -len(at.p) :], kernel)


def test_the_curve_rises_and_saturates_the_sooner_the_smaller_its_scale() -> None:
    share = torch.linspace(0, 4, 41, dtype=torch.float64)  # T = 4
    at = Points(torch.zeros(41, 4, dtype=torch.float64), torch.zeros(41).double(), share)
    members = Members.of(OF_A_METRIC, 4, with_preview=False)
    curve = members.curve(at)
    torch.testing.assert_close(curve[:, 0], torch.full_like(curve[:, 0], -0.5))
    torch.testing.assert_close(curve[:, -1], torch.full_like(curve[:, 0], 0.5))
    assert (curve.diff(dim=1) >= 0).all()
    uniform = {k: curve[members.saturation == k][0, 10].item() + 0.5 for k in (0.1, 1.0)}
    assert uniform[0.1] > 0.999
    assert uniform[1.0] == pytest.approx((1 - math.exp(-1)) / (1 - math.exp(-4)))


def test_points_without_own_weight_share_a_jump_that_others_do_not() -> None:
    at = points(3, 12)
    members = Members.of(OF_A_METRIC, 3, with_preview=False)
    without = Points(at.x, at.p, torch.where(at.own == 0.0, 1e-12, at.own))  # type: ignore[arg-type]
    difference = members.kernel(at, at) - members.kernel(without, without)
    assert at.own is not None
    both = (at.own == 0.0)[:, None] & (at.own == 0.0)
    assert both.any()
    assert (difference[:, both] > 0.49).all()
    assert (difference[:, ~both].abs() < 1e-9).all()
