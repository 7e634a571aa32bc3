from __future__ import annotations

import pytest
from replay_helpers import SharesBench, searched

from optuna_merge.reports import format_replay
from optuna_merge.surrogate import replay


@pytest.mark.parametrize("losses", [False, True])
def test_the_text_says_what_was_found(losses: bool) -> None:
    study = searched(SharesBench(losses=losses), 12, 2)
    found = replay(study, "general")
    assert found.best is not None
    text = format_replay(found)
    assert f"Best share of general: {found.best.share:.2f}" in text
    assert ("at most" if losses else "at least") + f" {found.bound:.4f}" in text
    assert ("(lower is better)" in text) == losses
    assert "general alone" in text and "uniform" in text


def test_without_a_share_that_keeps_it_the_text_says_so() -> None:
    study = searched(SharesBench("mean", keep=None), 8, 0)
    found = replay(study, "general", 1.0)
    told = format_replay(found)
    assert ("No share of general is expected to keep it" in told) == (found.best is None)
    assert "does not keep it, uniform" in told
