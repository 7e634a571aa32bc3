"""The report's page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from study_helpers import fitted_toys, study_by_hand, toy_study

import optuna_merge as om
from optuna_merge.reports import write_html
from optuna_merge.surrogate import TruthModel
from optuna_merge.trials import TrialReader, read_study
from reports.conftest import EVIL, EVIL_NAMES, NAMES

Trio = tuple[optuna.Study, om.FittedStudy]


@pytest.fixture(scope="session")
def page_file(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study, fitted = trio
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(path, study, om.make_report(study, fitted))
    return path


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_network_and_without_errors(
    page_file: Path, open_page: Callable[..., Any], shots: Path, width: int, dark: bool
) -> None:
    tab = open_page(page_file.as_uri(), width=width, dark=dark)
    tab.page.wait_for_selector("#cost svg")
    assert tab.requests == [page_file.as_uri()]
    assert tab.errors == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in ("bars", "map-previews", "map-truths", "scatter", "front", "cost"):
        assert tab.page.locator(f"#{figure} svg[role=img][aria-label]").count() == 1
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert lightness < 60 if dark else lightness > 200
    tab.page.screenshot(path=shots / f"report-{width}-{dark}.png", full_page=True)


def test_the_answer_comes_first(
    trio: Trio, page_file: Path, open_page: Callable[..., Any]
) -> None:
    study, _ = trio
    tab = open_page(page_file.as_uri())
    best = read_study(study).best
    assert best is not None
    shown = tab.page.locator(".weights li").all_inner_texts()
    assert [text.split()[-1] for text in shown] == [f"{w:.3f}" for w in best.weights.values()]
    first = tab.page.locator("main > section").first.inner_text()
    assert "uniform weights" in first and "each task finetuned alone: red" in first
    assert "steps" in first


def test_names_are_text_wherever_they_stand(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    path = tmp_path / "page.html"
    write_html(path, study_by_hand(EVIL_NAMES, 20, 8, name=EVIL))
    text = path.read_text()
    assert EVIL not in text and "{{ 7" in text
    tab = open_page(path.as_uri())
    assert tab.page.locator("h1").inner_text() == tab.page.title().split(" – ")[0] == EVIL
    assert tab.page.locator("thead th").all_inner_texts()[2:5] == list(EVIL_NAMES)
    assert tab.page.locator("#map-of option").all_inner_texts()[1:] == list(EVIL_NAMES)
    assert tab.page.locator("script:not([type])").count() == 1
    assert tab.errors == []


def test_eight_tasks_and_a_thousand_previews(
    tmp_path: Path, open_page: Callable[..., Any], shots: Path
) -> None:
    names = tuple(f"task_{i}" for i in range(8))
    path = tmp_path / "page.html"
    write_html(path, study_by_hand(names, 1000, 100))
    size = path.stat().st_size
    assert size < 5e6
    tab = open_page(path.as_uri())
    tab.page.wait_for_selector("#cost svg")
    assert tab.errors == []
    times = tab.page.evaluate(
        """() => [0.1, 0.5, 0.9, 0.3, 0.7].map(value => {
            const slider = document.querySelector(".slider input");
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
            return Number(document.getElementById("explorer").dataset.milliseconds);
        })"""
    )
    print(f"\n1,000 previews, 8 tasks: {size / 1e6:.2f} MB, a move takes {times} ms")
    assert tab.page.locator("#map-previews polyline").count() == 1000
    for width in (1280, 400):
        tab = open_page(path.as_uri(), width=width)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.page.screenshot(path=shots / f"eight-{width}.png", full_page=True)


def predicted(tab: Any) -> list[tuple[float, float]]:
    shown = tab.page.locator(".prediction").all()
    return [
        (float(s.get_attribute("data-mean")), float(s.get_attribute("data-std"))) for s in shown
    ]


def test_moving_a_weight_changes_the_predictions_to_pythons(
    trio: Trio, page_file: Path, open_page: Callable[..., Any]
) -> None:
    study, _ = trio
    tab = open_page(page_file.as_uri())
    before = predicted(tab)
    slider = tab.page.get_by_label("weight of red")
    slider.evaluate("s => { s.value = 0.8; s.dispatchEvent(new Event('input')); }")
    after = predicted(tab)
    assert all(a != b for a, b in zip(before, after))
    weights = [float(v) for v in tab.page.locator(".slider input").evaluate_all(
        "inputs => inputs.map(i => i.value)"
    )]  # fmt: skip
    assert weights[0] == 0.8 and sum(weights) == pytest.approx(1)
    history = TrialReader(NAMES).read("toys", study.get_trials(deepcopy=False))
    series = [history.score(1.0), *(history.metric(i) for i in range(3))]
    expected = [TruthModel.fit(s).predict(np.array([weights])) for s in series]
    for (mean, std), (python_mean, python_std) in zip(after, expected):
        assert mean == pytest.approx(python_mean[0], abs=1e-6 * python_std[0])
        assert std == pytest.approx(python_std[0], rel=1e-6)
    tab.page.get_by_role("button", name="uniform", exact=True).click()
    assert predicted(tab) != after
    tab.page.keyboard.press("Tab")
    slider.focus()
    uniform = predicted(tab)
    tab.page.keyboard.press("ArrowRight")
    assert predicted(tab) != uniform


def test_the_point_in_the_triangle_is_dragged(
    page_file: Path, open_page: Callable[..., Any]
) -> None:
    tab = open_page(page_file.as_uri())
    handle = tab.page.locator("#explorer svg.handle")
    handle.scroll_into_view_if_needed()  # the mouse reaches only what is seen
    box = handle.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 26, steps=4)
    tab.page.mouse.up()
    assert tab.page.locator(".slider output").all_inner_texts() == ["1.000", "0.000", "0.000"]


@pytest.mark.parametrize(
    ("changes", "told", "n_predictions"),
    [
        ({}, "uniform", 3),
        ({"score": "pareto"}, "Pareto front", 2),
        ({"constraints": 3.0}, "No finetune satisfies the constraints", 3),
    ],
    ids=["score", "pareto", "infeasible"],
)
def test_a_study_alone_is_enough(
    tmp_path: Path,
    open_page: Callable[..., Any],
    changes: dict[str, Any],
    told: str,
    n_predictions: int,
) -> None:
    study = toy_study(fitted_toys(tmp_path, ("red", "blue"), **changes), n_trials=6)
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())
    tab.page.wait_for_selector("#cost svg")
    assert tab.errors == []
    assert tab.page.locator("#map-previews polyline").count() >= 5
    assert told in tab.page.locator("main > section").first.inner_text()
    assert tab.page.locator(".prediction").count() == n_predictions


def test_constraints_are_shown_with_the_predictions(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    limits = (om.Constraint("red", at_least=0.01), om.Constraint("red", at_most=0.02))
    fitted = fitted_toys(tmp_path, ("red", "blue"), constraints=limits)
    study = toy_study(fitted, n_trials=4)
    write_html(tmp_path / "page.html", study, om.make_report(study, fitted))
    tab = open_page((tmp_path / "page.html").as_uri())
    (shown,) = tab.page.locator(".limit").all_inner_texts()
    assert shown == "at least 0.01: likely kept, at most 0.02: likely missed"
    assert tab.errors == []


def test_previews_only_and_a_score_to_be_minimised(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    study = study_by_hand(("score", "blue"), 12, 0, direction="minimize")
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())
    assert tab.errors == []
    assert "previews only" in tab.page.locator("main > section").first.inner_text()
    assert tab.page.locator(".prediction").count() == 3
    assert "too few truths" in tab.page.locator("section:has(#scatter)").inner_text()


@pytest.mark.parametrize("names", [NAMES, ("red", "blue")])
def test_of_a_minimised_score_the_lowest_are_the_brightest(
    tmp_path: Path, open_page: Callable[..., Any], names: tuple[str, ...]
) -> None:
    study = study_by_hand(names, 30, 12, direction="minimize")
    write_html(tmp_path / "page.html", study)
    tab = open_page((tmp_path / "page.html").as_uri())
    tab.page.wait_for_selector("#cost svg")
    marks = "#map-truths :is(circle, rect, polyline):has(> title)"
    # What is drawn last is on top.
    inks = tab.page.locator(marks).evaluate_all(
        "marks => marks.map(m => m.localName === 'polyline' ? m.getAttribute('stroke')"
        " : m.getAttribute('fill'))"
    )
    titles = tab.page.locator(f"{marks} > title").all_text_contents()
    truths = [float(re.search(r"truth ([\d.]+)", title)[1]) for title in titles]  # type: ignore[index]
    assert truths == sorted(truths, reverse=True)
    assert (inks[0], inks[-1]) == ("rgb(96,78,186)", "rgb(240,186,40)")
    assert "lower is better" in tab.page.locator("#map-of option").first.inner_text()
    assert "lower is better" in tab.page.locator(".prediction .line").first.inner_text()
    assert tab.errors == []


def test_the_noise_of_one_finetune_is_shown_beside_the_expected_value(
    trio: Trio, page_file: Path, open_page: Callable[..., Any]
) -> None:
    study, fitted = trio
    noise = om.make_report(study, fitted, test=False)["noise"]
    tab = open_page(page_file.as_uri())
    shown = tab.page.locator(".prediction .noise").all_inner_texts()
    expected = [noise["score"]["told"], *(of["told"] for of in noise["tasks"].values())]
    assert shown == [f"noise of one finetune: {told}" for told in expected]
    assert tab.errors == []


def test_the_data_in_the_page_are_json(page_file: Path) -> None:
    text = page_file.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["tasks"] == list(NAMES)
    assert list(data["bars"]) == ["best", "uniform", "alone"]
