"""Tasks and model of a YAML definition of text or image classification."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from optuna_merge.definition._builder import Builder, adapter, trainable
from optuna_merge.definition._data import SPLITS, Examples, common_names, read_examples, reason_of
from optuna_merge.definition._sections import Data, Study
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
    """Read all of a task's images, so that a broken one is named now, with its line."""
    for split in SPLITS:
        if getattr(task, split) is not None:
            try:
                fingerprint(task.data(split))
            except Exception as error:
                raise fail(split, reason_of(error)) from error


class ClassificationBuilder(Builder[Study]):
    """Text and image classification: a head a task, or shared ones."""

    def build(self) -> tuple[list[Task], MultitaskModel]:
        """The tasks, and the model around its body; errors have their lines."""
        self.check_names()
        specs = self.study.tasks
        data = [self.settings(spec, Data) for spec in specs]
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
        tasks = []
        for index, (spec, where) in enumerate(zip(specs, data)):
            metrics = (_METRICS[where.metric],)
            try:
                make = self._task(spec.name, where, examples[index], names[index], reader)
                tasks.append(make(label=LABEL, head=spec.head, metrics=metrics))
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

    def _task(
        self, name: str, data: Data, examples: Examples, names: tuple[str, ...], reader: Any
    ) -> Callable[..., Task]:
        from datasets import Image, Value

        if self._images:
            transform, augmented, mode = reader
            columns: dict[str, Any] = {"image": Image(mode=mode)}
            splits = _datasets(examples, names, columns, lambda row, column: row[column])
            training = augmented if data.augment else None
            return partial(image_task, name, splits, transform, train_transform=training)
        texts = (data.text,) if isinstance(data.text, str) else data.text
        columns = {column: Value("string") for column in texts}
        splits = _datasets(
            examples, names, columns, lambda row, c: "" if row[c] is None else str(row[c])
        )
        return partial(text_task, name, splits, reader, text=data.text, max_length=data.max_length)

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
