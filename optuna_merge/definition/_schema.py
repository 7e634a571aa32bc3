"""What may stand in a YAML definition; pydantic checks it, and its errors get their lines here."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from optuna_merge.definition._definition import PosteriorSettings
from optuna_merge.definition._document import Document, Key
from optuna_merge.definition._search_settings import SearchSettings
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.goals import Constraint
from optuna_merge.previews import PreviewSettings


class _Section(BaseModel):
    """No keys but those below; numbers are numbers, texts texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Settings(_Section):
    """A section that is one of the package's settings, checked by that as well."""

    @classmethod
    def made_of(cls, values: Any) -> Any:
        raise NotImplementedError

    @model_validator(mode="after")
    def _make(self) -> Any:
        self.made_of(self.given())
        return self

    def given(self) -> dict[str, Any]:
        """What the file says, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def make(self) -> Any:
        """The settings."""
        return self.made_of(self.given())


def _section(settings: type[Any]) -> type[_Settings]:
    """The section of a dataclass of settings: the same fields, and its own checks."""
    hints = get_type_hints(settings)
    columns: dict[str, Any] = {}
    for column in fields(settings):
        default: Any = column.default
        factory: Any = column.default_factory
        if default is MISSING:
            default = ... if factory is MISSING else factory()
        columns[column.name] = (hints[column.name], default)
    base = type(
        f"_{settings.__name__}",
        (_Settings,),
        {"made_of": classmethod(lambda cls, values: settings(**values)), "__module__": __name__},
    )
    return create_model(settings.__name__, __base__=base, **columns)


Finetuning = _section(FinetuneSettings)
Posterior = _section(PosteriorSettings)
Preview = _section(PreviewSettings)
Search = _section(SearchSettings)
OneConstraint = _section(Constraint)

Share = Annotated[float, Field(gt=0, lt=1)]


class Data(_Section):
    """Where examples are, for one task or as the default of all."""

    dataset: str | None = None
    config: str | None = None
    train: str | None = None
    validation: str | Share | None = None
    test: str | Share | None = None
    text: str | tuple[str, str] = "text"
    label: str = "label"
    max_length: Annotated[int, Field(ge=1)] = 128
    augment: bool = False
    metric: Literal["accuracy", "macro_f1", "matthews"] = "accuracy"


class OneTask(Data):
    """A task: a name, and what differs from `data`."""

    name: str
    head: str | None = None


class LastLayersOf(_Section):
    last_layers: Annotated[int, Field(ge=0)]


class MatchingOf(_Section):
    matching: str


class Lora(_Section):
    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    target_modules: str | tuple[str, ...] | None = None


class Model(_Section):
    """The pretrained body."""

    kind: Literal["text", "image"]
    name: str
    trainable: Literal["all"] | LastLayersOf | MatchingOf = "all"
    lora: Lora | None = None
    pretrained: bool = True
    batch_norm: Literal["pretrained", "reestimated"] = "pretrained"
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.kind == "image" and self.lora is not None:
            raise ValueError("lora is for models of kind: text")
        if self.kind == "text":
            for name in ("pretrained", "batch_norm"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name} is for models of kind: image")
        return self


class Study(_Section):
    """The whole file."""

    model: Model
    data: Data = Data()
    tasks: Annotated[list[OneTask], Field(min_length=1)]
    finetuning: Finetuning | None = None  # type: ignore[valid-type]
    posterior: Posterior | None = None  # type: ignore[valid-type]
    preview: Preview | None = None  # type: ignore[valid-type]
    search: Search | None = None  # type: ignore[valid-type]
    score: str = "mean"
    constraints: float | list[OneConstraint] | None = None  # type: ignore[valid-type]


def check(document: Document) -> Study:
    """The file's content, checked.

    Raises:
        ValueError: everything that is wrong, a line each with file, line and column.
    """
    if not isinstance(document.value, dict):
        raise ValueError(
            f"{document.path}: expected a mapping with model, tasks and more; "
            f"`optuna-merge init` writes an example"
        )
    try:
        # As JSON: there lists may be tuples, and all else is strict.
        return Study.model_validate_json(json.dumps(document.value))
    except TypeError as error:  # bytes, dates and sets, by tags such as !!binary
        raise ValueError(
            f"{document.path}: expected texts, numbers, lists and mappings alone: {error}"
        ) from None
    except ValidationError as error:
        raise ValueError("\n".join(_told(document, error))) from None


def _told(document: Document, error: ValidationError) -> list[str]:
    """One line per place; of a union's alternatives all are named there."""
    lines: dict[str, dict[str, None]] = {}
    every = [(_keys_of(document, e["loc"]), e) for e in error.errors(include_url=False)]
    inner = [keys for keys, found in every if not found["type"].endswith("_type")]
    for keys, found in every:
        # An alternative that the file doesn't mean is of no interest beside the one that it does.
        if found["type"].endswith("_type") and any(k[: len(keys)] == keys for k in inner):
            continue
        kind, message = found["type"], found["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            where = document.where(keys, key=True)
            message = _unknown(str(found["loc"][-1]), _names(document, found["loc"]))
        elif kind == "missing":
            where = document.where(keys)
            message = f"the key {found['loc'][-1]!r} is missing"
        else:
            if kind == "value_error":
                keys = _named_in(document, keys, message)
            where = document.where(keys)
            if kind != "value_error":
                message = f"{message[0].lower()}{message[1:]}, got {_short(found['input'])}"
        label = ".".join(str(k) if isinstance(k, str) else f"[{k}]" for k in keys)
        start = f"{where}: {label}: " if label else f"{where}: "
        lines.setdefault(start.replace(".[", "["), {})[message] = None
    return [start + "; or ".join(messages) for start, messages in lines.items()]


def _keys_of(document: Document, location: tuple[Key, ...]) -> tuple[Key, ...]:
    """The keys in the file: pydantic's locations name the alternatives of unions, too."""
    keys: tuple[Key, ...] = ()
    for key in location:
        if (*keys, key) in document.values:
            keys = (*keys, key)
    return keys


def _named_in(document: Document, keys: tuple[Key, ...], message: str) -> tuple[Key, ...]:
    """A section's check complains of one of its keys: that, if the message begins with it."""
    first = re.match(r"\w+", message)
    place = (*keys, first.group() if first else "")
    return place if place in document.values else keys


_SECTIONS: dict[str, type[BaseModel]] = {
    "model": Model,
    "data": Data,
    "tasks": OneTask,
    "finetuning": Finetuning,
    "posterior": Posterior,
    "preview": Preview,
    "search": Search,
    "constraints": OneConstraint,
}


def _names(document: Document, location: tuple[Key, ...]) -> list[str]:
    """The keys that may stand where an unknown one does."""
    keys = _keys_of(document, location)
    if len(keys) == 1:
        return list(Study.model_fields)
    nested: dict[str, type[BaseModel]] = {"lora": Lora, "trainable": MatchingOf}
    section = _SECTIONS[str(keys[0])]
    if len(keys) == 3:
        section = nested.get(str(keys[1]), section)
    found = list(section.model_fields)
    return [*found, "last_layers"] if section is MatchingOf else found


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f"unknown key {key!r}; did you mean {close[0]!r}?"
    return f"unknown key {key!r}; there are {', '.join(known)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
