"""Where the finetunes of a definition are, for whoever clears away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting._fit import finetune_store


@dataclass(frozen=True)
class FinetuneFiles:
    """The files and folders of one finetune, which may be there or not.

    Attributes:
        folder: Where it trains; who works in it holds the lock on `lock` there.
        model: What came of it.
        checkpoints: What only a finetune that goes on needs.
    """

    folder: Path
    model: Path
    checkpoints: Sequence[Path]


class Finetunes(Protocol):
    """All finetunes of a definition."""

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, in order."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """The definition as JSON values."""

    def finetune_files(self, weights: Mapping[str, float], *, repeat: int = 0) -> FinetuneFiles:
        """Of the finetune at these task weights."""


class DefinedFinetunes:
    """Those of a `StudyDefinition` (which needs no fit), by the library's own training loop."""

    def __init__(self, definition: StudyDefinition, workdir: Path) -> None:
        self.names, self.parts = definition.names, definition.describe()
        self._store, self._settings = finetune_store(definition, workdir), definition.finetuning

    def finetune_files(self, weights: Mapping[str, float], *, repeat: int = 0) -> FinetuneFiles:
        """Of the finetune at these task weights."""
        path = self._store.path(weights, self._settings.repeated(repeat))
        return FinetuneFiles(path.parent, path, [path.with_name("checkpoint.safetensors")])
