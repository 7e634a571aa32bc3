"""From a YAML file to the same `StudyDefinition` that Python would make."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna_merge.definition._data import (
    SPLITS,
    Examples,
    common_names,
    read_examples,
    reason_of,
)
from optuna_merge.definition._definition import StudyDefinition
from optuna_merge.definition._document import Document, read_document
from optuna_merge.definition._schema import (
    Data,
    LastLayersOf,
    MatchingOf,
    Model,
    OneTask,
    Study,
    check,
)
from optuna_merge.models import (
    LastLayers,
    Matching,
    MultitaskModel,
    Trainable,
    from_timm,
    from_transformers,
    timm_body,
)
from optuna_merge.tasks import (
    Task,
    accuracy,
    fingerprint,
    image_task,
    load_tokenizer,
    macro_f1,
    matthews,
    text_task,
)

_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews}


def load_yaml(path: str | os.PathLike[str]) -> StudyDefinition:
    """The definition that a YAML file describes; `optuna-merge init` writes one to start from.

    Text classification with transformers, from CSV, TSV or JSON files or a dataset of the hub, and
    image folders with timm. Paths are relative to the file's folder. For anything else write the
    definition in Python.

    Labels may be texts: classes are numbered in the order of numbers, or else of letters. They
    mean the same in every format: in a column of numbers 1.0 is 1, and in one of truth values
    `true` is True. Missing is what is null (or not in an object of JSON), NaN, empty or blank, and
    a `nan` among numbers; words such as NA are words. A row without a label is left out, a missing
    text is an empty one.

    Tables are UTF-8, with or without a byte order mark. Names of files and folders that begin with
    a dot are passed over among images. Images of 16 bits are scaled to 8, transparency is left
    out, orientation as cameras note it is heeded, and of an animation the first picture is taken.

    Args:
        path: The file.

    Raises:
        ValueError: something in the file is wrong; a line per error, with file, line and column.
        OSError: the file can't be read.
    """
    document = read_document(Path(path))
    study = check(document)
    tasks, model = _Builder(document, study).build()
    more: dict[str, Any] = {}
    for name in ("finetuning", "posterior", "preview", "search"):
        section: Any = getattr(study, name)
        if section is not None:
            more[name] = section.make()
    constraints: Any = study.constraints
    if isinstance(constraints, list):
        constraints = tuple(each.make() for each in constraints)
    if constraints is not None:
        more["constraints"] = constraints
    try:
        return StudyDefinition(tasks=tasks, model=model, score=study.score, **more)
    except ValueError as error:
        named = (k for k in ("score", "constraints") if k.rstrip("s") in str(error))
        raise ValueError(f"{document.where(tuple(named)[:1])}: {error}") from error


def _datasets(
    examples: Examples,
    names: tuple[str, ...],
    columns: dict[str, Any],
    value: Callable[[Any, str], Any],
) -> dict[str, Any]:
    """The splits as datasets: `value` of each row and column, and the label's number."""
    from datasets import ClassLabel, Dataset, Features

    features = Features(columns | {LABEL: ClassLabel(names=names)})
    return {
        split: Dataset.from_dict(
            {column: [value(row, column) for row in rows] for column in columns}
            | {LABEL: [names.index(label) for label in examples.labels[split]]},
            features=features,
        )
        for split, rows in examples.rows.items()
    }


def _read_all(task: Task, fail: Callable[[str, str], ValueError]) -> None:
    """Read all of a task's images, so that a broken one is named now, with its line.

    Their hash is what the definition is described by later: they are not read for it again.
    """
    for split in SPLITS:
        if getattr(task, split) is not None:
            try:
                fingerprint(task.data(split))
            except Exception as error:
                raise fail(split, reason_of(error)) from error


