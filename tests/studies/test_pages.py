"""Tables on the studies' pages are those that the studies' commands have stored."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

import studies
from studies.search.page import (
    FEW_ARE_GOOD,
    LATE,
    behind_the_best,
    in_noises,
    real_searches,
    regret_table,
    regrets,
    replaced,
)

STUDIES = Path(studies.__file__).parent
JUDGED = {  # pages, and from which heading on their tables are those of `studies/judge.py`
    "digits": "## Previews against finetunes",
    "fashion": "## Previews against finetunes",
    "mnist": "# MNIST",
    "text": "## Previews against finetunes",
    "newsgroups": "# Newsgroups",
    "sentiment": "# Sentiment",
}
ERRORS: dict[str, dict[str, str]] = {  # headings, and columns of suites whose folder is another
    "## Families": {},
    "## Heads": {
        "digits": "digits/results/heads",
        "digits, own heads": "digits/results/own_heads",
        "Fashion": "fashion/results/heads",
    },
    "## Rungs": {},
}


def rows(text: str) -> list[str]:
    """Rows of a page's tables that hold numbers of their own."""
    return [
        line for line in text.splitlines() if line.startswith("| ") and re.search(r"\d\d", line)
    ]


def stored_rows(*folders: Path) -> set[str]:
    return {row for f in folders for path in f.rglob("*.md") for row in rows(path.read_text())}


@pytest.mark.parametrize("name", JUDGED)
def test_a_study_s_tables_are_stored(name: str) -> None:
    text = (STUDIES / name / "README.md").read_text()
    shown = rows(text[text.index(f"{JUDGED[name]}\n") :])
    stored = stored_rows(STUDIES / name / "results", STUDIES / "results")
    assert len(shown) > 10
    assert [row for row in shown if row not in stored] == []


def numbers(text: str) -> list[str]:
    return re.findall(r"(?<![\w.])\d*\.\d+(?![\w.])", text)


@pytest.mark.parametrize("name", ["conflict", "film", "groups", "mixture"])
def test_the_numbers_of_collated_tables_are_stored(name: str) -> None:
    text = (STUDIES / name / "README.md").read_text().partition("## What previews know\n")[2]
    text = text.partition("\n## Real searches\n")[0]  # these are made from what real.py stores
    found = (p for p in (STUDIES / name / "results").iterdir() if p.suffix in (".md", ".json"))
    stored = [float(number) for path in found for number in numbers(path.read_text())]

    def is_stored(number: str) -> bool:
        half = 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
        return any(abs(x - float(number)) <= half for x in stored)

    missing = {
        row: lost for row in rows(text) if (lost := [n for n in numbers(row) if not is_stored(n)])
    }
    assert len(rows(text)) > 10
    assert missing == {}


def stored_errors(folder: str) -> dict[str, str]:
    """Errors in the `judge.md` of a folder of results, by the kind of previews.

    Refined previews go by their start and share of a finetune's steps, as in "diagonal 5%".
    """
    path = STUDIES / folder / "judge.md"
    if path.exists():
        text = path.read_text()
    else:  # a part of the tables of several folders
        text = (STUDIES / "results" / "judge.md").read_text()
        text = text.partition(f"## studies/{folder}\n")[2].partition("\n## ")[0]
    found: dict[str, str] = {}
    for line in text.partition("| beyond own weight")[0].splitlines():
        kind, share, error = ([cell.strip() for cell in line.split("|")] + [""] * 4)[1:4]
        start, _, steps = kind.partition(" + ")
        if "%" in share and not steps.endswith(" x 128"):  # finetunes have batches of 16 and 32
            found[f"{start} {share}" if steps else kind] = error.partition(" ")[0]
    return found


