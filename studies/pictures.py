"""Pictures of a study's tables: maps of truth and previews over the task weights, and scatter.

    python studies/pictures.py studies/fashion/results

Reads truth.csv and previews.csv (see `families.py`) and writes two files beside them. maps.svg has
a triangle for each task and the score, one row for the truths (mean over seeds) and one for each
kind of preview; each row's corners are the tasks alone, and all rows of a column share one scale.
scatter.svg has preview against truth, a panel for each kind and a colour for each task; hollow
points are faces, where some task has no weight.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from optuna_merge._base.files import atomic_path
from optuna_merge.commands import Debug, guarded
from studies.preview_quality import Point, Weights, last_rungs, means_of, read_points

KINDS = 5  # at most so many rows and panels unless --kinds names them
_SIDE = 150.0  # of a triangle
_GAP = 26.0
_LETTER = 6.3  # of the names of rows, on average
_PANEL = 170.0
_TASK_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#56b4e9", "#e69f00", "#f0e442", "#000000"),
)
_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))

Table = Mapping[Weights, Sequence[float]]
"""By weights: each task's metric, then the score."""


def tables(truths: Sequence[Point], previews: Sequence[Point]) -> dict[str, Table]:
    """Means over seeds, by kind; the truths come first."""
    kinds = dict.fromkeys(p.kind for p in previews)
    found: dict[str, Table] = {"truth": means_of(last_rungs(truths))}
    found |= {kind: means_of([p for p in previews if p.kind == kind]) for kind in kinds}
    return found


def maps(found: Mapping[str, Table], tasks: Sequence[str]) -> str:
    """The ternary maps as SVG; of three tasks."""
    columns = [*tasks, "score"]
    height = _SIDE * math.sqrt(3) / 2
    left = 30 + _LETTER * max(map(len, found))
    parts = []
    for column, title in enumerate(columns):
        values = [row[column] for table in found.values() for row in table.values()]
        low, high = min(values), max(values)
        x0 = left + column * (_SIDE + _GAP)
        parts.append(text(x0 + _SIDE / 2, 16, title, bold=True))
        parts.append(text(x0 + _SIDE / 2, 30, f"{low:.2f} (dark) to {high:.2f}", size=9))
        for line, table in enumerate(found.values()):
            y0 = 46 + line * (height + _GAP)
            corners = f"{x0},{y0 + height} {x0 + _SIDE},{y0 + height} {x0 + _SIDE / 2},{y0}"
            parts.append(f'<polygon points="{corners}" fill="none" stroke="#ccc"/>')
            radius = _radius(table)
            for weights, row in table.items():
                x = x0 + _SIDE * (weights[2] + weights[0] / 2)
                y = y0 + height * (1 - weights[0])
                share = (row[column] - low) / (high - low) if high > low else 0.5
                told = ", ".join(f"{t} {w:.2f}" for t, w in zip(tasks, weights))
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_shade(share)}">'
                    f"<title>{escape(told)}: {row[column]:.3f}</title></circle>"
                )
    for line, name in enumerate(found):
        y0 = 46 + line * (height + _GAP)
        parts.append(text(left - 14, y0 + height / 2, name, anchor="end"))
    radius = _radius(next(iter(found.values())))
    foot = 46 + height + radius + 10
    parts.append(text(left + _SIDE / 2 - radius - 3, 48, tasks[0], size=9, anchor="end"))
    parts.append(text(left, foot, tasks[1], size=9))
    parts.append(text(left + _SIDE, foot, tasks[2], size=9))
    width = left + len(columns) * (_SIDE + _GAP)
    return svg(width, 46 + len(found) * (height + _GAP) + 10, parts)


