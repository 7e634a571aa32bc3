"""The check of a YAML definition by pydantic, whose errors get their lines here."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from optuna_merge.definition._document import Document, Key
from optuna_merge.definition._sections import CommandStudy, LanguageStudy, Study

AnyStudy = Study | LanguageStudy | CommandStudy


def check(document: Document) -> AnyStudy:
    """The file's content, checked; the error has a line for everything that is wrong."""
    if not isinstance(document.value, dict):
        raise ValueError(
            f"{document.path}: expected a mapping with model, tasks and more; "
            f"`optuna-merge init` writes an example"
        )
    try:
        # As JSON: there lists may be tuples, and all else is strict.
        return _kind(document).model_validate_json(json.dumps(document.value))
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
                message = f"{message[0].lower()}{message[1:]}, got {found['input']!r:.60}"
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


def _kind(document: Document) -> type[AnyStudy]:
    """What the file is to be read as: of a program, or by its model's kind."""
    if "trainer" in document.value:
        return CommandStudy
    model = document.value.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    return LanguageStudy if kind == "language" else Study


def _names(document: Document, location: tuple[Key, ...]) -> list[str]:
    """The keys that may stand where an unknown one does."""
    sections: list[type[BaseModel]] = [_kind(document)]
    for key in _keys_of(document, location)[:-1]:
        if isinstance(key, str):
            fields = [found.model_fields[key] for found in sections if key in found.model_fields]
            sections = [section for field in fields for section in _sections_in(field.annotation)]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f"unknown key {key!r}; did you mean {close[0]!r}?"
    return f"unknown key {key!r}; there are {', '.join(known)}"
