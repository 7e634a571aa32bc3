"""Commands with placeholders."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

_PLACEHOLDER = re.compile(r"\{(weights|folder|seed|steps|checkpoint|weight:[^{}]*)\}")


class Template:
    """A command, cut as a shell cuts it, with placeholders for what differs between runs.

    They are `{weights}` (a JSON object by task), `{weight:task}` (one number), `{folder}`,
    `{checkpoint}`, `{seed}` and `{steps}`; one of `needs` must be there. Other braces stay.
    """

    def __init__(
        self, command: str | Sequence[str], tasks: Sequence[str], needs: Sequence[str]
    ) -> None:
        self.arguments = shlex.split(command) if isinstance(command, str) else list(command)
        if not self.arguments:
            raise ValueError("the command is empty")
        found = {name for part in self.arguments for name in _PLACEHOLDER.findall(part)}
        named = {name.partition(":")[2] for name in found if name.startswith("weight:")}
        if unknown := sorted(named - set(tasks)):
            raise ValueError(
                f"the command has {{weight:{unknown[0]}}}, but no task is called so; expected one "
                f"of {', '.join(tasks)}"
            )
        missing = [task for task in tasks if task not in named]
        if named and missing and "weights" not in found:
            raise ValueError(
                f"the command has weights of {', '.join(sorted(named))}, but none of "
                f"{missing[0]}; add {{weight:{missing[0]}}}, or take {{weights}}"
            )
        kinds = {name.partition(":")[0] for name in found}
        if not kinds & set(needs):
            raise ValueError(
                f"the command {' '.join(self.arguments)!r} has none of the placeholders "
                f"{', '.join(f'{{{name}}}' for name in needs)}"
            )

    def filled(self, weights: Mapping[str, float], **values: object) -> list[str]:
        """The arguments of one run."""

        def value(found: re.Match[str]) -> str:
            name, _, task = found[1].partition(":")
            if name == "weight":
                return repr(float(weights[task]))
            if name == "weights":
                return json.dumps({task: float(weight) for task, weight in weights.items()})
            return str(values[name]) if name in values else found[0]

        return [_PLACEHOLDER.sub(value, part) for part in self.arguments]
