"""A search, step by step: what can be wrong is looked at before the fit, which takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from optuna_merge._base.files import check_writable
from optuna_merge.commands._display import optunas_lines_left_out, shown
from optuna_merge.commands._fitted import (
    AnyDefinition,
    Fit,
    check_own_loop,
    finetunes,
    opened,
    shared_among,
    workbench,
)
from optuna_merge.commands._flags import SearchFlags
from optuna_merge.commands._written import write_report
from optuna_merge.definition import SearchSettings
from optuna_merge.objective import Objective
from optuna_merge.pruners import PromotionPruner
from optuna_merge.reports import Dashboard
from optuna_merge.search import check_until, open_search
from optuna_merge.storages import create_storage
from optuna_merge.workers import Collector, check_keep_best, check_role, run_trials


def search(
    definition: AnyDefinition,
    flags: SearchFlags,
    *,
    html: Path | None = None,
    csv: Path | None = None,
    told: Callable[[optuna.Study], None] | None = None,
) -> None:
    """Fit, run trials, tell the result: by the report, or by `told`."""
    study, fit = _prepared(definition, flags)
    report = partial(write_report, study, fit, flags.workdir, html, csv, flags.as_json)
    _run(study, fit, flags, report if told is None else partial(told, study))


def _prepared(definition: AnyDefinition, flags: SearchFlags) -> tuple[optuna.Study, Fit]:
    """The study with its baselines, sampler and pruner, and its fit."""
    check_role(flags.role)
    check_keep_best(flags.keep_best)
    check_own_loop(definition, artifacts=flags.artifacts)
    check_writable(flags.workdir)
    budget: dict[str, Any] = {
        "fraction": flags.fraction,
        "max_promotions": flags.max_promotions,
        "seed": flags.seed,
    }
    # Those of the definition, but for what is given as flags.
    given = {field.name: getattr(flags, field.name) for field in fields(SearchSettings)}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = replace(definition.search, **changes)
    check_until(settings.until, is_pareto=definition.is_pareto)
    storage = create_storage(flags.storage)
    study = opened(definition, flags.study_name, storage, PromotionPruner(**budget))
    sharing = None
    if flags.artifacts is not None:
        claims = flags.role != "preview"
        sharing = shared_among(study, flags.artifacts, flags.workdir, claims=claims)
    fit = workbench(definition, flags.workdir, sharing)
    with optunas_lines_left_out():  # the study was opened before, and Optuna has said so
        return open_search(fit, flags.study_name, storage, **budget, **asdict(settings)), fit


def _run(study: optuna.Study, fit: Fit, flags: SearchFlags, report: Callable[[], None]) -> None:
    """Run the trials; show, draw and clear away after each; report at their end."""
    role = check_role(flags.role)
    dashboard, collector = _dashboard(study, flags.workdir), None
    if flags.keep_best is not None:
        collector = Collector(study, finetunes(fit, flags.workdir), keep_best=flags.keep_best)
    with ExitStack() as screen:
        show = screen.enter_context(shown(study, flags.n_trials))

        def after_trial(trial: optuna.trial.FrozenTrial) -> None:
            show(trial)
            if dashboard is not None:
                dashboard(trial)
            if collector is not None:
                collector.remove()

        def at_end() -> None:
            screen.close()
            report()
            if dashboard is not None:
                dashboard.update()

        run_trials(
            study,
            Objective(fit, progress=sys.stderr.isatty()),
            workdir=flags.workdir,
            n_trials=flags.n_trials,
            timeout=flags.timeout,
            after_trial=after_trial,
            role=role,
            patience=flags.patience,
            at_end=at_end,
        )


def _dashboard(study: optuna.Study, workdir: Path) -> Dashboard | None:
    """Keeps figures and notes with the study, if the dashboard is installed."""
    try:
        return Dashboard(study, workdir)
    except ImportError:  # the extra `dashboard`
        return None
