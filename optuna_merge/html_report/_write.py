"""The page, filled and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from typing import Any

import optuna

from optuna_merge._base.files import atomic_path
from optuna_merge._version import __version__
from optuna_merge.html_report._page import Page, read_page

_SCRIPTS = ("surrogate.js", "charts.js", "page.js")


def write_html(
    path: str | os.PathLike[str],
    study: optuna.Study,
    report: Mapping[str, Any] | None = None,
    *,
    maximize: Mapping[str, bool] | None = None,
) -> None:
    """Write the report of a study as one HTML file, which loads nothing else.

    It has the answer, the maps of task weights, how true the previews are, the Pareto front, the
    cost, and an explorer that predicts the metrics at any task weights by the study's posterior.

    Args:
        path: The file; what stands there is replaced.
        study: The study.
        report: Of the same study, from `make_report`; it adds test metrics and the cost of task
            runs and posteriors. Without it the study alone is read.
        maximize: By task, whether its metric is to be maximised; None: as the study says.

    Raises:
        OSError: the file can't be written.
        ValueError: no trial has task weights yet.
    """
    text = render(read_page(study, report, maximize=maximize))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(page: Page) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("optuna_merge.html_report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters["number"] = _number
    template = environment.from_string((folder / "page.html").read_text("utf-8"))
    return template.render(
        page=page,
        version=__version__,
        style=(folder / "page.css").read_text("utf-8"),
        scripts="\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS),
    )


def _number(value: float | None, style: str = ".4f") -> str:
    return "–" if value is None else format(value, style)
