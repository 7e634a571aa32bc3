"""What all builders of a YAML definition share: a task's own settings, errors with their line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from optuna_merge.definition._data import beside, reason_of
from optuna_merge.definition._document import Document
from optuna_merge.definition._sections import (
    Data,
    LanguageData,
    LanguageModelOf,
    LanguageStudy,
    LastLayersOf,
    MatchingOf,
    Model,
    Study,
)
from optuna_merge.models import LastLayers, Matching, Trainable
from optuna_merge.tasks import check_name, load_tokenizer

S = TypeVar("S", Study, LanguageStudy)
D = TypeVar("D", Data, LanguageData)


class Builder(Generic[S]):
    """Makes tasks and model of a file, whose content was checked."""

    def __init__(self, document: Document, study: S) -> None:
        self.document = document
        self.study: S = study
        self.folder = document.path.absolute().parent

    def fail(self, index: int) -> Callable[[str, str], ValueError]:
        """An error of one task: it stands where its key does, in the task or in `data`."""

        def fail(key: str, message: str) -> ValueError:
            keys: tuple[Any, ...] = ("tasks", index, key)
            if keys not in self.document.values and ("data", key) in self.document.values:
                keys = ("data", key)
            return ValueError(f"{self.document.where(keys)}: {message}")

        return fail

    def settings(self, task: Any, kind: type[D]) -> D:
        """A task's own settings over those of all."""
        shared = self.study.data.given()
        own = {k: v for k, v in task.given().items() if k in kind.model_fields}
        return kind(**(shared | own))

    def failed_model(self, error: Exception) -> ValueError:
        """An error of the model's name, or of its files."""
        where, name = self.document.where(["model", "name"]), self.study.model.name
        return ValueError(f"{where}: model {name!r}: {reason_of(error)}")

    def check_names(self) -> None:
        """See that names of tasks may be names, before data are read."""
        for index, task in enumerate(self.study.tasks):
            try:
                check_name("task", task.name)
            except ValueError as error:
                raise self.fail(index)("", str(error)) from error

    def body(self) -> str:
        """The body's folder beside the file, or else its name on the hub."""
        found = beside(self.folder, self.study.model.name)
        return str(found) if found.is_dir() else self.study.model.name

    def tokenizer(self, body: str) -> Any:
        """The tokenizer of a body."""
        try:
            return load_tokenizer(body)
        except Exception as error:  # of transformers, and of readers of its files
            raise self.failed_model(error) from error


def trainable(spec: Model | LanguageModelOf) -> Trainable:
    """What is trained of the body."""
    if isinstance(spec.trainable, LastLayersOf):
        return LastLayers(spec.trainable.last_layers)
    if isinstance(spec.trainable, MatchingOf):
        return Matching(spec.trainable.matching)
    return "all"


def adapter(spec: Model | LanguageModelOf) -> Any:
    """peft's settings of the adapters; None: there are none."""
    if spec.lora is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("lora needs peft: pip install 'optuna-merge[peft]'") from error
    modules = spec.lora.target_modules
    return LoraConfig(
        r=spec.lora.r,
        lora_alpha=spec.lora.alpha,
        target_modules=list(modules) if isinstance(modules, tuple) else modules,
    )
