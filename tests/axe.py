"""Rules of accessibility: axe's, over a page in a browser. The package ships axe's script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
from browser import REQUIRED

WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
"""Tags of the rules of levels A and AA."""
ALL = (*WCAG, "best-practice")


def broken_rules(page: Any, tags: Sequence[str] = ALL) -> list[str]:
    """The rules that a page breaks, and where.

    Without axe the test is skipped; where Chromium is required it fails instead.
    """
    try:
        from axe_playwright_python.base import AXE_SCRIPT
    except ImportError:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, but axe was not found: pip install axe-playwright-python")
        pytest.skip("axe was not found (pip install axe-playwright-python)")
    page.evaluate(AXE_SCRIPT)
    options = {"runOnly": {"type": "tag", "values": list(tags)}, "resultTypes": ["violations"]}
    found = page.evaluate("options => axe.run(document, options)", options)
    assert len(found["passes"]) + len(found["violations"]) > 5, "the rules were run"
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
