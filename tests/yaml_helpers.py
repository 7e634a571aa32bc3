"""YAML definitions in a folder, and what they must equal."""

from __future__ import annotations

from pathlib import Path

from optuna_merge import StudyDefinition


def written(folder: Path, text: str) -> Path:
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def same_study(first: StudyDefinition, second: StudyDefinition) -> None:
    assert first.describe() == second.describe()
    assert first.names == second.names
    assert [t.label_names for t in first.tasks] == [t.label_names for t in second.tasks]
    assert first.finetuning == second.finetuning
    assert first.constraints == second.constraints
