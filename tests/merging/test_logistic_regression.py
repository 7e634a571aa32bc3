"""Two logistic regressions: the richer the family, the nearer the merge is to the joint fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian
from torch.nn.functional import softplus

from optuna_merge.merging import merge
from optuna_merge.posteriors import DiagonalGaussian, FullGaussian, IsotropicGaussian, Posterior

DELTA = 1e-2
DIMENSIONS = 6
EXAMPLES = 200
SEEDS = 10
WEIGHTINGS = [(a / 10, 1 - a / 10) for a in range(1, 10, 2)]


def make_task() -> tuple[Tensor, Tensor]:
    """Correlated inputs of unequal scales, and labels of a task's own true weights."""
    mix = torch.randn(DIMENSIONS, DIMENSIONS, dtype=torch.float64)
    x = torch.randn(EXAMPLES, DIMENSIONS, dtype=torch.float64) @ mix / DIMENSIONS**0.5
    logits = x @ torch.randn(DIMENSIONS, dtype=torch.float64)
    return x, torch.bernoulli(torch.sigmoid(logits)) * 2 - 1


def objective(w: Tensor, tasks: list[tuple[Tensor, Tensor]], weights: tuple[float, ...]) -> Tensor:
    losses = (a * softplus(-y * (x @ w)).mean() for a, (x, y) in zip(weights, tasks))
    return sum(losses, DELTA / 2 * w @ w)


def minimum(tasks: list[tuple[Tensor, Tensor]], weights: tuple[float, ...]) -> Tensor:
    w = torch.zeros(DIMENSIONS, dtype=torch.float64)
    while (slope := grad(objective)(w, tasks, weights)).norm() > 1e-9:
        w = w - torch.linalg.solve(hessian(objective)(w, tasks, weights), slope)
    return w


def test_the_objective_gap_falls_from_isotropic_to_diagonal_to_full(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gaps: dict[str, list[float]] = {"isotropic": [], "diagonal": [], "full": []}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        tasks = [make_task() for _ in range(2)]
        families: dict[str, list[Posterior]] = {name: [] for name in gaps}
        for task in tasks:
            mean = minimum([task], (1.0,))
            curvature = hessian(objective)(mean, [task], (1.0,))
            families["isotropic"].append(IsotropicGaussian({"w": mean}))
            families["diagonal"].append(DiagonalGaussian({"w": mean}, {"w": curvature.diagonal()}))
            families["full"].append(FullGaussian({"w": mean}, curvature))
        best = [objective(minimum(tasks, w), tasks, w) for w in WEIGHTINGS]
        for name, posteriors in families.items():
            for weights, lowest in zip(WEIGHTINGS, best):
                merged = merge(posteriors, weights)
                gaps[name].append(float(objective(merged["w"], tasks, weights) - lowest))
    assert min(min(each) for each in gaps.values()) > -1e-12

    mean = {name: sum(each) / len(each) for name, each in gaps.items()}
    with capsys.disabled():
        print()
        for name in gaps:
            print(f"logistic regression, mean objective gap, {name}: {mean[name]:.5f}")
        for worse, better in (("isotropic", "diagonal"), ("diagonal", "full")):
            share = sum(b > a for a, b in zip(gaps[worse], gaps[better])) / len(gaps[worse])
            print(f"share of cells where {better} is not better than {worse}: {share:.2f}")
    assert mean["isotropic"] > mean["diagonal"] > mean["full"]
