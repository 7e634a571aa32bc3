"""What the search itself costs per preview, when previews are free and the study is long.

    PYTHONPATH=tests python tests/benchmarks/search_overhead.py --sizes 1000 10000

Fills a study on SQLite (or on a storage given with --storage) with previews of three toy tasks,
2 % of them finetuned, and then runs the real objective, sampler and pruner with a previewer that
takes no time. Prints milliseconds per preview, medians over --repeats trials, and what of it
belongs to whom; and the seconds of a fresh process's first trial.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from helpers import toy_definition, toy_task
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

import optuna_merge as om
from optuna_merge.previews import Preview
from optuna_merge.tasks import Evaluation
from optuna_merge.weights import canonical_weights

FRACTION = 0.02
SPACE = FloatDistribution(0.0, 1.0)


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


def past_trial(fitted: om.FittedStudy, weights: dict[str, float], done: bool) -> FrozenTrial:
    """A finished trial with all that the objective and the pruner write."""
    metrics = metrics_of(weights)
    attrs: dict[str, Any] = {"preview_seconds": 0.0}
    attrs["preview_decision"] = "promote" if done else "prune"
    for name, value in metrics.items():
        attrs |= {f"weight_{name}": weights[name], f"preview_{name}": value}
        attrs[f"preview_{name}_se"] = 0.01
        if done:
            attrs |= {f"truth_{name}": value + 0.05, "truth_seconds": 1.0}
    score = fitted.score(metrics)
    steps = {0: score, 7: score + 0.05} if done else {0: score}
    return create_trial(
        state=TrialState.COMPLETE if done else TrialState.PRUNED,
        value=score + 0.05 if done else None,
        params={f"w_{name}": w for name, w in weights.items()},
        distributions={f"w_{name}": SPACE for name in weights},
        intermediate_values=steps,
        user_attrs=attrs,
    )


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


def measure(fitted: om.FittedStudy, study_name: str, url: str, repeats: int) -> dict[str, float]:
    """Seconds of the first trial, then medians in milliseconds, as a fresh process finds them."""
    search: dict[str, Any] = {"seed": 0, "score": fitted.scores}
    study = optuna.load_study(
        study_name=study_name,
        storage=om.create_storage(url),
        sampler=om.PreviewSampler(fitted.definition.names, **search),
        pruner=om.PromotionPruner(fraction=FRACTION, **search),
    )
    objective = om.Objective(fitted, progress=False)
    rows: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        spent: dict[str, float] = defaultdict(float)
        started = time.perf_counter()
        with (
            timed(study.sampler, "sample_relative", spent, "sampler"),
            timed(study.pruner, "prune", spent, "pruner"),
            timed(objective, "_same_preview", spent, "same preview?"),
        ):
            study.optimize(objective, n_trials=1)
        spent["all"] = time.perf_counter() - started
        rows.append(spent)
    first, *others = rows
    found = {"first (s)": first["all"]}
    for label in ("all", "sampler", "pruner", "same preview?"):
        found[f"{label} (ms)"] = 1e3 * statistics.median(row[label] for row in others)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--storage", help="URL; default: SQLite in a temporary folder")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        url = arguments.storage or f"sqlite:///{folder}/study.db"
        tasks = [toy_task(name, seed) for seed, name in enumerate(("red", "blue", "green"))]
        fitted = om.fit(toy_definition(tasks), Path(folder) / "work", progress=False)
        fitted = dataclasses.replace(fitted, previewer=FreePreviewer(fitted))
        names = fitted.definition.names
        head = False
        for size in arguments.sizes:
            name = f"overhead-{size}"
            study = om.open_study(name, om.create_storage(url), fitted.definition.directions)
            om.prepare_study(study, fitted)
            study.optimize(om.Objective(fitted, progress=False), n_trials=len(names) + 1)
            rng = np.random.default_rng(0)
            for i in range(size):
                weights = canonical_weights(rng.dirichlet(np.ones(len(names))).tolist())
                done = i % round(1 / FRACTION) == 0
                study.add_trial(past_trial(fitted, dict(zip(names, weights)), done))
            found = measure(fitted, name, url, arguments.repeats)
            if not head:
                print(f"{'previews':>10}" + "".join(f"{label:>20}" for label in found))
                head = True
            print(f"{size:>10}" + "".join(f"{v:>20.2f}" for v in found.values()), flush=True)


if __name__ == "__main__":
    main()
