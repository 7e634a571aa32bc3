"""The report's page for everybody: screen readers, keyboards, phones, paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from axe import broken_rules
from replay_helpers import SharesBench, searched
from study_helpers import fitted_toys, study_by_hand, toy_study

import optuna_merge as om
from optuna_merge.reports import write_html

Open = Callable[..., Any]
KINDS = ("several", "pareto", "flat", "losses")


class FlatBench(SharesBench):
    """Its weights don't matter, another seed does."""

    def _metrics(self, share: float, lower: float = 0.0) -> dict[str, float]:
        return dict.fromkeys(self.names, 0.7)

    def _noise(self, share: float, repeat: int) -> np.ndarray:
        return np.full(2, 0.002 * repeat)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Pages by kind of study."""
    folder = tmp_path_factory.mktemp("pages")

    def written(kind: str, study: optuna.Study, fitted: Any = None) -> Path:
        path = folder / f"{kind}.html"
        write_html(path, study, fitted and om.make_report(study, fitted))
        return path

    pareto = fitted_toys(folder / "pareto", ("red", "blue"), score="pareto")
    flat, losses = FlatBench("mean", keep=None), SharesBench(losses=True)
    return {
        "several": written("several", study_by_hand(tuple("abcdef"), 60, 20)),
        "pareto": written("pareto", toy_study(pareto, n_trials=6), pareto),
        "flat": written("flat", searched(flat, 12, 4, stop_when_flat=False), flat),
        "losses": written("losses", searched(losses, 12, 2), losses),
    }


@pytest.mark.parametrize(
    ("kind", "width", "dark"),
    [(kind, width, False) for kind in KINDS for width in (1280, 360)] + [("losses", 1280, True)],
)
def test_no_rule_of_accessibility_is_broken(
    pages: Mapping[str, Path], open_page: Open, shots: Path, kind: str, width: int, dark: bool
) -> None:
    assert ('class="headline">Flat' in pages[kind].read_text()) == (kind == "flat")
    tab = open_page(pages[kind].as_uri(), width=width, dark=dark, touch=width < 500)
    for closed in tab.page.locator("details").all():
        closed.evaluate("d => { d.open = true; }")
    assert broken_rules(tab.page) == []
    assert tab.errors == []
    tab.page.screenshot(path=shots / f"{kind}-{width}-{dark}.png", full_page=True)


def test_broken_rules_are_found(tmp_path: Path, open_page: Open) -> None:
    (tmp_path / "bad.html").write_text("<p style='color: #bbb'>pale <input> <img src='data:,'>")
    found = broken_rules(open_page((tmp_path / "bad.html").as_uri()).page)
    assert {text.partition(":")[0] for text in found} >= {
        "color-contrast",
        "html-has-lang",
        "label",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_phone_nothing_is_wider_than_the_screen_and_fingers_hit(
    pages: Mapping[str, Path], open_page: Open, kind: str
) -> None:
    tab = open_page(pages[kind].as_uri(), width=360, touch=True)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    for box in tab.page.locator("button, select, summary, input[type=range]").all():
        assert box.bounding_box()["height"] >= 44, box.inner_text()
    for chart in tab.page.locator("figure svg[role=img]").all():
        assert 240 <= chart.bounding_box()["width"] <= 340


@pytest.mark.parametrize("kind", KINDS)
def test_every_chart_says_what_it_shows(
    pages: Mapping[str, Path], open_page: Open, kind: str
) -> None:
    tab = open_page(pages[kind].as_uri())
    charts = tab.page.locator("svg[role=img]")
    told = [chart.get_attribute("aria-label") for chart in charts.all()]
    assert len(told) == len(set(told)) >= 5
    assert all(re.search(r"\d|table below|sliders below", text) for text in told), told
    assert tab.page.locator("svg:not([role=img]):not([aria-hidden=true])").count() == 0
    table = tab.page.locator("table", has=tab.page.get_by_role("columnheader", name="trial"))
    tab.page.get_by_text("All finetunes as a table").click()
    rows = table.locator("tbody tr").count()
    assert f"{rows} truths" in tab.page.locator("#map-truths [role=img]").get_attribute(
        "aria-label"
    )


def test_the_keyboard_reaches_and_moves_everything(
    pages: Mapping[str, Path], open_page: Open
) -> None:
    tab = open_page(pages["losses"].as_uri())
    reached = []
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        here = tab.page.evaluate(
            "[document.activeElement.localName, document.activeElement.id ||"
            " document.activeElement.ariaLabel || document.activeElement.textContent]"
        )
        if here[0] == "body":
            break
        reached.append(tuple(here))
    wanted = tab.page.locator("button, select, input, summary").count()
    assert len(set(reached) & {r for r in reached if r[0] not in ("div", "p")}) == wanted
    focus = "getComputedStyle(document.activeElement).outlineStyle"
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate(focus) == "solid"
    keep = tab.page.locator("#shares-keep")
    keep.focus()
    before = tab.page.locator("#shares-told").inner_text()
    tab.page.keyboard.press("Home")
    assert tab.page.locator("#shares-told").inner_text() != before


@pytest.mark.parametrize("kind", KINDS)
def test_paper_has_no_controls_and_whole_charts_in_light_colours(
    pages: Mapping[str, Path], open_page: Open, kind: str
) -> None:
    tab = open_page(pages[kind].as_uri(), dark=True)
    tab.page.emulate_media(media="print")
    for control in ("button", "input", ".screen", "details"):
        assert tab.page.locator(f"{control}:visible").count() == 0, control
    for select in tab.page.locator("select:visible").all():  # its choice is read as a word
        style = "s => [getComputedStyle(s).appearance, getComputedStyle(s).borderTopWidth]"
        assert select.evaluate(style) == ["none", "0px"]
    broken = "f => getComputedStyle(f).breakInside"
    assert set(tab.page.locator("figure").evaluate_all(f"all => all.map({broken})")) == {"avoid"}
    ink = tab.page.evaluate("getComputedStyle(document.body).color")
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 200
    assert tab.page.pdf(format="A4").startswith(b"%PDF")


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted(map(luminance, (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_marks_of_charts_stand_out(scheme: int) -> None:
    """Of texts in drawings axe can't tell the ground."""
    css = (resources.files("optuna_merge.reports") / "page" / "page.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.S)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for text in ("ink", "soft"):
        for ground in ("ground", "card", "tint", "note"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for mark in ("promoted", "baseline", "preview", "third", "accent"):
        assert contrast(colours[mark], colours["card"]) >= 3, mark
