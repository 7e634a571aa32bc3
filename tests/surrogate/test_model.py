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


def metric(w: np.ndarray, own: int, jump: float = 0.5) -> np.ndarray:
    """Saturates in the task's own weight, falls with the next task's, jumps at zero."""
    saturated = 1 - np.exp(-3.0 * w.shape[1] * w[:, own])
    return saturated - 0.05 * w[:, (own + 1) % w.shape[1]] - jump * (w[:, own] == 0)


def observed(
    n_tasks: int, n_truths: int, *, previews: str, n_previews: int = 60, own: int = 0
) -> Series:
    """The truths of uniform weights, of each task alone, and of random interior weights."""
    rng = np.random.default_rng(n_tasks)
    drawn = rng.dirichlet(np.ones(n_tasks), max(n_previews, n_truths))
    w = np.concatenate([np.full((1, n_tasks), 1 / n_tasks), np.eye(n_tasks), drawn])
    truths = metric(w, own)
    if previews == "useless":
        seen = np.sin(5 * w @ rng.normal(size=n_tasks) * n_tasks)
    else:
        seen = 0.8 * truths + 0.1 * w[:, (own + 1) % n_tasks]
    seen[1 : n_tasks + 1] = truths[1 : n_tasks + 1]  # merges there are the tasks' own finetunes
    n, m = n_previews * (previews != "none"), n_tasks + 1 + n_truths
    return Series(w[:n], seen[:n], w[:m], truths[:m], own=own)


def interior_error(model: TruthModel, n_tasks: int, own: int = 0) -> float:
    w = np.random.default_rng(5).dirichlet(np.full(n_tasks, 2.0), 300)
    return float(np.sqrt(np.mean((model.predict(w)[0] - metric(w, own)) ** 2)))


@pytest.mark.parametrize("n_tasks", [3, 4])
def test_the_curve_of_the_own_weight_comes_from_the_baselines(n_tasks: int) -> None:
    of = observed(n_tasks, 0, previews="none")
    errors = [interior_error(TruthModel.fit(replace(of, own=own)), n_tasks) for own in (0, None)]
    assert errors[0] < 0.12
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("n_tasks", [3, 8, 16])
@pytest.mark.parametrize("n_truths", [4, 16])
def test_useless_previews_of_a_metric_cost_little(n_tasks: int, n_truths: int) -> None:
    misled, alone = (
        interior_error(TruthModel.fit(observed(n_tasks, n_truths, previews=p)), n_tasks)
        for p in ("useless", "none")
    )
    assert misled < 1.15 * alone + 0.005


@pytest.mark.parametrize("n_tasks", [4, 16])
def test_previews_know_what_own_weight_does_not(n_tasks: int) -> None:
    def transfer(w: np.ndarray) -> np.ndarray:
        return 0.3 * np.cos(5 * np.sqrt(n_tasks) * w[:, -1])

    w = np.random.default_rng(5).dirichlet(np.full(n_tasks, 2.0), 300)
    errors = []
    for previews in ("good", "none"):
        of = observed(n_tasks, 8, previews=previews)
        of = replace(
            of,
            previews=of.previews + 0.8 * transfer(of.preview_weights),
            truths=of.truths + transfer(of.truth_weights),
        )
        error = TruthModel.fit(of).predict(w)[0] - metric(w, 0) - transfer(w)
        errors.append(np.sqrt(np.mean(error**2)))
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("n_tasks", [3, 4, 8])
def test_few_previews_tell_the_own_weights_part(n_tasks: int) -> None:
    rng = np.random.default_rng(n_tasks)
    w = np.concatenate([np.eye(n_tasks), rng.dirichlet(np.ones(n_tasks), 12)])
    inside = np.random.default_rng(5).dirichlet(np.full(n_tasks, 2.0), 300)

    def preview(weights: np.ndarray) -> np.ndarray:
        return np.asarray(metric(weights, 0) + 0.05 * weights[:, -1])

    def error(own: int | None) -> float:
        process = PreviewProcess(w, preview(w), None, w[:0], own)
        mean = process.location + process.scale * process.mean(inside).numpy()
        return float(np.sqrt(np.mean((mean - preview(inside)) ** 2)))

    assert error(0) < 0.6 * error(None)


