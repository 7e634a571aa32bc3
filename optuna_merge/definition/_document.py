"""A YAML file as plain values that remember where in the file they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Key = str | int
Place = tuple[int, int]
"""Line and column, counted from 1."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values only, by YAML 1.2's rules: `no` is a word, and 5e-5 a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Document:
    """Values of a file, and where keys and values stand, by path of keys and places in lists."""

    path: Path
    value: Any
    keys: dict[tuple[Key, ...], Place] = field(default_factory=dict)
    values: dict[tuple[Key, ...], Place] = field(default_factory=dict)

    def where(self, keys: Sequence[Any], *, key: bool = False) -> str:
        """`FILE:LINE:COLUMN` of the value (or `key`) at the keys, or of the nearest above it."""
        path = tuple(keys)
        while path and path not in self.values:
            path = path[:-1]
        line, column = (self.keys if key else self.values).get(path, (1, 1))
        return f"{self.path}:{line}:{column}"


def read_document(path: Path) -> Document:
    """Read a YAML file; errors have line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"{path}:{line}: not YAML: the sign {chr(error.character)!r} may not stand in it"
        ) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(path, None)
        document = Document(path, None)
        for keys, key_node, value_node in _walk((), node, node):
            if keys in document.values:
                raise ValueError(
                    f"{path}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}: "
                    f"the key {keys[-1]!r} stands here a second time; the first is at line "
                    f"{document.keys[keys][0]}"
                )
            document.keys[keys] = _place(key_node)
            document.values[keys] = _place(value_node)
        return Document(path, _constructed(path, loader, node), document.keys, document.values)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
        raise ValueError(f"{path}{place}: not YAML: {error.problem}") from None
    except RecursionError:
        raise ValueError(
            f"{path}: a value contains itself, by an anchor (&) and an alias (*)"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    finally:
        loader.dispose()


def _constructed(path: Path, loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError):
        raise
    except Exception as error:  # `!!int x`, say: by Python's own conversions
        raise ValueError(f"{path}: not YAML: a value does not fit its tag (!!): {error}") from None


def _walk(
    keys: tuple[Key, ...], key_node: yaml.Node, node: yaml.Node
) -> Iterator[tuple[tuple[Key, ...], yaml.Node, yaml.Node]]:
    yield keys, key_node, node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _walk((*keys, str(key.value)), key, value)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk((*keys, index), item, item)


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1
