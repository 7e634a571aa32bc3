"""What a folder of tables has already: `families.py --extend` makes only what it lacks."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna_merge.definition import StudyDefinition
from studies.preview_quality import TRUTH, Point, Weights, as_written, read_points

MADE_OF = ("tasks", "body", "finetuning", "posterior")
"""Parts of a definition that the tables depend on."""

TaskWeights = dict[str, float]


@dataclass(frozen=True)
class Known:
    """What is in a folder of tables; nothing, if the tables are made anew.

    Attributes:
        points: By kind (`TRUTH` for finetunes), seed and weights as written.
        costs: The rows of cost.csv by family and posterior seed.
        about: run.json.
    """

    points: dict[tuple[str, int, Weights], list[Point]] = field(default_factory=dict)
    costs: dict[tuple[str, int], list[object]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, definition: StudyDefinition) -> Known:
        """The tables of a folder, which this definition goes on with.

        Raises:
            ValueError: the tables were made of something else.
        """
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        new = json.loads(json.dumps(definition.describe()))
        for part in MADE_OF:
            if about["definition"].get(part) != new.get(part):
                raise ValueError(
                    f"the tables in {folder} were made with other {part} than this definition "
                    f"has; give --results another folder, or leave out --extend to make them anew"
                )
        points = defaultdict(list)
        for name in ("truth.csv", "previews.csv"):
            for p in read_points(folder / name)[0]:
                points[_kind(p), p.seed, as_written(p.weights)].append(p)
        with (folder / "cost.csv").open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        costs: dict[tuple[str, int], list[object]] = {
            (row[0], int(row[1])): [*row] for row in rows
        }
        return cls(dict(points), costs, about)

    def missing(
        self, kind: str, seed: int, weightings: Sequence[TaskWeights]
    ) -> list[TaskWeights]:
        """The weightings at which there is no point of this kind and seed."""
        return [w for w in weightings if (kind, seed, as_written(w.values())) not in self.points]

    def truths(self, new: Sequence[Point], weightings: Sequence[TaskWeights]) -> list[Point]:
        """Old and new finetunes, weights by weights."""
        place = _places(weightings)
        old = self._old(lambda kind: kind == TRUTH)
        return sorted(
            [*old, *new], key=lambda p: (place.get(as_written(p.weights), -1), p.seed, p.rung)
        )

    def previews(self, new: Sequence[Point], weightings: Sequence[TaskWeights]) -> list[Point]:
        """Old and new previews, kind by kind."""
        place = _places(weightings)
        every = [*self._old(lambda kind: kind != TRUTH), *new]
        kinds = list(dict.fromkeys(p.kind for p in every))
        return sorted(
            every,
            key=lambda p: (kinds.index(p.kind), p.seed, place.get(as_written(p.weights), -1)),
        )

    def _old(self, wanted: Callable[[str], bool]) -> list[Point]:
        return [p for (kind, *_), found in self.points.items() if wanted(kind) for p in found]


def _kind(p: Point) -> str:
    return TRUTH if p.family == TRUTH else p.kind


def _places(weightings: Sequence[TaskWeights]) -> dict[Weights, int]:
    return {as_written(w.values()): i for i, w in enumerate(weightings)}
