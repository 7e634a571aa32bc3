"""Where the seconds of a study go: its stages, each without what is a stage of its own.

    OMP_NUM_THREADS=1 python studies/time_spent.py studies/desks/optimize.py --n-trials 28

runs the study in a folder of its own, with seed 0, and writes time_spent.json into the study's
folder `results`. Seconds are those of the process's CPU, imports among them where they happen.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
import typer

from optuna_merge._base.files import write_json
from optuna_merge.commands import Debug, Definition, guarded
from studies.families import cpu_name

STAGES: Mapping[str, str] = {
    "fitting._fit:_cached_tasks": "frozen layers, once",
    "fitting._fit:_task_run": "task runs",
    "fitting._fit:_anchor_run": "uniform weights",
    "fitting._posteriors:PosteriorMaker.curvature": "curvature",
    "fitting._posteriors:PosteriorMaker._damping": "damping",
    "previews._heads:HeadSolver._see": "previews: examples for heads",
    "previews._heads:HeadSolver._solve": "previews: heads",
    "fitting._fitted:FittedStudy.preview": "previews: all else",
    "fitting._fitted:FittedStudy.finetune": "finetunes",
    "samplers._sampler:PreviewSampler.sample_relative": "what comes next",
    "pruners._promotion:PromotionPruner._fill": "what comes next",
    "reports._dashboard:Dashboard.update": "figures of the dashboard",
    "reports._test_data:_evaluated": "test data",
    "commands._search:write_report": "report",
}
"""By function of the package, its stage."""

DATA, REST = "data and model", "all else"


class Stopwatch:
    """Seconds by stage; a stage within another is taken out of it."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock, self._last = clock, clock()
        self._stages = [REST]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within this block seconds are this stage's."""
        self._charge()
        self._stages.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stages.pop()

    def _charge(self) -> None:
        now = self._clock()
        self.seconds[self._stages[-1]] += now - self._last
        self._last = now

    def watch(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, its calls a stage."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return function(*args, **kwargs)

        return watched


def watch_all(stopwatch: Stopwatch) -> None:
    """Put the stopwatch around the functions of all stages."""
    for place, stage in STAGES.items():
        owner, name = owner_of(place)
        setattr(owner, name, stopwatch.watch(getattr(owner, name), stage))


def owner_of(place: str) -> tuple[Any, str]:
    """The module or class that has a function, and the function's name there."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(f"optuna_merge.{module}")
    for each in owners:
        owner = getattr(owner, each)
    return owner, name


def table(seconds: Mapping[str, float]) -> str:
    """Markdown, a row a stage."""
    lines = ["| stage | seconds | share |", "|---|---|---|"]
    whole = sum(seconds.values())
    lines += [f"| {n} | {s:.1f} | {s / whole:.0%} |" for n, s in seconds.items()]
    return "\n".join(lines)


def measure(definition: Path, n_trials: int) -> dict[str, Any]:
    """The stages of one run, and its counts."""
    from optuna_merge.commands._definition import load_definition
    from optuna_merge.commands._flags import SearchFlags
    from optuna_merge.commands._search import search

    stopwatch = Stopwatch()
    watch_all(stopwatch)
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db"
        flags = SearchFlags(
            study_name="timed",
            storage=storage,
            workdir=Path(folder) / "work",
            n_trials=n_trials,
            seed=0,
        )
        with stopwatch.stage(DATA):
            loaded = load_definition(definition)
        search(loaded, flags)
        with stopwatch.stage(REST):
            study = optuna.load_study(study_name="timed", storage=storage)
        trials = [trial.state.name for trial in study.trials]
    return {
        "seconds": {name: round(value, 2) for name, value in stopwatch.seconds.items()},
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