def test_real_searches_of_the_mixture_are_stored() -> None:
    text = (STUDIES / "mixture" / "README.md").read_text().partition("\n## Real searches\n")[2]
    text = text.partition("\n## ")[0]
    found = real_searches("mixture", "target:italian")
    uniform = {s["seed"]: s for s in found["uniform"]}
    for method, finetunes, *gains in (row.strip("| ").split(" | ") for row in rows(text)):
        (searches,) = (v for k, v in found.items() if method.startswith(k))
        for part, gain in zip(("scores", "test_scores"), gains):
            values = [mean(s[part]) - mean(uniform[s["seed"]][part]) for s in searches]
            error = stdev(values) / math.sqrt(len(values))
            assert gain == f"{mean(values):.3f} ± {error:.3f}".replace("0.", ".")
        assert finetunes == f"{mean(s['finetunes'] for s in searches):.1f}"


@pytest.mark.parametrize(
    ("heading", "folder"), [("What previews know", "."), ("A larger body", "medium")]
)
def test_what_previews_of_the_mixture_know_is_stored(heading: str, folder: str) -> None:
    mixture = STUDIES / "mixture"
    stored: dict[str, list[str]] = {}
    for line in (mixture / "results" / folder / "tables.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 11:  # of the tables at more weightings the second
            stored[cells[0]] = cells
    text = (mixture / "README.md").read_text().partition(f"\n## {heading}\n")[2]
    seen = 0
    for row in rows(text.partition("\n- ")[0]):
        name, error, rank, less, mean_loss, _ = (cell.strip() for cell in row.split("|")[1:-1])
        kind = name.removesuffix(" (averaging)").replace(" weightings)", ")")
        if kind in stored:
            found = stored[kind]
            assert error == f"{float(found[1]):.3f}".replace("0.", ".", 1)
            assert rank == found[10].replace("0.", ".")
            assert mean_loss == found[9].replace("0.", ".")
            ahead = stored.get(f"{kind} less averaging", [""] * 11)[10]
            assert less == ahead.replace("0.", ".")
            seen += 1
    assert seen == 8


def test_other_task_runs_of_the_mixture_are_stored() -> None:
    mixture, stored = STUDIES / "mixture", {}
    for line in (mixture / "results" / "shares.md").read_text().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        ranks, beyond = zip(*(cell.rstrip(")").split(" (") for cell in cells[4:10]))
        lost = cells[12].rstrip(")").partition("(")[2]
        numbers = (cells[3], mean(map(float, ranks)), mean(map(float, beyond)), lost)
        stored[cells[0], cells[2]] = (cells[1], [float(number) for number in numbers])
    text = (mixture / "README.md").read_text().partition("\n## Other task runs\n")[2]
    table = rows(text.partition("\n- ")[0])
    for row in table:
        runs, cost, previews, *numbers = (cell.strip() for cell in row.split("|")[1:-1])
        kind = previews.replace("averaging", "isotropic").replace("negative weights too", "beyond")
        found_cost, found = stored[runs.replace(" .", " 0."), kind]
        assert cost == found_cost.replace("0.", ".")
        for shown, value in zip(numbers, found, strict=True):
            assert abs(float(shown) - value) < 0.51 * 10.0 ** -len(shown.partition(".")[2]), row
    assert len(table) == 15


def test_what_anchors_are_worth_in_a_search_is_stored() -> None:
    text = (STUDIES / "search" / "README.md").read_text()
    text = text.partition("### What anchors are worth in a search\n")[2].partition("\n### ")[0]
    table = [row for row in rows(text) if not row.startswith("| regret")]
    for row in table:
        place, *shown = (cell.strip() for cell in row.split("|")[1:-1])
        suite, score = place.split(", ")
        found = [regrets(suite, score, at) for at in ("results/unanchored", "results")]
        cells = [of["ours", cost] for cost in ("6", "12") for of in found]
        within = [of["ours", "within noise: steps (quartiles)"].split()[0] for of in found]
        assert shown == [*cells, *within], place
    assert len(table) == 12


def test_how_far_ours_is_behind_the_best_of_the_others_is_stored() -> None:
    behind = behind_the_best()
    text = " ".join((STUDIES / "search" / "README.md").read_text().split())
    most, place = max((value, place) for place, value in behind.items())
    assert place == ("sentiment", "worst_relative", "8")
    assert f"at most {most:.2f}, on sentiment's".replace("0.", ".") in text
    few = sum(value <= 0.25 for value in behind.values())
    assert f"a quarter or less in {few} of {len(behind)} cases" in text
    ahead = [-value for (*of, _), value in behind.items() if of == ["conflict", "mean"]]
    assert f"ahead of all others by {min(ahead):.1f} to {max(ahead):.1f} noises" in text


@pytest.mark.parametrize("page", ["README.md", "studies/README.md"])
def test_the_sentences_over_all_scores_are_stored(page: str) -> None:
    text = " ".join((STUDIES.parent / page).read_text().split())
    found = [in_noises(m, LATE).values() for m in ("ours", "own-weight curve", "doubling rule")]
    (ours, most), (curve, its), (rule, rules) = ((mean(f), max(f)) for f in found)
    assert f"it ends {ours:.2f} noises".replace(" 0.", " .") in text
    assert f"below the best on average and {most:.1f} at most" in text
    for name, average, largest in (("curve", curve, its), ("rule", rule, rules)):
        assert f"{name} {average:.2f} and {largest:.1f}".replace(" 0.", " .") in text


FRONT = {  # rows of the first page's table, and what they are of
    "conflict": ("conflict", "mean"),
    "newsgroups": ("newsgroups", "worst"),
    "mixture": ("mixture", "target:italian"),
    "mnist": ("mnist", "worst"),
    "film": ("film", "mean"),
}


def test_the_first_page_has_the_real_searches_as_stored() -> None:
    text = (STUDIES.parent / "README.md").read_text().partition("\n## What to expect")[2]
    methods = ("doubling rule", "own-weight curve", "TPE + Hyperband (-log u)", "ours")
    shown = {}
    for row in rows(text):
        name, *gains = row.replace("**", "").strip("| ").split(" | ")
        shown[name[1 : name.index("]")]] = gains
    assert shown.keys() == FRONT.keys()
    for name, place in FRONT.items():
        found = real_searches(*place)
        uniform = {s["seed"]: mean(s["test_scores"]) for s in found["uniform"]}
        sense = -1 if name == "mixture" else 1
        for method, gain in zip(methods, shown[name], strict=True):
            values = [sense * (mean(s["test_scores"]) - uniform[s["seed"]]) for s in found[method]]
            error = stdev(values) / math.sqrt(len(values))
            assert gain == f"{mean(values):.3f} ± {error:.3f}".replace("0.", "."), (name, method)


@pytest.mark.parametrize("heading", ERRORS)
def test_the_errors_are_stored(heading: str) -> None:
    text = (STUDIES / "results" / "README.md").read_text()
    part = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^\| error(?: |, from )\|.*\n(?:\|.*\n)+", part, re.M)
    head, _, *lines = [[c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()]
    seen = 0
    for name in [name for name in head[1:] if name != "share"]:
        stored = stored_errors(ERRORS[heading].get(name, f"{name.lower()}/results"))
        for cells in (dict(zip(head, line)) for line in lines):
            share = cells.get("share", "0%")
            kind = cells[head[0]] + (f" {share}" if share != "0%" else "")
            if cells[name]:
                assert cells[name] == stored[kind], f"{kind} of {name}"
                seen += 1
    assert seen > 25


def test_the_table_of_all_suites_is_stored() -> None:
    text = (STUDIES / "results" / "README.md").read_text()
    shown = rows(text[: text.index("**Beyond own weight.**")])
    stored = rows((STUDIES / "results" / "judge.md").read_text())
    assert len(shown) == 10
    assert [row for row in shown if row not in stored] == []


def test_the_tables_of_searches_are_stored() -> None:
    text = (STUDIES / "search" / "README.md").read_text()
    assert text == replaced(text), "python studies/search/page.py --write"
    assert "| ours | .0" in regret_table(FEW_ARE_GOOD)
    assert "+.0694 ± .0056 (9.0)" in text
    with pytest.raises(ValueError, match="has 0 tables"):
        replaced("# Searches\n")
