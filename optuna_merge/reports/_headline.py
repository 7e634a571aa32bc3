"""The verdict in one line: what is gained over uniform weights, with its error."""

from __future__ import annotations

from optuna_merge.calibration import GainEstimate


def headline(
    seen: float | None, on_test: float | None, estimate: GainEstimate | None, *, flat: bool
) -> str:
    """What a reader is told first, by the gains seen and expected; empty where there are none."""
    if seen is None:
        return ""
    if seen <= 0:
        return f"{'Flat' if flat else 'No gain'}: use uniform weights."
    gain = f"{seen:+.4f}, its error is not known"
    if estimate is not None:
        gain = f"{estimate.expected:+.4f} ± {estimate.standard_error:.4f}"
    test = "; none on test data" if on_test is not None and on_test <= 0 else ""
    if flat:
        return f"Flat: no gain above the noise of a finetune is expected ({gain}{test})."
    if estimate is not None and not estimate.is_evident:
        return f"No evidence of a gain over uniform weights yet: {gain}{test}."
    return f"Gain over uniform weights: {gain}{test}."
