"""How many trials per second several workers do on one storage, beside one worker alone.

    PYTHONPATH=tests python tests/benchmarks/throughput.py --postgres --workers 1 16
    PYTHONPATH=tests python tests/benchmarks/throughput.py --workers 1 4    # SQLite

A preview sleeps for --preview seconds and takes no CPU: what is measured is all the rest, the
storage, the sampler, the pruner and the objective's bookkeeping. Workers are forked processes
that run the real objective for --seconds each. Prints, per sampler and number of workers, medians
over --repeats new studies with their range: trials per second, their ratio to as many times one
worker's rate, CPU milliseconds per trial (of the workers, without the database server), and the
rate that the machine's cores would allow at that cost. "ratio to bound": to the lower of the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import statistics
import tempfile
import time
import uuid
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
from conftest import postgres
from helpers import toy_definition, toy_task
from search_overhead import FreePreviewer

import optuna_merge as om
from optuna_merge.previews import Preview


class SleepingPreviewer(FreePreviewer):
    """A preview that takes a while, and no CPU."""

    def __init__(self, fitted: om.FittedStudy, seconds: float) -> None:
        super().__init__(fitted)
        self._seconds = seconds

    def __call__(self, weights: dict[str, float]) -> Preview:
        time.sleep(self._seconds)
        return super().__call__(weights)

    def release(self) -> None:
        """Nothing is held."""


def work(
    fitted: om.FittedStudy, url: str, name: str, sampler: str, seed: int, ready: int, go: int
) -> tuple[int, float, float]:
    """Trials, CPU seconds and seconds for them, from when all workers are ready."""
    search: dict[str, Any] = {"seed": seed, "score": fitted.goal.scores}
    study = optuna.load_study(
        study_name=name,
        storage=om.create_storage(url),
        sampler=optuna.samplers.RandomSampler(seed=seed)
        if sampler == "random"
        else om.PreviewSampler(fitted.definition.names, **search),
        pruner=om.PromotionPruner(fraction=0.0, score=fitted.goal.scores),
    )
    objective = om.Objective(fitted, progress=False)
    study.optimize(objective, n_trials=1)  # connections and imports, before the clock
    os.write(ready, b"r")
    os.read(go, 1)
    count, begun, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < arguments.seconds:
        study.optimize(objective, n_trials=1)
        count += 1
    return count, time.process_time() - cpu, time.perf_counter() - begun


def measure(fitted: om.FittedStudy, url: str, sampler: str, workers: int) -> tuple[float, float]:
    """Trials per second of all workers, and CPU seconds per trial."""
    name = f"throughput-{uuid.uuid4().hex[:8]}"
    study = om.open_study(name, om.create_storage(url), fitted.definition.directions)
    om.prepare_study(study, fitted, second_seed=False)
    study.optimize(om.Objective(fitted, progress=False), n_trials=len(fitted.definition.names) + 1)
    reading, writing = os.pipe()
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    for seed in range(workers):
        if os.fork() == 0:
            code = 1
            try:
                found = work(fitted, url, name, sampler, seed, say_ready, go)
                os.write(writing, (" ".join(map(str, found)) + "\n").encode())
                code = 0
            finally:
                os._exit(code)
    for _ in range(workers):
        assert os.read(ready, 1) == b"r"
    os.write(say_go, b"g" * workers)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(workers)]
    for descriptor in (writing, ready, say_ready, go, say_go):
        os.close(descriptor)
    with os.fdopen(reading) as lines:
        rows = [tuple(map(float, line.split())) for line in lines]
    assert codes == [0] * workers and len(rows) == workers, codes
    rate = sum(count / seconds for count, _, seconds in rows)
    return rate, sum(cpu for _, cpu, _ in rows) / sum(count for count, _, _ in rows)


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}, previews of {arguments.preview:g} s")
    print(
        f"{'sampler':10}{'workers':>8}{'trials/s':>18}{'ratio':>8}{'CPU ms':>9}"
        f"{'cores allow':>13}{'ratio to bound':>16}"
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if arguments.postgres:
            arguments.storage = stack.enter_context(postgres()).url
        url = arguments.storage or f"sqlite:///{folder}/study.db"
        tasks = [toy_task(name, seed) for seed, name in enumerate(("red", "blue", "green"))]
        fitted = om.fit(toy_definition(tasks), Path(folder) / "work", progress=False)
        previewer: Any = SleepingPreviewer(fitted, arguments.preview)
        fitted = dataclasses.replace(fitted, previewer=previewer)
        for sampler in arguments.samplers:
            alone = None
            for workers in arguments.workers:
                found = [measure(fitted, url, sampler, workers) for _ in range(arguments.repeats)]
                rates = sorted(rate for rate, _ in found)
                rate = statistics.median(rates)
                cpu = statistics.median(spent for _, spent in found)
                alone = rate / workers if alone is None else alone
                bound = min(workers * alone, cores / cpu)
                print(
                    f"{sampler:10}{workers:>8}"
                    f"{f'{rate:.1f} ({rates[0]:.1f}-{rates[-1]:.1f})':>18}"
                    f"{rate / (workers * alone):>8.2f}{1e3 * cpu:>9.1f}{cores / cpu:>13.1f}"
                    f"{rate / bound:>16.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", help="URL; default: SQLite in a temporary folder")
    parser.add_argument("--postgres", action="store_true", help="a server of its own")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--samplers", nargs="+", default=["random", "preview"])
    parser.add_argument("--preview", type=float, default=0.05, help="seconds")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured, per worker")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    main()
