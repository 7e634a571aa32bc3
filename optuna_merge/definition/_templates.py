"""What `optuna-merge init` writes: definitions with every choice explained in their comments."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

_FOLDER = resources.files("optuna_merge.definition") / "templates"

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        kind: (_FOLDER / f"{kind}.yaml").read_text(encoding="utf-8")
        for kind in ("text", "image", "language", "command")
    }
)
"""Definitions to start from by kind; each explains every choice in its comments."""
