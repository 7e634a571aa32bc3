"""What was exported, as the file beside it says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna_merge._version import __version__

Metrics = dict[str, dict[str, dict[str, float | None]]]
"""By task, by split and by metric."""


@dataclass(frozen=True)
class ExportedModel:
    """One model of an export: its folder within it ("." is all), its format, and whom it serves.

    `loader` is the class of transformers that loads it, `outputs` the size of its head.
    """

    folder: str
    format: str
    loader: str | None
    head: str
    outputs: int
    tasks: tuple[str, ...]
    label_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: Where it is.
        kind: "finetune", or "merge", which was not trained.
        trial: The trial whose model it is; None for weights that were given.
        study: The study's name, if one was asked.
        weights: The task weights.
        metrics: By task, by split and by metric; of finetunes also "test", as of the report.
        costs: Training steps and seconds, by what they were spent on.
        models: The models.
        without: Tasks without weight, whose heads were never trained, so that they have no model.
        fingerprint: Of the study's definition.
    """

    folder: Path
    kind: str
    trial: int | None
    study: str | None
    weights: dict[str, float]
    metrics: Metrics
    costs: dict[str, float]
    models: tuple[ExportedModel, ...]
    without: tuple[str, ...]
    fingerprint: str

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the package's version."""
        return {"optuna_merge": __version__, **asdict(self), "folder": str(self.folder)}
