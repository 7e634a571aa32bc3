"""Numbers of the page's scripts."""

from __future__ import annotations

_DIGITS = 6


def short(value: float | None) -> float | None:
    """To six significant digits, which is more than is drawn."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
