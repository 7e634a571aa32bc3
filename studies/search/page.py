"""The tables of README.md, from what `peers.py` and `real.py` have stored.

python studies/search/page.py          # prints them
python studies/search/page.py --write  # puts them in the place of those in README.md
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

FOLDER = Path(__file__).parent
SHOWN = {  # suites on which all methods are replayed, and their scores
    "mnist": ("worst", "relative", "mean"),
    "fashion": ("worst", "relative", "mean"),
    "newsgroups": ("worst", "relative", "mean"),
    "text": ("worst", "mean"),
    "sentiment": ("worst_relative", "mean"),
    "digits": ("worst", "relative"),
}
FEW_ARE_GOOD = [
    ("mnist", "worst"),
    ("fashion", "worst"),
    ("newsgroups", "worst"),
    ("text", "worst"),
]
FLATTER = [(s, score) for s in SHOWN for score in SHOWN[s] if (s, score) not in FEW_ARE_GOOD]
TRANSFER = [("conflict", "mean"), ("conflict", "worst"), ("film", "target:film"), ("film", "mean")]
MANY_TASKS = [("groups", "mean"), ("groups", "worst"), ("groups", "target:security")]
COSTS = ("6", "12", "12 seconds")
OF_MANY_TASKS = ("10", "12", "16", "16 seconds")  # eight of them are the task runs
ALL = [(s, score) for s in SHOWN for score in SHOWN[s]] + TRANSFER + MANY_TASKS
CHOSE_NOTHING = TRANSFER + MANY_TASKS  # no setting of the search was chosen on them
EARLY, LATE = ("6", "10"), ("12", "16")  # the second: of eight tasks
IN_SECONDS = ("12 seconds", "16 seconds")
BEHIND = (("6", "8", "10", "12"), ("10", "12", "16"))
METHODS = (
    "uniform",
    "doubling rule",
    "own-weight curve",
    "random",
    "TPE (-log u)",
    "GPSampler (-log u)",
    "TPE + Hyperband (-log u)",
    "SMAC (-log u)",
    "ASHA (-log u)",
    "BOHB (-log u)",
    "best previews",
    "simplex GP",
    "metric GPs from corners",
    "ours until flat",
    "ours",
)
PEERS = METHODS[1:11]
"""Simple rules and the searches of other libraries, and "best previews"."""
NOISE, GOOD = "noise of a finetune", "weightings within it"
REAL = {  # files of real searches, by their rows
    "MNIST, worst": ("mnist", "worst"),
    "MNIST, mean relative": ("mnist", "relative"),
    "newsgroups, worst": ("newsgroups", "worst"),
    "text, worst": ("text", "worst"),
    "text, mean": ("text", "mean"),
    "conflict, mean": ("conflict", "mean"),
    "desks, worst": ("desks", "worst"),
    "film, target": ("film", "target:film"),
    "film, mean": ("film", "mean"),
    "groups, mean": ("groups", "mean"),
    "groups, worst": ("groups", "worst"),
    "mixture, loss on Italian": ("mixture", "target:italian"),
}
LOSSES = ("mixture",)

Scored = tuple[str, str]
"""A suite and a score."""


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Heads and rows of a text's tables."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        yield lines[0], lines[2:]


def regrets(suite: str, score: str, results: str = "results") -> dict[tuple[str, str], str]:
    """What is stored of a suite's score, by method and finetunes; noise with finetunes ""."""
    text = (FOLDER / results / f"{suite}.md").read_text()
    (part,) = re.findall(rf"^{suite}, {score}: .*?(?=^{suite}, |\Z)", text, re.M | re.S)
    noise, share = re.findall(r"noise of one finetune 0(\.\d+); (\d+%)", part)[0]
    found: dict[tuple[str, str], str] = {(NOISE, ""): noise, (GOOD, ""): share}
    for head, rows in tables(part):
        if head[:2] == ["method", "searches"]:
            found |= {(row[0], k): v for row in rows for k, v in zip(head, row)}
    return found


def regret_table(scores: Sequence[Scored], costs: Sequence[str] = COSTS) -> str:
    """Regrets of all methods that a suite of these has, a column for each cost.

    Args:
        scores: Suites and scores.
        costs: Heads of the stored tables: after how many finetunes' cost.
    """
    kept = {place: regrets(*place) for place in scores}
    columns = [(place, cost) for place in scores for cost in costs]
    head = [f"{suite}, {score}: {cost}" for (suite, score), cost in columns]
    lines = [["regret", *head]]
    for name in (NOISE, GOOD):
        first = costs[0]
        lines.append([name, *(kept[p][name, ""] if c == first else "" for p, c in columns)])
    for name in METHODS:
        cells = [kept[place].get((name, cost), "") for place, cost in columns]
        if any(cells):
            lines.append([name, *cells])
    return ruled(lines)


