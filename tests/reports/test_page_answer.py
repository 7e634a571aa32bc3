"""What the page says first: gain and error, costs against grids, lines for other trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from study_helpers import study_by_hand

import optuna_merge as om
from optuna_merge.reports import write_html
from optuna_merge.trainers import FORMS, mixture_lines, study_mixture
from optuna_merge.trials import read_study

Open = Callable[..., Any]
Trio = tuple[optuna.Study, om.FittedStudy]


@pytest.fixture(scope="module")
def page(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    study, fitted = trio
    report = om.make_report(study, fitted)
    path = tmp_path_factory.mktemp("answer") / "report.html"
    write_html(path, study, report)
    return path, report


def test_the_headline_is_the_first_that_is_read(
    page: tuple[Path, dict[str, Any]], open_page: Open
) -> None:
    path, report = page
    first = open_page(path.as_uri()).page.locator("main p").first
    assert first.inner_text() == report["verdict"]["headline"] != ""
    assert ("±" in first.inner_text()) == (report["verdict"]["expected_gain"] is not None)


def test_costs_stand_beside_those_of_grids(
    page: tuple[Path, dict[str, Any]], open_page: Open
) -> None:
    path, report = page
    tab = open_page(path.as_uri())
    answer = tab.page.locator("main > section").first.inner_text()
    assert f"Spent: {report['spent']['told']}. {report['spent']['grid_told']}" in answer
    assert "15 in steps of 0.25" in answer
    assert report["spent"]["grid_told"] in om.format_report(report)
    cells = tab.page.locator("section:has(#cost) table").first.locator("tbody tr")
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in cells.all_inner_texts()}
    one = report["definition"]["finetuning"]["steps"]
    assert rows["a grid in steps of 0.1"][0] == f"{66 * one}"
    assert rows["all of it"][2] == f"{report['spent']['total']:,.1f}"
    parts = [
        float(row[2]) for what, row in rows.items() if "grid" not in what and what != "all of it"
    ]
    assert sum(parts) == pytest.approx(report["spent"]["total"], abs=0.05 * len(parts))


def test_the_lines_for_trainers_are_the_commands(
    trio: Trio, page: tuple[Path, dict[str, Any]], open_page: Open
) -> None:
    study, _ = trio
    tab = open_page(page[0].as_uri())
    offered = tab.page.get_by_role("combobox", name="Trainer").locator("option")
    forms = offered.evaluate_all("all => all.map(o => o.value)")
    assert sorted(forms) == sorted(FORMS)
    best = read_study(study).best
    assert best is not None
    for form in forms:
        tab.page.get_by_role("combobox", name="Trainer").select_option(form)
        assert tab.page.locator("pre:visible").count() == 1
        shown = tab.page.locator("pre:visible").inner_text()
        if form == "axolotl":  # the study does not know how large its data are
            assert "give the number of training examples" in shown and "--examples" in shown
        else:
            assert shown == study_mixture(study, form) == mixture_lines(best.weights, form)


def test_a_study_without_a_best_finetune_has_no_lines(tmp_path: Path, open_page: Open) -> None:
    study = study_by_hand(("red", "blue"), 12, 0)
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())
    assert tab.page.get_by_text("Lines for your trainer").count() == 0
    with pytest.raises(ValueError, match="no best finetune"):
        study_mixture(study, "json")


def test_previews_made_of_their_truths_are_hollow_and_told_of(
    trio: Trio, page: tuple[Path, dict[str, Any]], open_page: Open
) -> None:
    study, _ = trio
    tab = open_page(page[0].as_uri())
    hollow = tab.page.locator("#scatter svg[role=img] [fill='var(--card)']:has(> title)")
    anchors = [o for o in read_study(study).truths if o.at_anchor]
    assert hollow.count() == len(anchors) == 4, "uniform weights and three tasks alone"
    assert "made of the truth" in hollow.first.locator("title").text_content()
    section = tab.page.locator("section:has(#scatter)").inner_text()
    assert "they have an anchor" in section


def test_without_an_anchor_the_page_says_so(tmp_path: Path, open_page: Open) -> None:
    write_html(tmp_path / "page.html", study_by_hand(("red", "blue"), 12, 6))
    tab = open_page((tmp_path / "page.html").as_uri())
    assert "without an anchor" in tab.page.locator("section:has(#scatter)").inner_text()
    hollow = tab.page.locator("#scatter svg[role=img] [fill='var(--card)']:has(> title)")
    assert hollow.count() == 2, "each task alone"


def test_of_a_lower_is_better_task_the_lowest_bar_is_the_bold_one(
    tmp_path: Path, open_page: Open
) -> None:
    study = study_by_hand(("red", "blue"), 12, 6, direction="minimize")
    study.set_user_attr("greater_is_better", {"red": False, "blue": True})
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())
    texts = tab.page.locator("#bars svg[role=img] text:not(.name)")
    bars = texts.evaluate_all(
        "all => all.map(t => [Number(t.textContent), t.classList.contains('first')])"
    )
    red, blue = bars[:3], bars[3:]
    assert [value for value, first in red if first] == [min(value for value, _ in red)]
    assert [value for value, first in blue if first] == [max(value for value, _ in blue)]
    assert "lower is better: red" in tab.page.locator("#bars figcaption").inner_text()
