"""How much replay, on the page: the answers of `optuna_merge.surrogate.replay`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replay_helpers import KEEP, SharesBench, searched
from study_helpers import study_by_hand

import optuna_merge as om
from optuna_merge.reports import format_replay, write_html
from optuna_merge.surrogate import replay, replays


@pytest.mark.parametrize("losses", [False, True])
def test_the_page_answers_as_the_command_at_any_bound_and_either_way_round(
    tmp_path: Path, open_page: Callable[..., Any], losses: bool
) -> None:
    study = searched(SharesBench(losses=losses), 12, 2)
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())

    def told() -> list[str]:
        return list(tab.page.locator("#shares-told li").all_inner_texts())

    def says(general: str, keep: float) -> bool:
        text = format_replay(replay(study, general, keep))
        return all(sentence in text for sentence in told())

    keep = tab.page.get_by_label("keeps at least")
    assert keep.locator("option:checked").inner_text() == f"{100 * KEEP:g} %"
    assert says("general", KEEP) and len(told()) >= 3
    keep.select_option("80 %")
    assert says("general", 0.8) and not says("general", KEEP)
    best = replay(study, "general", 0.8).best
    assert best is not None
    label = tab.page.locator("#shares-own svg").get_attribute("aria-label")
    assert f"at the best share, {best.share:.2f}" in label
    assert ("(lower is better)" in label) == losses
    tab.page.get_by_label("General set").select_option("own")
    assert says("own", 0.95)
    assert tab.page.locator("#shares-general figcaption").inner_text() == "own"
    assert tab.errors == []


def test_the_curves_stand_in_a_table(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    study = searched(SharesBench(), 12, 2)
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())
    tab.page.get_by_text("The curves as a table").click()
    region = tab.page.get_by_role("region", name="Expected metrics by share")
    rows = [row.split("\t") for row in region.locator("tbody tr").all_inner_texts()]
    found = replay(study, "general")
    assert [row[0] for row in rows] == [f"{share / 10:.2f}" for share in range(11)]
    assert rows[5][1].startswith(f"{found.own.mean[50]:.4f} ({found.own.low[50]:.4f} to ")
    assert rows[10][2].startswith(f"{found.general.mean[100]:.4f} (")


@pytest.mark.parametrize(("names", "n_truths"), [(("a", "b", "c"), 6), (("a", "b"), 0)])
def test_other_studies_have_no_such_section(
    tmp_path: Path, open_page: Callable[..., Any], names: tuple[str, ...], n_truths: int
) -> None:
    write_html(tmp_path / "page.html", study_by_hand(names, 12, n_truths))
    tab = open_page((tmp_path / "page.html").as_uri())
    assert tab.page.get_by_text("How much replay?").count() == 0
    assert tab.errors == []


def test_several_bounds_are_answered_as_each_alone() -> None:
    study = searched(SharesBench(), 12, 2)
    assert replays(study, "general", [0.9, 1.0]) == [replay(study, "general", k) for k in (0.9, 1)]
    with pytest.raises(ValueError, match="nothing is known of task 'own'"):
        replays(study, "general", [0.9], {"own": None, "general": None})


def test_a_workbench_that_notes_few_costs_has_a_report() -> None:
    bench = SharesBench()
    assert bench.costs.keys() == {"task_run_seconds"}
    told = om.format_report(om.make_report(searched(bench, 6, 0), bench))
    assert "task runs" in told and "Spent: " in told
