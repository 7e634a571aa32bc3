"""Where the seconds of a study go: stages of a run, timed by a profiler.

    OMP_NUM_THREADS=1 python studies/time_spent.py studies/desks/optimize.py --n-trials 28

runs the study in a folder of its own, with seed 0, and writes time_spent.json into the study's
folder `results`. Seconds are those of the process's CPU, and the profiler's own are among them.
Imports are counted where they happen, and again beside the stages.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
import typer

from optuna_merge._base.files import write_json
from optuna_merge.commands import Debug, Definition, guarded
from studies.families import cpu_name

STAGES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "data and model": (("commands/_definition.py", "load_definition"),),
    "frozen layers, once": (("fitting/_fit.py", "_cached_tasks"),),
    "task runs": (("fitting/_fit.py", "_task_run"),),
    "curvature": (("fitting/_posteriors.py", "curvature"),),
    "damping": (("fitting/_posteriors.py", "_damping"),),
    "previews: heads": (("previews/_heads.py", "_solve"),),
    "previews: all else": (("fitting/_fitted.py", "preview"),),
    "finetunes": (("fitting/_fitted.py", "finetune"), ("fitting/_fit.py", "make_anchor")),
    "what comes next": (
        ("samplers/_sampler.py", "sample_relative"),
        ("pruners/_promotion.py", "_fill"),
    ),
    "figures of the dashboard": (("reports/_dashboard.py", "update"),),
    "report": (("commands/_written.py", "write_report"),),
}
"""By stage, its functions: file and name. None calls another's, but that previews solve heads."""

IMPORTS = ("<frozen importlib._bootstrap>", "_find_and_load")

Function = tuple[str, int, str]
Row = tuple[int, int, float, float, Mapping[Function, tuple[int, int, float, float]]]


def profiled(work: Callable[[], object]) -> Mapping[Function, Row]:
    """Calls, seconds and callers by function."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(work)
    return pstats.Stats(profile).stats  # type: ignore[attr-defined, no-any-return]


def by_stage(rows: Mapping[Function, Row]) -> dict[str, float]:
    """Seconds by stage, and of the rest.

    Raises:
        ValueError: a function of a stage was never called.
    """
    found = {}
    for stage, functions in STAGES.items():
        mine = [_row(rows, *function) for function in functions]
        found[stage] = sum(row[3] for row in mine if row is not None)
        if not any(mine):
            raise ValueError(f"{stage!r}: none of {functions} was called")
    found["previews: all else"] -= found["previews: heads"]
    total = sum(row[2] for row in rows.values())
    return found | {"all else": total - sum(found.values()), "whole": total}


def _row(rows: Mapping[Function, Row], file: str, name: str) -> Row | None:
    return next((r for (f, _, n), r in rows.items() if f.endswith(file) and n == name), None)


def table(seconds: Mapping[str, float]) -> str:
    """Markdown, a row a stage."""
    lines = ["| stage | seconds | share |", "|---|---|---|"]
    whole = seconds["whole"]
    lines += [f"| {n} | {s:.1f} | {s / whole:.0%} |" for n, s in seconds.items()]
    return "\n".join(lines)


def measure(definition: Path, n_trials: int) -> dict[str, Any]:
    """The stages of one run, and its counts."""
    from optuna_merge.commands._definition import load_definition
    from optuna_merge.commands._flags import SearchFlags
    from optuna_merge.commands._search import search

    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db"
        flags = SearchFlags(
            study_name="timed",
            storage=storage,
            workdir=Path(folder) / "work",
            n_trials=n_trials,
            seed=0,
        )
        rows = profiled(lambda: search(load_definition(definition), flags))
        study = optuna.load_study(study_name="timed", storage=storage)
        trials = [trial.state.name for trial in study.trials]
    imports = _row(rows, *IMPORTS)
    return {
        "seconds": {name: round(value, 2) for name, value in by_stage(rows).items()},
        "imports": None if imports is None else round(imports[3], 2),
        "previews": trials.count("PRUNED"),
        "finetunes": trials.count("COMPLETE"),
        "machine": {"cores": os.cpu_count(), "cpu": cpu_name()},
    }


def main(
    definition: Definition,
    n_trials: Annotated[int, typer.Option(help="Trials.")] = 28,
    debug: Debug = False,
) -> None:
    """Tell where a study's seconds go.

    Example: python studies/time_spent.py studies/text/optimize.py
    """

    def work() -> None:
        found = {"command": " ".join(["python", *sys.argv])} | measure(definition, n_trials)
        write_json(definition.resolve().parent / "results" / "time_spent.json", found)
        typer.echo(table(found["seconds"]))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
