"""Optuna's own sampler suites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from optuna_merge.samplers import PreviewSampler


class TestPreviewSampler(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PreviewSampler(["a", "b", "c"], n_startup_trials=2)


class TestPreviewSamplerOnItsOwnParameters(BasicSamplerTestCase, RelativeSamplerTestCase):
    """Tasks whose parameters collide with nothing in the suite, and a single task."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PreviewSampler(["only"], seed=0)