def scatter(found: Mapping[str, Table], tasks: Sequence[str]) -> str:
    """Preview against truth as SVG, a panel a kind."""
    truth, *kinds = found
    values = [v for table in found.values() for row in table.values() for v in row[: len(tasks)]]
    low, high = min(values), max(values)

    def at(value: float) -> float:
        return _PANEL * (value - low) / (high - low or 1.0)

    parts = []
    for index, kind in enumerate(kinds):
        x0, y0 = 50 + index * (_PANEL + _GAP), 30.0
        frame = f'width="{_PANEL}" height="{_PANEL}" fill="none" stroke="#999"'
        parts.append(f'<rect x="{x0}" y="{y0}" {frame}/>')
        parts.append(
            f'<line x1="{x0}" y1="{y0 + _PANEL}" x2="{x0 + _PANEL}" y2="{y0}" stroke="#bbb"/>'
        )
        parts.append(text(x0 + _PANEL / 2, 20, kind, bold=True))
        for weights, row in found[kind].items():
            if weights not in found[truth]:
                continue
            for task, colour in enumerate(_TASK_COLOURS[: len(tasks)]):
                x, y = at(found[truth][weights][task]), at(row[task])
                fill = colour if min(weights) > 0 else "none"
                parts.append(
                    f'<circle cx="{x0 + x:.1f}" cy="{y0 + _PANEL - y:.1f}" r="2.2" '
                    f'fill="{fill}" stroke="{colour}" stroke-width="0.8"/>'
                )
        parts.append(text(x0, y0 + _PANEL + 14, f"{low:.2f}", size=9))
        parts.append(text(x0 + _PANEL, y0 + _PANEL + 14, f"{high:.2f}", size=9))
        parts.append(text(x0 + _PANEL / 2, y0 + _PANEL + 14, "truth", size=9))
    parts.append(text(46, 30 + _PANEL / 2, "preview", size=9, anchor="end"))
    for task, (name, colour) in enumerate(zip(tasks, _TASK_COLOURS)):
        x, y = 56 + 110 * task, 30 + _PANEL + 36
        parts.append(f'<circle cx="{x}" cy="{y - 4:.1f}" r="4" fill="{colour}"/>')
        parts.append(text(x + 9, y, name, anchor="start"))
    return svg(50 + len(kinds) * (_PANEL + _GAP), 30 + _PANEL + 46, parts)


def _radius(table: Table) -> float:
    """Of a map's points, which don't touch."""
    smallest = min(w for weights in table for w in weights if w > 0)
    return 0.4 * _SIDE / max(1 / smallest, 2.0)


def _shade(share: float) -> str:
    """From dark blue to yellow, evenly in lightness."""
    place = share * (len(_SCALE) - 1)
    first = min(int(place), len(_SCALE) - 2)
    mixed = [a + (b - a) * (place - first) for a, b in zip(_SCALE[first], _SCALE[first + 1])]
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def text(
    x: float, y: float, words: str, *, size: int = 11, anchor: str = "middle", bold: bool = False
) -> str:
    """Words in a picture; y is their base line."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    """A picture of this size in pixels, with these elements on white."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def main(
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv and previews.csv.")],
    kinds: Annotated[
        str, typer.Option(help="Kinds of previews, separated by commas; default the first ones.")
    ] = "",
    debug: Debug = False,
) -> None:
    """Draw the tables of a study.

    Example: python studies/pictures.py studies/fashion/results --kinds "isotropic,diagonal"
    """

    def work() -> None:
        truths, tasks = read_points(results / "truth.csv")
        previews, _ = read_points(results / "previews.csv")
        found = tables(truths, previews)
        chosen = [k.strip() for k in kinds.split(",")] if kinds else [*found][1 : KINDS + 1]
        missing = [kind for kind in chosen if kind not in found]
        if missing:
            raise ValueError(f"no previews {missing[0]!r} there, only {', '.join([*found][1:])}")
        shown = {name: found[name] for name in ("truth", *chosen)}
        pictures = {"scatter.svg": scatter(shown, tasks)}
        if len(tasks) == 3:
            pictures["maps.svg"] = maps(shown, tasks)
        for name, picture in pictures.items():
            with atomic_path(results / name) as temporary:
                temporary.write_text(picture, encoding="utf-8")
            typer.echo(str(results / name))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
