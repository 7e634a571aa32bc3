"""The report as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import optuna

from optuna_merge._base.files import atomic_path
from optuna_merge._version import __version__
from optuna_merge.reports._grid import grid_told
from optuna_merge.reports._page_costs import cost_rows
from optuna_merge.reports._page_data import page_data
from optuna_merge.reports._reading import Reading

_SCRIPTS = [
    f"{name}.js"
    for name in ("surrogate", "charts", "study", "figures", "shares", "explorer", "page")
]
_NAMES = {
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl",
    "torchtitan": "torchtitan",
    "datasets": "Hugging Face datasets",
    "json": "JSON",
}
"""What they call themselves, in the order in which they are offered."""


def write_html(
    path: str | os.PathLike[str], study: optuna.Study, report: Mapping[str, Any] | None = None
) -> None:
    """Write the report of a study as one HTML file, which loads nothing else.

    Args:
        path: The file; what stands there is replaced.
        study: The study.
        report: Of the same study, from `make_report`; it adds test metrics and the cost of task
            runs and posteriors. Without it the study alone is read.

    Raises:
        ValueError: no trial has task weights yet.
    """
    text = _render(Reading.of(study, report), report)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _render(reading: Reading, report: Mapping[str, Any] | None) -> str:
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("optuna_merge.reports") / "page"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters["number"] = _number
    template = environment.from_string((folder / "page.html").read_text("utf-8"))
    known = (reading.tested.get(o.trial) for o in reading.rows.values())
    return template.render(
        reading=reading,
        findings=reading.findings,
        kinds=("preview", "truth", "test") if any(known) else ("preview", "truth"),
        # What only the working folder knows of the constraints is in the report alone.
        verdict=asdict(reading.verdict) if report is None else report["verdict"],
        costs=cost_rows(reading, report),
        spent=reading.spent if report is None else report["spent"]["told"],
        grid=grid_told(reading.grids),
        anchored=_anchored(reading),
        mixtures=_mixtures(reading),
        data=page_data(reading, report),
        version=__version__,
        style=(folder / "page.css").read_text("utf-8"),
        scripts="\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS),
    )


def _anchored(reading: Reading) -> bool | None:
    """Whether a finetune between the tasks alone corrects the previews; None: none is there."""
    between = [o for o in reading.findings.truths if max(o.weights.values()) < 1]
    return any(o.at_anchor for o in between) if between else None


def _number(value: float | None, style: str = ".4f") -> str:
    return "–" if value is None else format(value, style)


def _mixtures(reading: Reading) -> list[tuple[str, str, str]]:
    """Of each trainer its word for `--mixture`, its name, and the lines or why there are none."""
    from optuna_merge.trainers import study_mixture

    best = reading.findings.best
    if best is None:
        return []
    found = []
    for form, name in _NAMES.items():
        try:
            lines = study_mixture(reading.study, form, weights=best.weights)
        except ValueError as error:  # sizes that the study does not know
            lines = f"{error} (optuna-merge export --mixture {form} --examples TASK=NUMBER,...)"
        found.append((form, name, lines))
    return found
