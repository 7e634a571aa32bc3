"""From a YAML file to the same `StudyDefinition` that Python would make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna_merge.definition._classification import ClassificationBuilder
from optuna_merge.definition._command import CommandDefinition
from optuna_merge.definition._data import beside
from optuna_merge.definition._definition import StudyDefinition, check_task_names
from optuna_merge.definition._document import Document, read_document
from optuna_merge.definition._language import LanguageBuilder
from optuna_merge.definition._runs import given_runs
from optuna_merge.definition._schema import AnyStudy, check
from optuna_merge.definition._sections import CommandStudy, LanguageStudy, UnitOf
from optuna_merge.goals import PARETO, is_to_be_maximised, make_constraints, make_score


def load_yaml(path: str | os.PathLike[str]) -> StudyDefinition:
    """The definition that a YAML file describes; `optuna-merge init` writes one to start from.

    Text classification and language models with transformers, from CSV, TSV, JSON or Parquet files
    or a dataset of the hub, and image folders with timm. Paths are relative to the file's folder.
    What the keys mean is in this folder's README; for anything else write the definition in
    Python.

    Labels may be texts: classes are numbered in the order of numbers, or else of letters. They
    mean the same in every format: in a column of numbers 1.0 is 1, and in one of truth values
    `true` is True. Missing is what is null (or not in an object of JSON), NaN, empty or blank, and
    nan, NA, N/A, null or None among numbers. A row without a label is left out, a missing text is
    an empty one. Rows of a share for validation or test whose class no training row has are left
    out, with a warning.

    Args:
        path: The file.

    Raises:
        ValueError: something in the file is wrong; a line per error, with file, line and column.
        OSError: the file can't be read.
    """
    found = read_definition(path)
    if isinstance(found, CommandDefinition):
        raise ValueError(
            f"{os.fspath(path)} describes a study of a command, which is no StudyDefinition; the "
            f"commands take it (optuna-merge optimize), and in Python there is from_command"
        )
    return found


def read_definition(path: str | os.PathLike[str]) -> StudyDefinition | CommandDefinition:
    """What a YAML file describes, a program that trains included; see `load_yaml`."""
    document = read_document(Path(path))
    study = check(document)
    more: dict[str, Any] = {"score": study.score}
    search: Any = study.search
    if search is not None:
        more["search"] = search.make()
    constraints: Any = study.constraints
    if isinstance(constraints, list):
        constraints = tuple(each.make() for each in constraints)
    if constraints is not None:
        more["constraints"] = constraints
    if study.runs:
        more["runs"] = _runs(document, study)
    if isinstance(study, CommandStudy):
        return _command(document, study, more)
    if isinstance(study, LanguageStudy):
        tasks, model = LanguageBuilder(document, study).build()
    else:
        tasks, model = ClassificationBuilder(document, study).build()
    for name in ("finetuning", "posterior", "preview"):
        section: Any = getattr(study, name)
        if section is not None:
            more[name] = section.make()
    with _lines(document):
        return StudyDefinition(tasks=tasks, model=model, **more)


def _runs(document: Document, study: AnyStudy) -> dict[str, Path]:
    """Given checkpoints; paths are relative to the file's folder."""
    names = [task if isinstance(task, str) else task.name for task in study.tasks]
    found = {}
    for task, path in study.runs.items():
        found[task] = beside(document.path.absolute().parent, path)
        try:
            given_runs({task: found[task]}, names)
        except (ValueError, OSError) as error:
            raise ValueError(f"{document.where(['runs', task])}: {error}") from error
    return found


def _command(document: Document, study: CommandStudy, more: dict[str, Any]) -> CommandDefinition:
    spec, names = study.trainer, tuple(study.tasks)
    given = spec.given() | {"runs": more.pop("runs", {})}
    del given["kind"]
    upwards = is_to_be_maximised(spec.metric, given.pop("greater_is_better", None))
    if isinstance(spec.unit, UnitOf):
        given["unit"] = spec.unit.model_dump(exclude_none=True)
    with _lines(document):
        check_task_names(names)
        make_constraints(more.get("constraints", ()), names)
        if study.score != PARETO:
            make_score(study.score, names)
        return CommandDefinition(names, given, upwards, **more)


@contextmanager
def _lines(document: Document) -> Iterator[None]:
    """Errors of the definition as a whole name the line of what they complain of."""
    try:
        yield
    except ValueError as error:
        named = (k for k in ("score", "constraints", "runs") if k.rstrip("s") in str(error))
        raise ValueError(f"{document.where(tuple(named)[:1])}: {error}") from error
