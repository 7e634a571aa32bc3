"""What Typer makes a command of: a plain function, whose parameters are arguments and flags."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any

from optuna_merge.commands._errors import guarded
from optuna_merge.commands._flags import Debug


def command(work: Callable[..., None], **defaults: Any) -> Callable[..., None]:
    """`work` for Typer, with the flag `--debug`; its errors end with a message and an exit code.

    Args:
        work: Does the command's work; its docstring is the help. A parameter whose type is a
            dataclass stands for a flag a field.
        defaults: Of flags, in place of their own.
    """
    groups: dict[str, Any] = {}
    flags: list[Parameter] = []
    for name, parameter in inspect.signature(work, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            flags += inspect.signature(groups[name], eval_str=True).parameters.values()
        else:
            flags.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    flags.append(Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=Debug))

    def guarded_work(*, debug: bool, **given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        guarded(debug, functools.partial(work, **given))

    guarded_work.__name__, guarded_work.__doc__ = work.__name__, work.__doc__
    guarded_work.__annotations__ = {}
    guarded_work.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [flag.replace(default=defaults.get(flag.name, flag.default)) for flag in flags]
    )
    return guarded_work
