"""Definitions as YAML files: the standard cases without Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna_merge.yaml_definition._template import TEMPLATE

if TYPE_CHECKING:
    from optuna_merge.yaml_definition._load import load_yaml

__all__ = ["TEMPLATE", "load_yaml"]


def __getattr__(name: str) -> Any:
    if name != "load_yaml":  # the template needs no torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optuna_merge.yaml_definition._load import load_yaml

    return load_yaml
