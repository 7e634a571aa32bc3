from __future__ import annotations

from dataclasses import replace

import pytest

from optuna_merge.calibration import GainEstimate
from optuna_merge.reports._verdict import headline

SURE = GainEstimate(0.05, 0.04, 0.01, 0.99, 5)
DOUBTFUL = replace(SURE, standard_error=0.05, chance=0.79)


@pytest.mark.parametrize(
    ("seen", "on_test", "estimate", "flat", "told"),
    [
        (None, None, None, False, ""),
        (0.05, None, SURE, False, "Gain over uniform weights: +0.0400 ± 0.0100."),
        (
            0.05, -0.01, SURE, False,
            "Gain over uniform weights: +0.0400 ± 0.0100; none on test data.",
        ),
        (
            0.05, 0.01, DOUBTFUL, False,
            "No evidence of a gain over uniform weights yet: +0.0400 ± 0.0500.",
        ),
        (
            0.05, None, DOUBTFUL, True,
            "Flat: no gain above the noise of a finetune is expected (+0.0400 ± 0.0500).",
        ),
        (0.05, None, None, False, "Gain over uniform weights: +0.0500, its error is not known."),
        (0.0, None, None, True, "Flat: use uniform weights."),
        (-0.1, None, DOUBTFUL, False, "No gain: use uniform weights."),
    ],
)  # fmt: skip
def test_what_is_said_first(
    seen: float | None, on_test: float | None, estimate: GainEstimate | None, flat: bool, told: str
) -> None:
    assert headline(seen, on_test, estimate, flat=flat) == told
