from __future__ import annotations

import json

import pytest
from replay_helpers import SharesBench, searched

from optuna_merge.reports import format_replay
from optuna_merge.surrogate import replay
from optuna_merge.visualization import plot_replay


@pytest.mark.parametrize("losses", [False, True])
def test_the_picture_and_the_text_say_the_same(losses: bool) -> None:
    study = searched(SharesBench(losses=losses), 12, 2)
    found = replay(study, "general")
    assert found.best is not None
    figure = json.loads(plot_replay(study, "general").to_json())
    names = [trace["name"] for trace in figure["data"]]
    assert names == 2 * [
        "90 % interval of the expected value", "expected", "previews", "promoted", "baselines"
    ]  # fmt: skip
    assert sum(trace["showlegend"] for trace in figure["data"]) == 5, "a legend, and not two"
    expected = [trace for trace in figure["data"] if trace["name"] == "expected"]
    assert expected[1]["y"][100] == pytest.approx(found.general.mean[100])
    bound, best = figure["layout"]["shapes"][0], figure["layout"]["shapes"][-1]
    assert bound["y0"] == bound["y1"] == pytest.approx(found.bound)
    assert best["x0"] == best["x1"] == found.best.share
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
