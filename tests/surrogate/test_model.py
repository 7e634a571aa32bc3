from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from optuna_merge.surrogate import ScoreModel, TruthModel, _previews, _truth
from optuna_merge.surrogate._previews import PreviewProcess
from optuna_merge.trials import Series


def truth(w: np.ndarray) -> np.ndarray:
    return -np.square(w - np.array([0.6, 0.3, 0.1])).sum(axis=1)


def other(w: np.ndarray) -> np.ndarray:
    return np.sin(9 * w[:, 0]) * np.cos(7 * w[:, 1])


def series(
    n: int, m: int, *, bad: bool = False, sign: float = 1.0, scale: float = 1.0, seed: int = 0
) -> Series:
    w = np.random.default_rng(seed).dirichlet(np.ones(3), n)
    preview = other(w) if bad else 0.5 * truth(w) - 3.0
    return Series(w, sign * scale * preview, w[:m], sign * scale * truth(w[:m]), sign=sign)


GRID = np.random.default_rng(9).dirichlet(np.ones(3), 300)


def test_few_truths_suffice_where_previews_are_good() -> None:
    model = TruthModel.fit(series(40, 4))
    mean, std = model.predict(GRID)
    assert mean.shape == std.shape == (300,)
    assert np.corrcoef(mean, truth(GRID))[0, 1] > 0.99
    assert model.trust > 0.7
    assert (np.abs(mean - truth(GRID)) < 4 * std).mean() > 0.95


def test_bad_previews_lose_their_say() -> None:
    misled, alone = series(60, 15, bad=True), series(60, 15)
    empty = np.empty((0, 3))
    alone = Series(empty, np.empty(0), alone.truth_weights, alone.truths)
    error = [
        np.sqrt(np.mean((TruthModel.fit(s).predict(GRID)[0] - truth(GRID)) ** 2))
        for s in (misled, alone)
    ]
    assert TruthModel.fit(misled).trust < 0.75
    assert TruthModel.fit(alone).trust == 0.0
    assert error[0] < 1.5 * error[1] + 0.01


def test_siding() -> None:
    model = TruthModel.fit(series(60, 15, bad=True))
    assert 0.0 < model.trust < 1.0
    sides = [model.siding(with_preview=use) for use in (False, True)]
    assert [s.trust for s in sides] == pytest.approx([0.0, 1.0])
    means = [s.predict(GRID)[0] for s in sides]
    mixed = (1 - model.trust) * means[0] + model.trust * means[1]
    np.testing.assert_allclose(model.predict(GRID)[0], mixed, atol=1e-9)
    alone = TruthModel.fit(Series(np.empty((0, 3)), np.empty(0), GRID[:5], truth(GRID[:5])))
    assert alone.siding(with_preview=True) is alone


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_directions_and_units_change_nothing(scale: float) -> None:
    mean, std = TruthModel.fit(series(20, 6)).predict(GRID)
    flipped, flipped_std = TruthModel.fit(series(20, 6, sign=-1.0, scale=scale)).predict(GRID)
    np.testing.assert_allclose(-flipped / scale, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flipped_std / scale, std, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(0, 1), (0, 8), (1, 0), (2, 0), (1, 1), (5, 0), (3, 2)])
def test_small_histories(n: int, m: int) -> None:
    w = np.random.default_rng(1).dirichlet(np.ones(3), max(n, m))
    model = TruthModel.fit(Series(w[:n], truth(w[:n]), w[:m], truth(w[:m])))
    mean, std = model.predict(GRID)
    assert np.isfinite(mean).all()
    assert (std > 0).all()
    if m:
        near = model.predict(w[:m])
        assert np.abs(near[0] - truth(w[:m])).max() < 0.2
        assert near[1].mean() < std.mean()


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_constant_and_repeated_values(constant: float) -> None:
    w = np.repeat(np.eye(3), 4, axis=0)
    mean, std = TruthModel.fit(Series(w, np.full(12, constant), w, np.full(12, constant))).predict(
        GRID
    )
    np.testing.assert_allclose(mean, constant, atol=1e-6)
    assert np.isfinite(std).all()


