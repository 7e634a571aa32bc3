"""What the search itself costs per preview, when previews are free and the study is long.

    PYTHONPATH=tests python tests/benchmarks/search_overhead.py --plot overhead.svg

For each storage and size: a study with so many previews of three toy tasks, 2 % of them finetuned,
written to the database at once; then a worker of its own runs trials with the real objective,
sampler and pruner and a previewer that takes no time. Medians over --repeats trials of a warm
worker, in milliseconds of wall-clock time:

    ask       the study's new trial and its weights, the sampler above all
    promote   the pruner's decision
    tell      the trial's end
    total     all of it, with the attributes and values that the objective writes
    CPU       the worker's part of the total (the database server's is not in it)
    slot      the pruner's decision where the budget has a free slot: it then compares all
              candidates, in as many trials as are promoted
    first     seconds of a fresh worker's first trial: it reads the study
    peak RSS  of the worker, in megabytes, with torch and all other libraries

`postgresql` is a server of its own, made as tests/conftest.py does, on the loopback interface and
without waiting for the disk. A URL is taken as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from conftest import postgres
from helpers import toy_definition, toy_task
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

import optuna_merge as om
from optuna_merge.previews import Preview
from optuna_merge.pruners import read_ledger
from optuna_merge.tasks import Evaluation
from optuna_merge.trials import canonical_weights

FRACTION = 0.02
SPACE = distribution_to_json(FloatDistribution(0.0, 1.0))
FINITE = models.TrialValueModel.TrialValueType.FINITE
FINITE_STEP = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
PARTS = ("ask", "promote", "tell", "total", "CPU")
COLUMNS = (*PARTS, "slot", "first (s)", "peak RSS")


def metrics_of(weights: dict[str, float]) -> dict[str, float]:
    return {name: 1 - (1 - w) ** 2 for name, w in weights.items()}


class FreePreviewer:
    """Gives metrics that are a function of the weights, at once."""

    def __init__(self, fitted: om.FittedStudy) -> None:
        self._templates = {n: run.evaluations[n] for n, run in fitted.runs.items()}

    def __call__(self, weights: dict[str, float]) -> Preview:
        values = metrics_of(weights)
        return Preview(
            dict(weights),
            {name: self._evaluation(name, value) for name, value in values.items()},
            0.0,
        )

    def _evaluation(self, name: str, value: float) -> Evaluation:
        template = self._templates[name]
        metric = dataclasses.replace(template.metric, value=value)
        return dataclasses.replace(template, metrics=dict.fromkeys(template.metrics, metric))

    def release(self) -> None: ...


def fit(folder: str) -> om.FittedStudy:
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    tasks = [toy_task(name, seed) for seed, name in enumerate(("red", "blue", "green"))]
    fitted = om.fit(toy_definition(tasks), Path(folder) / "work", progress=False)
    return dataclasses.replace(fitted, previewer=FreePreviewer(fitted))


def fill(study: optuna.Study, fitted: om.FittedStudy, size: int) -> None:
    """Write finished trials with all that the objective and the pruner write.

    `study.add_trial` would do, in half an hour.
    """
    storage = backend(study)
    rng = np.random.default_rng(0)
    names = fitted.definition.names
    n_before = len(study.get_trials(deepcopy=False))
    now = datetime.datetime.now()
    done = [i % round(1 / FRACTION) == 0 for i in range(size)]
    trials = [
        {
            "number": n_before + i,
            "study_id": study._study_id,
            "state": TrialState.COMPLETE if done[i] else TrialState.PRUNED,
            "datetime_start": now,
            "datetime_complete": now,
        }
        for i in range(size)
    ]
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.insert(models.TrialModel), trials)
    with storage.engine.begin() as connection:
        table = models.TrialModel
        query = sqlalchemy.select(table.trial_id).where(table.study_id == study._study_id)
        ids = connection.execute(query.order_by(table.number)).scalars().all()[n_before:]
    rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for trial_id, is_done in zip(ids, done):
        weights = dict(zip(names, canonical_weights(rng.dirichlet(np.ones(len(names))).tolist())))
        key = {"trial_id": trial_id}
        metrics = metrics_of(weights)
        attrs: dict[str, Any] = {"preview_seconds": 0.0}
        attrs["preview_decision"] = "promote" if is_done else "prune"
        for name, value in metrics.items():
            attrs |= {f"weight_{name}": weights[name], f"preview_{name}": value}
            attrs[f"preview_{name}_se"] = 0.01
            if is_done:
                attrs |= {f"truth_{name}": value + 0.05, "truth_seconds": 1.0}
        for name, weight in weights.items():
            param = {"param_name": f"w_{name}", "param_value": weight, "distribution_json": SPACE}
            rows[models.TrialParamModel].append(key | param)
        for name, value in attrs.items():
            attr = {"key": name, "value_json": json.dumps(value)}
            rows[models.TrialUserAttributeModel].append(key | attr)
        score = fitted.goal.score_of(metrics)
        for step, value in {0: score, 7: score + 0.05}.items() if is_done else ((0, score),):
            seen = {"step": step, "intermediate_value": value}
            seen["intermediate_value_type"] = FINITE_STEP
            rows[models.TrialIntermediateValueModel].append(key | seen)
        if is_done:
            truth = {"objective": 0, "value": score + 0.05, "value_type": FINITE}
            rows[models.TrialValueModel].append(key | truth)
    with storage.engine.begin() as connection:
        for model, values in rows.items():
            connection.execute(sqlalchemy.insert(model), values)


def backend(study: optuna.Study) -> Any:
    """The database under Optuna's cache."""
    return study._storage._backend  # type: ignore[attr-defined]


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], label: str) -> Iterator[None]:
    """Add the seconds of the calls of `owner.name` to `spent[label]`."""
    original: Callable[..., Any] = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent[label] += time.perf_counter() - started

    setattr(owner, name, measured)
    try:
        yield
    finally:
        delattr(owner, name)


