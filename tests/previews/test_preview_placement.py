from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from helpers import toy_model, toy_tasks

from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian
from optuna_merge.previews import Previewer, PreviewSettings, _placement, _previewer
from optuna_merge.previews._placement import fits, free_bytes, place_posteriors

GIB = 2**30
META = torch.device("meta")


@pytest.mark.parametrize(
    "needed, free, share, expected",
    [
        (1, 0, 0.5, False),  # a device of which nothing is known
        (10 * GIB, 80 * GIB, 0.5, True),
        (40 * GIB, 80 * GIB, 0.5, True),
        (40 * GIB + 1, 80 * GIB, 0.5, False),
        (40 * GIB, 80 * GIB, 0.25, False),
        (24 * GIB, 8 * GIB, 1.0, False),
        (8 * GIB, 8 * GIB, 1.0, True),
        (1, 80 * GIB, 0.0, False),
    ],
)
def test_posteriors_may_take_a_share_of_the_free_memory(
    needed: int, free: int, share: float, expected: bool
) -> None:
    assert fits(needed, free, share) is expected


def posteriors() -> dict[str, Any]:
    mean, precision = {"w": torch.zeros(4, 8)}, {"w": torch.ones(4, 8, dtype=torch.float64)}
    return {name: DiagonalGaussian(mean, precision) for name in ("red", "blue")}


def test_all_of_them_are_moved_or_none(caplog: pytest.LogCaptureFixture) -> None:
    needed = 2 * 32 * (4 + 8)
    given = posteriors()
    moved = place_posteriors(given, META, 0.5, free=2 * needed)
    assert list(moved) == ["red", "blue"]
    for posterior in moved.values():
        assert isinstance(posterior, DiagonalGaussian)
        assert posterior.mean["w"].device == posterior.precision["w"].device == META
        assert posterior.precision["w"].dtype == torch.float64
    assert given["red"].mean["w"].device.type == "cpu"
    with caplog.at_level(logging.INFO):
        kept = place_posteriors(given, META, 0.5, free=2 * needed - 1)
    assert kept == given
    assert "stay on the host: meta has 0.0 GiB free, of which they may take 50 %" in caplog.text


def test_nothing_moves_on_the_host_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placement, "free_bytes", None)
    given = posteriors()
    assert place_posteriors(given, torch.device("cpu"), 0.5) == given


def test_a_device_without_a_measure_of_memory_gets_nothing() -> None:
    assert free_bytes(META) == 0
    given = {"red": IsotropicGaussian({"w": torch.zeros(3)})}
    assert place_posteriors(given, META, 1.0) == given


def test_posteriors_make_room_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = []

    def place(given: Any, device: Any, share: float, *, beside: int) -> Any:
        assert beside == 0
        placed.append((str(device), share))
        return dict(given)

    monkeypatch.setattr(_previewer, "place_posteriors", place)
    tasks = toy_tasks()
    model = toy_model(tasks)
    state = model.state(model.shared_names())
    given = {task.name: IsotropicGaussian(state) for task in tasks}
    heads = {task.name: model.state(model.own_names(task.name)) for task in tasks}
    settings = PreviewSettings(memory_share=0.2)
    previewer = Previewer(model, tasks, given, heads, settings=settings)
    assert placed == []  # not before they are used: memory may be short now, and free then
    weights = {"red": 0.5, "blue": 0.5}
    first = previewer(weights).evaluations
    assert previewer(weights).evaluations == first
    assert placed == [("cpu", 0.2)]
    previewer.release()
    assert previewer(weights).evaluations == first
    assert placed == [("cpu", 0.2)] * 2
