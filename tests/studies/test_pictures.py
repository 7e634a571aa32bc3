"""Pictures of a study's tables."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import studies.pictures
from studies.pictures import maps, scatter, tables
from studies.preview_quality import Point, grid, read_points, write_points

TASKS = ["a", "b", "<c>"]
SVG = "{http://www.w3.org/2000/svg}"


def points(family: str, seed: int, shift: float = 0.0, divisions: int = 4) -> list[Point]:
    start = "pretrained" if family == "truth" else "merged"
    return [
        Point(family, seed, w, 0, 0.5, sum(w) / 3 + shift, w, tuple(x + shift for x in w), start)
        for w in grid(3, divisions)
    ]


TRUTHS = points("truth", 0) + points("truth", 1, 0.2)
PREVIEWS = points("diagonal", 0, -0.1) + points("isotropic", 0, -0.3)


def counted(svg: str) -> tuple[Counter[str], list[str]]:
    root = ElementTree.fromstring(svg)
    tags = Counter(element.tag.removeprefix(SVG) for element in root.iter())
    return tags, [element.text or "" for element in root.iter(f"{SVG}text")]


def test_points_are_read_as_they_were_written(tmp_path: Path) -> None:
    for name, made in (("truth", TRUTHS), ("previews", PREVIEWS)):
        write_points(tmp_path / name, made, TASKS)
        found, tasks = read_points(tmp_path / name)
        assert tasks == TASKS
        assert [(p.family, p.seed, p.start, p.kind) for p in found] == [
            (p.family, p.seed, p.start, p.kind) for p in made
        ]
        for a, b in zip(found, made):
            assert a.metrics == pytest.approx(b.metrics)
            assert a.losses == pytest.approx(b.losses)


def test_tables_are_means_over_seeds() -> None:
    found = tables(TRUTHS, PREVIEWS)
    assert list(found) == ["truth", "diagonal", "isotropic"]
    assert found["truth"][(0.5, 0.25, 0.25)][:3] == pytest.approx((0.6, 0.35, 0.35))
    assert found["diagonal"][(0.5, 0.25, 0.25)] == pytest.approx((0.4, 0.15, 0.15, 1 / 3 - 0.1))


def test_maps_have_a_triangle_for_each_task_and_kind() -> None:
    tags, texts = counted(maps(tables(TRUTHS, PREVIEWS), TASKS))
    assert tags["polygon"] == 4 * 3
    assert tags["circle"] == 4 * 3 * 15
    assert {"a", "b", "<c>", "score", "truth", "diagonal", "isotropic"} <= set(texts)


def test_scatter_has_a_panel_for_each_kind_and_hollow_points_on_faces() -> None:
    svg = scatter(tables(TRUTHS, PREVIEWS), TASKS)
    tags, texts = counted(svg)
    assert tags["circle"] == 2 * 3 * 15 + 3
    assert svg.count('fill="none" stroke="#0072b2"') == 2 * 12  # of 15 weightings 3 are inside
    assert {"diagonal", "isotropic", "<c>"} <= set(texts)


def test_the_command_writes_both_and_names_what_is_missing(tmp_path: Path) -> None:
    write_points(tmp_path / "truth.csv", TRUTHS, TASKS)
    write_points(tmp_path / "previews.csv", PREVIEWS, TASKS)
    app = studies.pictures.typer.Typer()
    app.command()(studies.pictures.main)
    result = CliRunner().invoke(app, [str(tmp_path), "--kinds", "isotropic"])
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.glob("*.svg")} == {"maps.svg", "scatter.svg"}
    result = CliRunner().invoke(app, [str(tmp_path), "--kinds", "kronecker"])
    assert result.exit_code == 1
    assert "no previews 'kronecker' there, only diagonal, isotropic" in result.output