def in_noises(
    method: str, at: tuple[str, str], scores: Sequence[Scored] = ALL
) -> dict[Scored, float]:
    """Regrets of a method in noises of a finetune, by the scores that it was replayed on."""
    found = {}
    for place in scores:
        kept = regrets(*place)
        regret = kept.get((method, at[place in MANY_TASKS]))
        if regret:
            found[place] = float(regret) / float(kept[NOISE, ""])
    return found


def behind_the_best() -> dict[tuple[str, str, str], float]:
    """What ours loses more than the best of the `PEERS`, in noises, by suite, score and cost.

    Another of these may be the best at each cost of each score, which nobody knows beforehand.
    """
    found = {}
    for suite, score in ALL:
        kept = regrets(suite, score)
        for cost in BEHIND[(suite, score) in MANY_TASKS]:
            best = min(float(kept[name, cost]) for name in PEERS if kept.get((name, cost)))
            more = float(kept["ours", cost]) - best
            found[suite, score, cost] = more / float(kept[NOISE, ""])
    return found


def overview_table() -> str:
    """Regrets of each method over all scores that it was replayed on, in noises, beside ours."""
    lines = [
        [
            *("all scores", "scores", "mean: 6", "ours there", "mean: 12", "ours there"),
            *("mean: 12 seconds", "largest: 12", "within a noise: 12"),
            "mean where nothing was chosen: 12",
        ]
    ]
    for method in METHODS:
        cells = [method, str(len(in_noises(method, LATE)))]
        for at in (EARLY, LATE):
            found, ours = in_noises(method, at), in_noises("ours", at)
            cells += [_short(found.values()), _short(ours[place] for place in found)]
        late, apart = (in_noises(method, LATE, of) for of in (ALL, CHOSE_NOTHING))
        timed = in_noises(method, IN_SECONDS)
        cells.append(_short(timed.values()) if len(timed) == len(late) else "")
        cells += [_short([max(late.values())]), str(sum(r <= 1.0 for r in late.values()))]
        cells.append(_short(apart.values()) if len(apart) == len(CHOSE_NOTHING) else "")
        lines.append(cells)
    return ruled(lines)


def _short(values: Iterable[float]) -> str:
    return f"{mean(values):.2f}".removeprefix("0")


def real_table() -> str:
    """Gains over uniform weights by fresh seeds on test data, and finetunes in brackets.

    A loss that is lower is a gain.
    """
    lines: list[list[str]] = []
    for name, place in REAL.items():
        searches = real_searches(*place)
        sense = -1 if place[0] in LOSSES else 1
        equal = {s["seed"]: mean(s["test_scores"]) for s in searches.pop("uniform")}
        cells = [name, f"{mean(equal.values()):.3f}".replace("0.", ".")]
        lines = lines or [["real searches", "uniform", *searches]]
        for method in lines[0][2:]:
            found = searches[method]
            gains = [sense * (mean(s["test_scores"]) - equal[s["seed"]]) for s in found]
            error = stdev(gains) / math.sqrt(len(gains))
            gain = f"{mean(gains):+.4f} ± {error:.4f}".replace("0.", ".")
            cells.append(f"{gain} ({mean(s['finetunes'] for s in found):.1f})")
        lines.append(cells)
    return ruled(lines)


def real_searches(study: str, score: str) -> dict[str, list[dict[str, Any]]]:
    """Stored real searches for a score by method."""
    path = FOLDER / "results" / f"real-{study}.json"
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(path.read_text())["searches"]:
        if row["score"] == score:
            found.setdefault(row["method"], []).append(row)
    return found


def ruled(lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, the first line as its head."""
    first, *rest = (f"| {' | '.join(line)} |\n" for line in lines)
    return f"{first}|{'---|' * len(lines[0])}\n{''.join(rest)}"


def made() -> list[str]:
    """The page's tables in its order."""
    return [
        overview_table(),
        regret_table(FEW_ARE_GOOD),
        regret_table(FLATTER, ["12"]),
        regret_table(TRANSFER),
        regret_table(MANY_TASKS, OF_MANY_TASKS),
        real_table(),
    ]


def replaced(page: str) -> str:
    """The page with the tables as they are stored.

    Raises:
        ValueError: the page has not as many tables that begin with these words.
    """
    first = "all scores|regret|real searches"
    pattern = re.compile(rf"^\| (?:{first}) \|.*\n(?:\|.*\n)+", re.M)
    new = made()
    if (found := len(pattern.findall(page))) != len(new):
        raise ValueError(
            f"README.md has {found} tables whose first cell is one of {first.split('|')}, "
            f"and {len(new)} are made; put a table with that first cell where one is to stand"
        )
    return pattern.sub(lambda _: new.pop(0), page)


if __name__ == "__main__":
    README = FOLDER / "README.md"
    if sys.argv[1:] == ["--write"]:
        README.write_text(replaced(README.read_text()))
    else:
        print("\n".join(made()))
