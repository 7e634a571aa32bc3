from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian
from optuna_merge.previews import _placement
from optuna_merge.previews._placement import MEMORY_SHARE, fits, free_bytes, place_posteriors

GIB = 2**30
META = torch.device("meta")


@pytest.mark.parametrize(
    "needed, free, expected",
    [
        (0, 0, True),
        (1, 0, False),  # a device of which nothing is known
        (10 * GIB, 80 * GIB, True),
        (40 * GIB, 80 * GIB, True),
        (40 * GIB + 1, 80 * GIB, False),
        (79 * GIB, 80 * GIB, False),
        (24 * GIB, 8 * GIB, False),
    ],
)
def test_posteriors_may_take_half_of_the_free_memory(
    needed: int, free: int, expected: bool
) -> None:
    assert MEMORY_SHARE == 0.5
    assert fits(needed, free) is expected


def posteriors() -> dict[str, Any]:
    mean, precision = {"w": torch.zeros(4, 8)}, {"w": torch.ones(4, 8, dtype=torch.float64)}
    return {name: DiagonalGaussian(mean, precision) for name in ("red", "blue")}


def test_all_of_them_are_moved_or_none(caplog: pytest.LogCaptureFixture) -> None:
    needed = 2 * 32 * (4 + 8)
    given = posteriors()
    moved = place_posteriors(given, META, free=2 * needed)
    assert list(moved) == ["red", "blue"]
    for posterior in moved.values():
        assert isinstance(posterior, DiagonalGaussian)
        assert posterior.mean["w"].device == posterior.precision["w"].device == META
        assert posterior.precision["w"].dtype == torch.float64
    assert given["red"].mean["w"].device.type == "cpu"
    with caplog.at_level(logging.INFO):
        kept = place_posteriors(given, META, free=2 * needed - 1)
    assert kept == given
    assert "stay on the host: meta has 0.0 GiB free, of which they may take 50 %" in caplog.text


def test_nothing_moves_on_the_host_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placement, "free_bytes", None)
    given = posteriors()
    assert place_posteriors(given, torch.device("cpu")) == given


def test_a_device_without_a_measure_of_memory_gets_nothing() -> None:
    assert free_bytes(META) == 0
    given = {"red": IsotropicGaussian({"w": torch.zeros(3)})}
    assert place_posteriors(given, META) == given
