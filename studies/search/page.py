"""The tables of regrets in README.md, from what `peers.py` has stored.

python studies/search/page.py          # prints them
python studies/search/page.py --write  # puts them in the place of those in README.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
SHOWN = {  # suites in the page's order, and their scores
    "mnist": ("worst", "relative", "mean"),
    "fashion": ("worst", "relative", "mean"),
    "newsgroups": ("worst", "relative", "mean"),
    "text": ("worst", "mean"),
    "sentiment": ("worst_relative", "mean"),
    "digits": ("worst", "relative"),
}
FINETUNES = ("4", "6", "12", "12 seconds")
METHODS = (
    "uniform",
    "doubling rule",
    "own-weight curve",
    "random",
    "TPE",
    "TPE (-log u)",
    "GPSampler (-log u)",
    "TPE + Hyperband",
    "TPE + Hyperband (-log u)",
    "SMAC (-log u)",
    "ASHA (-log u)",
    "BOHB (-log u)",
    "best previews",
    "quadratic",
    "simplex GP",
    "metric GPs from corners",
    "ours",
)


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Heads and rows of a text's tables."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        yield lines[0], lines[2:]


def regrets(suite: str) -> dict[tuple[str, str, str], str]:
    """A suite's stored regrets by score, method and finetunes."""
    text = (FOLDER / "results" / f"{suite}.md").read_text()
    found: dict[tuple[str, str, str], str] = {}
    for part in re.split(rf"^(?={suite}, )", text, flags=re.M)[1:]:
        score = part[len(suite) + 2 : part.index(":")]
        for head, rows in tables(part):
            if head[:2] == ["method", "searches"]:
                found |= {(score, row[0], k): v for row in rows for k, v in zip(head, row)}
    return found


def table(suite: str) -> str:
    """The page's table of a suite."""
    kept = regrets(suite)
    columns = [(score, finetunes) for score in SHOWN[suite] for finetunes in FINETUNES]
    head = ["regret", *(f"{score}: {finetunes}" for score, finetunes in columns)]
    lines = [head, ["---"] * len(head)]
    for name in METHODS:
        lines.append([name, *(kept.get((score, name, k), "") for score, k in columns)])
    ruled = "|".join(lines.pop(1))
    first, *rest = (f"| {' | '.join(line)} |\n" for line in lines)
    return f"{first}|{ruled}|\n{''.join(rest)}"


def replaced(page: str) -> str:
    """The page with the tables as they are stored."""
    made = [table(suite) for suite in SHOWN]
    shown = re.findall(r"^\| regret \|.*\n(?:\|.*\n)+", page, re.M)
    for old, new in zip(shown, made, strict=True):
        page = page.replace(old, new)
    return page


if __name__ == "__main__":
    README = FOLDER / "README.md"
    if sys.argv[1:] == ["--write"]:
        README.write_text(replaced(README.read_text()))
    else:
        print("\n".join(table(suite) for suite in SHOWN))