def test_a_collapsed_preview_does_not_set_the_scale() -> None:
    good = series(40, 6)
    previews = good.previews.copy()
    previews[20] = -1e9
    mean, _ = TruthModel.fit(
        Series(good.preview_weights, previews, good.truth_weights, good.truths)
    ).predict(GRID)
    assert np.corrcoef(mean, truth(GRID))[0, 1] > 0.9


def test_pending_points_shrink_the_variance_only() -> None:
    s = series(20, 5)
    pending = GRID[:2]
    before = TruthModel.fit(s).predict(GRID)
    after = TruthModel.fit(
        Series(s.preview_weights, s.previews, s.truth_weights, s.truths, pending=pending)
    ).predict(GRID)
    np.testing.assert_allclose(before[0], after[0], atol=1e-4)
    assert (after[1] <= before[1] + 1e-9).all()
    assert (after[1][:2] < 0.9 * before[1][:2]).all()


def test_known_noise_is_used() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    noise = np.full(30, 1e-6)
    values = truth(w)
    values[3] += 0.5
    told = noise.copy()
    told[3] = 1.0
    errors = []
    for n in (noise, told):
        process = PreviewProcess(w, values, n, w[:0])
        mean = process.location + process.scale * process.predict(w[3:4])[0].item()
        errors.append(abs(mean - truth(w[3:4])[0]))
    assert errors[1] < 0.1 * errors[0]


def test_deterministic_with_and_without_the_cache() -> None:
    first = TruthModel.fit(series(60, 6)).predict(GRID)
    _previews._fit_previews.cache_clear()
    second = TruthModel.fit(series(60, 6)).predict(GRID)
    np.testing.assert_array_equal(first, second)


def test_fit_size_grows_with_the_data_in_few_steps() -> None:
    sizes = [_previews._fit_size(n) for n in range(1, 2000)]
    assert sizes[:40] == list(range(1, 41))
    assert all(0.88 * n <= size <= n for n, size in enumerate(sizes, start=1))
    assert len(set(sizes[40:])) < 60


def test_no_global_state_of_torch_changes() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    dtype = torch.get_default_dtype()
    models = []
    workers = [
        threading.Thread(target=lambda: models.append(TruthModel.fit(series(30, 5))))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(models) == 4
    assert torch.equal(state, torch.random.get_rng_state())
    assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("m", [0, 5, 60])
def test_means_alone(m: int) -> None:
    model = TruthModel.fit(series(80, m))
    np.testing.assert_allclose(model.predict_mean(GRID), model.predict(GRID)[0], atol=1e-9)


def test_some_truths_choose_the_members_that_all_would(monkeypatch: pytest.MonkeyPatch) -> None:
    many = series(150, 90)
    noise = 0.05 * np.random.default_rng(1).standard_normal(90)
    many = replace(many, truths=many.truths + noise)
    screened = TruthModel.fit(many)
    monkeypatch.setattr(_truth, "_SCREENED", 90)
    of_all = TruthModel.fit(many)
    assert len(screened.log_weights) <= 24
    unit = truth(GRID).std()
    for found, wanted in zip(screened.predict(GRID), of_all.predict(GRID)):
        np.testing.assert_allclose(found, wanted, atol=0.02 * unit)


def test_score_model() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    metrics = [1 - np.square(1 - w[:, i]) for i in range(3)]
    models = [TruthModel.fit(Series(w, m - 0.2, w[:8], m[:8])) for m in metrics]
    model = ScoreModel(models, lambda m: m.min(axis=-1))
    mean, std = model.predict(GRID)
    expected = (1 - np.square(1 - GRID)).min(axis=1)
    assert np.abs(mean - expected).mean() < 0.03
    assert (std >= 0).all()
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3\).*got \(\)"):
        ScoreModel(models, lambda m: m.mean()).predict(GRID)
