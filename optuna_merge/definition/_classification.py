"""Tasks and model of a YAML definition of text or image classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna_merge.definition._builder import Builder, adapter, trainable
from optuna_merge.definition._data import (
    SPLITS,
    Examples,
    common_names,
    read_examples,
    reason_of,
)
from optuna_merge.definition._sections import Data, OneTask, Study
from optuna_merge.models import MultitaskModel, from_timm, from_transformers, timm_body
from optuna_merge.tasks import (
    Task,
    accuracy,
    fingerprint,
    image_task,
    macro_f1,
    matthews,
    text_task,
)

_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews}


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


class ClassificationBuilder(Builder[Study]):
    """Text and image classification: a head a task, or shared ones."""

    def build(self) -> tuple[list[Task], MultitaskModel]:
        """The tasks, and the model around its body.

        Raises:
            ValueError: something is wrong with the data or the model; the message has its line.
        """
        self.check_names()
        specs = self.study.tasks
        data = [self._data(spec) for spec in specs]
        examples = [
            read_examples(
                spec.name, found, self.folder, images=self._images, fail=self.fail(index)
            )
            for index, (spec, found) in enumerate(zip(specs, data))
        ]
        heads: dict[str, list[Examples]] = {}
        for spec, found in zip(specs, examples):
            heads.setdefault(spec.head or spec.name, []).append(found)
        names = [common_names(heads[spec.head or spec.name]) for spec in specs]
        for index, classes in enumerate(names):
            if len(classes) < 2:
                raise self.fail(index)(
                    "label",
                    f"task {specs[index].name!r}: all training rows are of the class "
                    f"{classes[0]!r}; expected two classes or more, or there is nothing to learn",
                )
        body = self._body()
        reader = self._transforms(body) if self._images else self.tokenizer(body)
        make = self._image_task if self._images else self._text_task
        tasks = []
        for index, (spec, where) in enumerate(zip(specs, data)):
            options = {"head": spec.head, "metrics": (_METRICS[where.metric],)}
            try:
                tasks.append(
                    make(spec.name, where, examples[index], names[index], reader, options)
                )
            except Exception as error:  # of tokenizers, datasets and readers of images
                raise self.fail(index)("", reason_of(error)) from error
            if self._images:
                _read_all(tasks[-1], self.fail(index))
        try:
            return tasks, self._model(body, tasks)
        except Exception as error:  # of transformers, timm, peft and readers of their files
            raise self.failed_model(error) from error

    @property
    def _images(self) -> bool:
        return bool(self.study.model.kind == "image")

    def _data(self, spec: OneTask) -> Data:
        """The task's own settings over those of all."""
        shared = {k: getattr(self.study.data, k) for k in self.study.data.model_fields_set}
        own = {k: getattr(spec, k) for k in spec.model_fields_set & Data.model_fields.keys()}
        return Data(**(shared | own))

    def _body(self) -> Any:
        """A name or folder for transformers, a module for timm, whose images depend on it."""
        model = self.study.model
        if not self._images:
            return self.body()
        try:
            return timm_body(model.name, pretrained=model.pretrained, seed=model.seed)
        except Exception as error:  # as timm's, and those of files of weights
            raise self.failed_model(error) from error

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
        spec = self.study.model
        options: dict[str, Any] = {"trainable": trainable(spec), "seed": spec.seed}
        if self._images:
            return from_timm(body, tasks, batch_norm=spec.batch_norm, **options)
        if spec.lora is not None:
            options["adapter"] = adapter(spec)
        return from_transformers(body, tasks, **options)


LABEL = "__label__"
"""Column of the numbered labels; no column of a text has such a name."""