def test_previews_need_not_rise_with_own_weight() -> None:
    w = np.random.default_rng(0).dirichlet(np.ones(4), 60)
    process = PreviewProcess(w, other(w), None, w[:0], 0)
    mean = process.location + process.scale * process.mean(w).numpy()
    assert np.sqrt(np.mean((mean - other(w)) ** 2)) < 0.1 * other(w).std()


def test_where_previews_were_made_does_not_say_how_they_are_read() -> None:
    of = observed(4, 0, previews="good")
    near = np.full((60, 4), 0.25) + 0.01 * np.random.default_rng(1).normal(size=(60, 4))
    near /= near.sum(axis=1, keepdims=True)
    seen = 0.8 * metric(near, 0) + 0.1 * near[:, 1]
    weights, previews = (
        np.concatenate(x) for x in ((of.preview_weights, near), (of.previews, seen))
    )
    slopes = []
    for one in (of, replace(of, preview_weights=weights, previews=previews)):
        model = TruthModel.fit(one)
        w = np.array([[0.5, 0.3, 0.1, 0.1], [0.2, 0.1, 0.3, 0.4]])
        slopes.append(float(np.subtract(*model.predict(w)[0])))
    assert slopes[1] == pytest.approx(slopes[0], rel=0.1)


def test_a_jump_at_weight_zero_spoils_nothing_inside() -> None:
    of = observed(3, 8, previews="none")
    w = np.random.default_rng(7).dirichlet(np.ones(3), 6)
    w[:, 0] = 0.0
    faces = w / w.sum(axis=1, keepdims=True)
    errors, spreads = [], []
    for jump in (0.0, 2.0):
        truths = np.concatenate([of.truths, metric(faces, 0, jump)])
        truths[2:4] = metric(of.truth_weights[2:4], 0, jump)
        weights = np.concatenate([of.truth_weights, faces])
        model = TruthModel.fit(replace(of, truth_weights=weights, truths=truths))
        errors.append(interior_error(model, 3))
        spreads.append(model.predict(GRID)[1].mean())
        np.testing.assert_allclose(model.predict(faces)[0], metric(faces, 0, jump), atol=0.1)
    assert errors[1] < errors[0] + 0.03
    assert spreads[1] < 3.0 * spreads[0]


def test_more_own_weight_need_not_be_better() -> None:
    of = observed(3, 20, previews="none")
    fallen = replace(of, truths=1.0 - 0.5 * of.truth_weights[:, 0])
    w = np.array([[0.2, 0.4, 0.4], [0.7, 0.15, 0.15]])
    low, high = TruthModel.fit(fallen).predict(w)[0]
    assert low - high == pytest.approx(0.25, abs=0.05)


def test_truths_that_previews_equal_by_construction_do_not_speak_for_them() -> None:
    w = np.concatenate([np.full((1, 3), 1 / 3), np.eye(3), GRID[:30]])
    previews = np.concatenate([truth(w[:4]), other(w[4:])])
    few, many = (Series(w, previews, w[:n], truth(w[:n])) for n in (4, 12))
    at = np.arange(12) < 4
    assert not few.equal_by_construction.any()
    assert replace(few, own=0).equal_by_construction.tolist() == [False, True, True, True]
    anchored = TruthModel.fit(replace(few, anchored=at[:4]))
    assert anchored.trust == pytest.approx(0.75, abs=0.02)  # nothing but the prior odds
    taken = TruthModel.fit(replace(few, anchored=np.zeros(4, dtype=bool)))
    assert taken.trust > anchored.trust + 0.1
    assert TruthModel.fit(replace(many, anchored=at)).trust < 0.75


def test_repeated_finetunes_tell_the_mean() -> None:
    of = observed(3, 6, previews="good")
    noise = 0.05 * np.random.default_rng(2).standard_normal(8)
    weights = np.concatenate([of.truth_weights, np.full((8, 3), 1 / 3)])
    truths = np.concatenate([of.truths, metric(np.full((8, 3), 1 / 3), 0) + noise])
    once = TruthModel.fit(of)
    model = TruthModel.fit(replace(of, truth_weights=weights, truths=truths))
    uniform = np.full((1, 3), 1 / 3)
    mean, std = model.predict(uniform)
    assert abs(mean[0] - metric(uniform, 0)[0]) < 0.05
    assert std[0] < 0.05
    assert np.isfinite(once.predict(uniform)[1]).all()


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
