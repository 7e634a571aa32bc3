"""Tables on the studies' pages are those that the studies' commands have stored."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import studies
from studies.search.page import replaced, table

STUDIES = Path(studies.__file__).parent
JUDGED = {  # pages, and from which heading on their tables are those of `studies/judge.py`
    "mnist": "# MNIST",
    "text": "## Previews against finetunes",
    "newsgroups": "# Newsgroups",
    "sentiment": "# Sentiment",
}


def rows(text: str) -> list[str]:
    """Rows of a page's tables that hold numbers of their own."""
    return [
        line for line in text.splitlines() if line.startswith("| ") and re.search(r"\d\d", line)
    ]


def stored_rows(*folders: Path) -> set[str]:
    return {row for f in folders for path in f.glob("*.md") for row in rows(path.read_text())}


@pytest.mark.parametrize("name", JUDGED)
def test_a_study_s_tables_are_stored(name: str) -> None:
    text = (STUDIES / name / "README.md").read_text()
    shown = rows(text[text.index(f"{JUDGED[name]}\n") :])
    stored = stored_rows(STUDIES / name / "results", STUDIES / "results")
    assert len(shown) > 10
    assert [row for row in shown if row not in stored] == []


def test_the_families_tables_are_stored() -> None:
    text = (STUDIES / "results" / "README.md").read_text()
    shown = rows(text[text.index("## Families\n") : text.index("*Row and column means.*")])
    folders = (STUDIES / name / "results" for name in ("digits", "fashion"))
    stored = stored_rows(*folders) | set(rows((STUDIES / "results/judge.md").read_text()))
    assert len(shown) > 40
    assert [row for row in shown if row not in stored] == []


def test_the_table_of_all_suites_is_stored() -> None:
    text = (STUDIES / "results" / "README.md").read_text()
    shown = rows(text[: text.index("*What previews know beyond own weight.*")])
    stored = rows((STUDIES / "results" / "judge.md").read_text())
    assert len(shown) == 10
    assert [row for row in shown if row not in stored] == []


def test_the_regrets_of_searches_are_stored() -> None:
    text = (STUDIES / "search" / "README.md").read_text()
    assert text == replaced(text), "python studies/search/page.py --write"
    assert ".0076" in table("mnist")
