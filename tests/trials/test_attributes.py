"""The schema of user attributes: complete, unambiguous, and the one place that spells names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import optuna_merge
from optuna_merge.trials import (
    ATTRIBUTES,
    BEGUN,
    QUEUED,
    UNIFORM,
    WITHDRAWN,
    _attributes,
    check_task_names,
    names_of_tasks,
    names_of_trials,
)

PACKAGE = Path(optuna_merge.__file__).parent
SCHEMA = Path("trials/_attributes.py")
NAMES = [attribute.name for attribute in ATTRIBUTES]
VALUES = {QUEUED, BEGUN, WITHDRAWN, UNIFORM}


def test_every_name_stands_once_and_has_a_constant() -> None:
    assert len(set(NAMES)) == len(NAMES)
    constants = {n: value for n, value in vars(_attributes).items() if re.match("[A-Z_]+$", n)}
    spelt = [v for n, v in constants.items() if isinstance(v, str) and not n.startswith("_")]
    assert sorted(spelt) == sorted([*NAMES, *VALUES])
    assert {attribute.of for attribute in ATTRIBUTES} == {"study", "trial", "fit"}


def tasks_that_make(attribute: str) -> Iterator[str]:
    """The task names that make this attribute."""
    for template in names_of_tasks():
        before, after = template.split("{task}")
        found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", attribute)
        if found is not None:
            yield found[1]


def test_no_task_may_make_an_attribute_of_trials() -> None:
    tasks = {task for attribute in names_of_trials() for task in tasks_that_make(attribute)}
    assert tasks == {"seconds", "taken_from", "at_anchor", "reused"}
    for task in tasks:
        with pytest.raises(ValueError, match=f"'{task}' makes '.*{task}', an attribute that tri"):
            check_task_names([task])


WRITERS = {"set_user_attr": 0, "set_trial_user_attr": 2}
"""Functions that take an attribute's name -> at which position."""
PREFIXES = tuple(name.partition("{")[0] for name in NAMES if "{" in name)
PATTERNS = [
    re.compile("".join(".+" if p.startswith("{") else re.escape(p) for p in parts))
    for parts in (re.split(r"(\{\w*\})", name) for name in NAMES)
]


def text_of(node: ast.AST | None) -> str | None:
    """A literal text, with `{}` for what an f-string fills in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in node.values)
    return None


def are_user_attrs(node: ast.AST | None) -> bool:
    """Whether something is called `attrs`, `user_attrs` or the like."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return "attrs" in name and "system_attrs" not in name


def keys(node: ast.AST | None) -> Iterator[ast.AST | None]:
    """The keys of a dictionary that is written out, or of several that are put together."""
    if isinstance(node, ast.Dict):
        yield from node.keys
    elif isinstance(node, ast.DictComp):
        yield node.key
    elif isinstance(node, ast.BinOp):
        yield from keys(node.left)
        yield from keys(node.right)
    elif isinstance(node, ast.IfExp):
        yield from keys(node.body)
        yield from keys(node.orelse)


def attribute_keys(node: ast.AST) -> Iterator[ast.AST | None]:
    """What stands in the place of an attribute's name in this node of a program."""
    if isinstance(node, ast.Subscript) and are_user_attrs(node.value):
        yield node.slice
    elif isinstance(node, ast.Compare):
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators
        ):
            if isinstance(operator, (ast.In, ast.NotIn)) and are_user_attrs(right):
                yield left
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(map(are_user_attrs, targets)):
            yield from keys(node.value)
    elif isinstance(node, ast.Call):
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        if isinstance(function, ast.Attribute) and are_user_attrs(function.value):
            yield from node.args[:1]  # get, pop, setdefault
            yield from keys(node.args[0] if node.args else None)  # update
        if name in WRITERS:
            yield from node.args[WRITERS[name] :][:1]
        for argument in node.args if name == "set_user_attrs" else ():
            yield from keys(argument)
        for keyword in node.keywords:
            if keyword.arg == "user_attrs":
                yield from keys(keyword.value)
            elif keyword.arg == "key" and name in WRITERS:
                yield keyword.value


def spelt_out(program: str) -> list[tuple[int, str]]:
    """Lines and texts of the attributes that a program spells out."""
    found = set()
    for node in ast.walk(ast.parse(program)):
        for key in attribute_keys(node):
            text = text_of(key)
            if text is not None and any(pattern.fullmatch(text) for pattern in PATTERNS):
                found.add((node.lineno, text))  # type: ignore[attr-defined]
        # What is filled into a text that begins as a task's attribute does is no prose.
        text = text_of(node) or ""
        if re.match(f"({'|'.join(map(re.escape, PREFIXES))})" + r"\{\w*\}(_se)?$", text):
            found.add((node.lineno, text))  # type: ignore[attr-defined]
    return sorted(found)


@pytest.mark.parametrize(
    "line",
    [
        'x = trial.user_attrs["baseline"]',
        'x = attrs.get("promoted_from", 3)',
        'x = "truth_seconds" in trial.user_attrs',
        'x = "run" not in study.user_attrs',
        'trial.set_user_attr("failure", "why")',
        'set_trial_user_attr(study, trial, "promotion", "begun")',
        'set_user_attrs(trial, {"tries": 1})',
        'study.enqueue_trial({}, user_attrs={"baseline": name} | more)',
        'attrs: dict[str, int] = {"truth_reused": True}',
        'attrs |= {"given_up": True} if over else {}',
        'attrs.update({"unit": key})',
        'x = attrs[f"preview_{task}_se"]',
        'x = f"weight_{task}"',
        'x = "truth_{}".format(task)',
        'x = trial.user_attrs["constraint_red_at_least_1"]',
        'x = study.user_attrs.get("optuna_merge_fingerprint")',
    ],
)
def test_the_scan_finds(line: str) -> None:
    assert spelt_out(f"import optuna\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "x = trial.user_attrs[BASELINE]",
        'x = report["cost"]["preview_seconds"]',
        'x = trial.system_attrs["name"]',
        'x = attrs["weights"]',
        'raise ValueError(f"preview_<task> or truth_<task> of {task}")',
        'x = "baseline" in rows',
        'x = of_task(PREVIEW, "red")',
    ],
)
def test_the_scan_lets_pass(line: str) -> None:
    assert not spelt_out(line)


def test_no_other_file_spells_an_attribute_out() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE) != SCHEMA
        for line, text in spelt_out(path.read_text(encoding="utf-8"))
    }
    assert not found