class _Builder:
    def __init__(self, document: Document, study: Study) -> None:
        self._document = document
        self._study = study
        self._folder = document.path.absolute().parent
        self._images = study.model.kind == "image"

    def build(self) -> tuple[list[Task], MultitaskModel]:
        specs = self._study.tasks
        data = [self._data(spec) for spec in specs]
        examples = [
            read_examples(
                spec.name, found, self._folder, images=self._images, fail=self._fail(index)
            )
            for index, (spec, found) in enumerate(zip(specs, data))
        ]
        heads: dict[str, list[Examples]] = {}
        for spec, found in zip(specs, examples):
            heads.setdefault(spec.head or spec.name, []).append(found)
        names = [common_names(heads[spec.head or spec.name]) for spec in specs]
        body = self._body()
        reader = self._transforms(body) if self._images else self._tokenizer(body)
        make = self._image_task if self._images else self._text_task
        tasks = []
        for index, (spec, where) in enumerate(zip(specs, data)):
            options = {"head": spec.head, "metrics": (_METRICS[where.metric],)}
            try:
                tasks.append(
                    make(spec.name, where, examples[index], names[index], reader, options)
                )
            except Exception as error:  # of tokenizers, datasets and readers of images
                raise self._fail(index)("", reason_of(error)) from error
            if self._images:
                _read_all(tasks[-1], self._fail(index))
        try:
            return tasks, self._model(body, tasks)
        except Exception as error:  # of transformers, timm, peft and readers of their files
            raise self._failed_model(error) from error

    def _data(self, spec: OneTask) -> Data:
        """The task's own settings over those of all."""
        shared = {k: getattr(self._study.data, k) for k in self._study.data.model_fields_set}
        own = {k: getattr(spec, k) for k in spec.model_fields_set & Data.model_fields.keys()}
        return Data(**(shared | own))

    def _fail(self, index: int) -> Callable[[str, str], ValueError]:
        """An error of one task: it stands where its key does, in the task or in `data`."""

        def fail(key: str, message: str) -> ValueError:
            keys: tuple[Any, ...] = ("tasks", index, key)
            if keys not in self._document.values and ("data", key) in self._document.values:
                keys = ("data", key)
            return ValueError(f"{self._document.where(keys)}: {message}")

        return fail

    def _failed_model(self, error: Exception) -> ValueError:
        where, name = self._document.where(["model", "name"]), self._study.model.name
        return ValueError(f"{where}: model {name!r}: {reason_of(error)}")

    def _body(self) -> Any:
        """A name or folder for transformers, a module for timm, whose images depend on it."""
        model = self._study.model
        if not self._images:
            local = self._folder / model.name
            return str(local) if local.is_dir() else model.name
        try:
            return timm_body(model.name, pretrained=model.pretrained)
        except Exception as error:  # as timm's, and those of files of weights
            raise self._failed_model(error) from error

    def _tokenizer(self, body: str) -> Any:
        try:
            return load_tokenizer(body)
        except Exception as error:
            raise self._failed_model(error) from error

    def _transforms(self, body: Any) -> tuple[Any, Any, str]:
        """For validation and for augmented training, and the mode of the images."""
        from timm.data import create_transform, resolve_data_config

        config = resolve_data_config({}, model=body)
        mode = "L" if config["input_size"][0] == 1 else "RGB"
        return create_transform(**config), create_transform(**config, is_training=True), mode

    def _text_task(
        self,
        name: str,
        data: Data,
        examples: Examples,
        names: tuple[str, ...],
        reader: Any,
        options: dict[str, Any],
    ) -> Task:
        from datasets import Value

        columns = (data.text,) if isinstance(data.text, str) else data.text
        splits = _datasets(
            examples,
            names,
            {c: Value("string") for c in columns},
            lambda row, c: "" if row[c] is None else str(row[c]),
        )
        return text_task(
            name,
            splits,
            reader,
            text=data.text,
            label=LABEL,
            max_length=data.max_length,
            **options,
        )

    def _image_task(
        self,
        name: str,
        data: Data,
        examples: Examples,
        names: tuple[str, ...],
        reader: Any,
        options: dict[str, Any],
    ) -> Task:
        from datasets import Image

        transform, augmented, mode = reader
        splits = _datasets(
            examples, names, {"image": Image(mode=mode)}, lambda row, column: row[column]
        )
        return image_task(
            name,
            splits,
            transform,
            train_transform=augmented if data.augment else None,
            label=LABEL,
            **options,
        )

    def _model(self, body: Any, tasks: list[Task]) -> MultitaskModel:
        spec = self._study.model
        options: dict[str, Any] = {"trainable": _trainable(spec), "seed": spec.seed}
        if self._images:
            return from_timm(body, tasks, batch_norm=spec.batch_norm, **options)
        if spec.lora is not None:
            try:
                from peft import LoraConfig
            except ImportError as error:
                raise ImportError("lora needs peft: pip install 'optuna-merge[peft]'") from error
            modules = spec.lora.target_modules
            options["adapter"] = LoraConfig(
                r=spec.lora.r,
                lora_alpha=spec.lora.alpha,
                target_modules=list(modules) if isinstance(modules, tuple) else modules,
            )
        return from_transformers(body, tasks, **options)


LABEL = "__label__"
"""Column of the numbered labels; no column of a text has such a name."""


def _trainable(spec: Model) -> Trainable:
    if isinstance(spec.trainable, LastLayersOf):
        return LastLayers(spec.trainable.last_layers)
    if isinstance(spec.trainable, MatchingOf):
        return Matching(spec.trainable.matching)
    return "all"
