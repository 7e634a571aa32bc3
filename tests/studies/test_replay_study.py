"""How the study of replay judges an answer, where the truth is a known function."""

from __future__ import annotations

import numpy as np
import pytest
from replay_helpers import ANSWER, SharesBench, general, own, searched

from studies.replay import GRID, KEEP, judged


def test_an_answer_is_judged_by_the_truths_between_the_grid() -> None:
    metrics = np.array([[own(share), general(share)] for share in GRID])
    truths = np.stack([metrics - 0.001, metrics + 0.001])
    found = judged(searched(SharesBench(), 12, 2), "own", "general", truths)
    assert found["bound"] == pytest.approx(KEEP * general(1.0), abs=0.002)
    # Straight lines between the grid's points lie below these concave functions.
    assert found["best"] == pytest.approx(own(ANSWER), abs=0.03)
    assert found["found"]["share"] == pytest.approx(ANSWER, abs=0.1)
    assert found["found"]["own"] == pytest.approx(own(found["found"]["share"]), abs=0.02)
    assert [at["share"] for at in found["sweep"]] == [0.3, 0.3]
    assert set(found["covered"]) == set(found["covered_near"]) == {"own", "general"}
    assert found["finetunes"] > 4
    assert found["error_of_dense"] == pytest.approx(0.001)
