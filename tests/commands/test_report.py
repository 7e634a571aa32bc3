from __future__ import annotations

import json
from pathlib import Path

from commands.command_line import fails, prints, run


def test_the_report_again(folder: Path) -> None:
    text = prints("optimize", "toy.py", "--n-trials", "6", "--seed", "0")
    report = Path("workdir/report-optuna_merge.json")
    told = report.read_text()
    report.unlink()
    again = prints("report", "toy.py", "--html", "page.html", "--csv", "tables")
    assert again == text[text.index("Study ") :]
    assert report.read_text() == told
    assert "Best task weights" in Path("page.html").read_text()
    assert Path("tables/weightings.csv").is_file()


def test_the_report_of_a_study_alone_as_a_page_and_as_tables(folder: Path) -> None:
    prints("optimize", "toy.py", "--n-trials", "5")
    code, out, err = run("report", "--html", "page.html", "--csv", "tables")
    assert code == 0
    assert "Best task weights: red" in out
    assert "Gain over uniform weights" in out or "use uniform weights" in out
    assert "Spent: " in out
    assert "As a page: page.html" in err
    assert "uniform weights" in Path("page.html").read_text()
    assert Path("tables/weightings.csv").read_text().count("\n") == 1 + 5
    prints("report")
    assert Path("report-optuna_merge.html").is_file()
    assert "no study 'missing'" in fails("report", "--study-name", "missing")
    assert json.loads(prints("report", "--json"))["counts"]["previews"] > 0


def test_the_help_tells_where_the_page_is() -> None:
    assert "report-STUDY.html in the workdir" in " ".join(
        prints("report", "--help").replace("│", " ").split()
    )