class Worker:
    """One process on one study."""

    def __init__(self, folder: str, name: str, url: str) -> None:
        fitted = fit(folder)
        search: dict[str, Any] = {"seed": 0, "score": fitted.goal.scores}
        self.study = optuna.load_study(
            study_name=name,
            storage=om.create_storage(url),
            sampler=om.PreviewSampler(fitted.definition.names, **search),
            pruner=om.PromotionPruner(fraction=FRACTION, **search),
        )
        self.objective = om.Objective(fitted, progress=False)

    def trial(self) -> dict[str, float]:
        """Seconds by part. Finetunes, which are no preview's cost, don't count."""
        study = self.study
        spent: dict[str, float] = defaultdict(float)
        started, used = time.perf_counter(), time.process_time()
        with (
            timed(study, "ask", spent, "ask"),
            timed(study.sampler, "sample_relative", spent, "ask"),
            timed(study.pruner, "prune", spent, "promote"),
            timed(backend(study), "set_trial_state_values", spent, "tell"),
            timed(self.objective, "_truth", spent, "finetune"),
        ):
            study.optimize(self.objective, n_trials=1)
        spent["total"] = time.perf_counter() - started - spent["finetune"]
        spent["CPU"] = time.process_time() - used
        return spent

    def slot(self) -> float:
        """Seconds of the pruner's decision when its budget has room for one more."""
        ledger = read_ledger(self.study.get_trials(deepcopy=False))
        self._set_fraction((len(ledger.claims) + 1.5) / (len(ledger.previews) + 1))
        seconds = self.trial()["promote"]
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.trial()
        return seconds

    def _set_fraction(self, fraction: float) -> None:
        # Of the pruner that there is: a new one would have to read the study first.
        pruner = self.study.pruner
        assert isinstance(pruner, om.PromotionPruner)
        pruner._budget = dataclasses.replace(pruner._budget, fraction=fraction)


def measure(folder: str, name: str, url: str, repeats: int) -> dict[str, float]:
    worker = Worker(folder, name, url)
    first = worker.trial()["total"]
    rows = [row for _ in range(repeats) if not (row := worker.trial())["finetune"]]
    found = {part: 1e3 * statistics.median(row[part] for row in rows) for part in PARTS}
    slots = [worker.slot() for _ in range(4)][1:]
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | {"slot": 1e3 * statistics.median(slots), "first (s)": first, "peak RSS": rss}


def in_own_process(*arguments: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


@contextmanager
def opened(storage: str, folder: str) -> Iterator[str]:
    """The storage's URL."""
    if storage == "sqlite":
        yield f"sqlite:///{folder}/study.db"
    elif storage == "postgresql":
        with postgres() as server:
            yield server.url
    else:
        yield storage


def plot(rows: Sequence[tuple[str, int, dict[str, float]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for storage in dict.fromkeys(storage for storage, _, _ in rows):
        mine = [(size, found) for name, size, found in rows if name == storage]
        for part, style in (("total", "-"), ("ask", "--"), ("promote", ":")):
            sizes, values = zip(*((size, found[part]) for size, found in mine))
            colour = "C0" if storage == "sqlite" else "C1"
            axes.plot(sizes, values, style, color=colour, marker=".", label=f"{storage}, {part}")
    axes.set(xscale="log", xlabel="previews in the study", ylabel="ms per preview", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument(
        "--storage", nargs="+", default=["sqlite", "postgresql"], help="sqlite, postgresql or URLs"
    )
    parser.add_argument("--plot", type=Path, help="an image of the table (needs matplotlib)")
    arguments = parser.parse_args()
    rows: list[tuple[str, int, dict[str, float]]] = []
    print("| storage | previews | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|", flush=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        fitted = fit(folder)
        for storage in arguments.storage:
            url = stack.enter_context(opened(storage, folder))
            shown = storage if "@" not in storage else storage.partition(":")[0]
            for size in arguments.sizes:
                name = f"overhead-{size}"
                study = om.open_study(name, om.create_storage(url), fitted.definition.directions)
                om.prepare_study(study, fitted, second_seed=False)
                objective = om.Objective(fitted, progress=False)
                study.optimize(objective, n_trials=len(fitted.definition.names) + 1)
                fill(study, fitted, size)
                found = in_own_process(folder, name, url, arguments.repeats)
                rows.append((shown, size, found))
                digits = {"first (s)": 1}
                values = (f"{found[c]:,.{digits.get(c, 0)}f}" for c in COLUMNS)
                print(f"| {shown} | {size:,} | " + " | ".join(values) + " |", flush=True)
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
