"""Real searches of a study at equal cost, without any table: simple rules, Optuna's, ours.

    python studies/search/real.py studies/mnist/optimize.py --scores worst,relative --seeds 3

Every method may train for so many steps as `--budget` finetunes take, task runs included.
Finetunes are evaluated at a ninth, a third and the end of their steps; Hyperband knows these as
resources 1, 3 and 9, and may stop them there. The weights that each search ends with are then
finetuned again with `--fresh` seeds that no search has seen and evaluated on validation and test
data; the scores of the latter are the answer. The table has the mean over the searches with its
standard error, and each method's difference from uniform weights, paired by the searches' seeds.
Writes into the folder results beside this file, and prints a table.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import optuna
import typer
from optuna.trial import TrialState

from optuna_merge import Objective, open_search
from optuna_merge._base.files import write_json
from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.models import evaluate_tasks, task_batches
from optuna_merge.search import baseline_weights
from optuna_merge.tasks import Evaluation
from optuna_merge.trials import BASELINE, UNIFORM, suggest_weights
from studies.families import cpu_name
from studies.flags import listed
from studies.judge import worst_task
from studies.search.methods import DOUBLINGS, STARTUP
from studies.search.replay import REDUCTION, resources, simplex_weights, uniform
from studies.simple_rules import doubled, fine_points, in_turn, own_weight_curves

FRESH = 1000
"""Seeds from here on were seen by no search."""

SPACED = 0.05
"""The own-weight curve's weights differ by so much at least in one of the tasks."""

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What a search ended with.

    Attributes:
        weights: Its best task weights.
        seen: The score that it saw there.
        steps: Training steps that it took.
        finetunes: Whole finetunes among them, task runs not counted.
        ends: How many finetunes were stopped at each rung, where the method stops any.
    """

    weights: Weights
    seen: float
    steps: int
    finetunes: int
    ends: tuple[int, ...] = ()


@dataclass
class Finetunes:
    """The whole finetunes of a rule, which keeps the best by the score that it sees."""

    fitted: FittedStudy
    budget: int
    steps: int = 0
    seen: dict[tuple[float, ...], float] = field(default_factory=dict)

    def metrics(self, weights: Weights) -> dict[str, float]:
        """Each task's metric; what was finetuned before is not paid again."""
        settings = self.fitted.definition.finetuning
        run = self.fitted.store.run(self.fitted.model, self.fitted.tasks, weights, settings)
        key = tuple(round(w, 6) for w in weights.values())
        if key not in self.seen:
            self.steps += settings.steps
            self.seen[key] = self.fitted.goal.score_of(_metrics(run.evaluations))
        return _metrics(run.evaluations)

    @property
    def is_over(self) -> bool:
        return self.steps >= self.budget

    def answer(self) -> Answer:
        better = 1 if self.fitted.definition.direction == "maximize" else -1
        best = max(self.seen, key=lambda key: better * self.seen[key])
        weights = dict(zip(self.fitted.definition.names, best))
        return Answer(_normalised(weights), self.seen[best], self.steps, len(self.seen))


def _copy(source: str, target: str) -> None:
    """Copy a file; of tensors, which are never changed in place, make a second name."""
    Path(target).unlink(missing_ok=True)
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def search_uniform(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """One finetune at uniform weights."""
    finetunes = Finetunes(fitted, budget)
    finetunes.metrics(baseline_weights(fitted.definition.names)[UNIFORM])
    return finetunes.answer()


def search_doubling(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """Uniform weights, then the weight of the worst task doubled, and so on."""
    finetunes, names = Finetunes(fitted, budget), fitted.definition.names
    weights = uniform(len(names))
    alone = [fitted.alone[name] for name in names]
    for _ in range(DOUBLINGS):
        if finetunes.is_over:
            break
        metrics = finetunes.metrics(dict(zip(names, weights)))
        found = np.array([metrics[name] for name in names])
        better = all(fitted.definition.greater_is_better.values())
        score = fitted.definition.score_name
        worst = worst_task(score, found, alone, names, greater_is_better=better)
        weights = doubled(weights, worst)
    return finetunes.answer()


def search_curve(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """Each task alone and uniform weights, then the best by the own-weight curves, in turn."""
    finetunes, names = Finetunes(fitted, budget), fitted.definition.names
    baselines = baseline_weights(names)
    found = {name: finetunes.metrics(weights) for name, weights in baselines.items()}
    table = {name: np.array([metrics[t] for t in names]) for name, metrics in found.items()}
    points = fine_points(len(names), seed)
    curves = own_weight_curves(np.stack([table[n] for n in names]), table[UNIFORM], points)
    better = 1.0 if fitted.definition.direction == "maximize" else -1.0
    scores = [better * fitted.goal.score_of(dict(zip(names, row))) for row in curves.tolist()]
    for weights in _apart(points, np.array(scores)):
        if finetunes.is_over:
            break
        finetunes.metrics(dict(zip(names, weights)))
    return finetunes.answer()


def _apart(points: np.ndarray, scores: np.ndarray) -> Iterator[list[float]]:
    """Points from the best on, each `SPACED` from those before it."""
    taken: list[np.ndarray] = []
    for place in in_turn(scores):
        if all(np.abs(points[place] - other).max() >= SPACED for other in taken):
            taken.append(points[place])
            yield points[place].tolist()


def search_hyperband(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """Optuna's TPESampler on the simplex, and HyperbandPruner over the rungs of a finetune."""
    names, settings = fitted.definition.names, fitted.definition.finetuning
    rungs = settings.rungs()
    resource = dict(zip(rungs, resources(len(rungs))))
    study = optuna.create_study(
        study_name=str(seed),  # brackets are drawn by it
        direction=fitted.definition.direction,
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
        pruner=optuna.pruners.HyperbandPruner(
            min_resource=min(resource.values()),
            max_resource=max(resource.values()),
            reduction_factor=REDUCTION,
        ),
    )
    study.enqueue_trial({f"u_{name}": 0.5 for name in names})

    def suggested(trial: optuna.trial.BaseTrial) -> dict[str, float]:
        numbers = [trial.suggest_float(f"u_{name}", 0, 1) for name in names]
        return dict(zip(names, simplex_weights(numbers)))

    def objective(trial: optuna.Trial) -> float:
        def on_rung(step: int, evaluations: dict[str, Evaluation]) -> None:
            trial.set_user_attr("step", step)
            trial.report(fitted.goal.score_of(_metrics(evaluations)), resource[step])
            if step < rungs[-1] and trial.should_prune():
                raise optuna.TrialPruned

        run = fitted.store.run(
            fitted.model, fitted.tasks, suggested(trial), settings, on_rung=on_rung
        )
        return fitted.goal.score_of(_metrics(run.evaluations))

    def reached() -> list[int]:
        return [t.user_attrs.get("step", 0) for t in study.get_trials(deepcopy=False)]

    while sum(reached()) < budget:
        study.optimize(objective, n_trials=1)
    best = study.best_trial
    assert best.value is not None
    ends = tuple(reached().count(step) for step in rungs)
    weights = suggested(optuna.trial.FixedTrial(best.params))
    return Answer(weights, best.value, sum(reached()), ends[-1], ends)


def search_ours(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """A search as `open_search` opens it; it goes on where it would say that the score is flat.

    There is no second seed of uniform weights, which no other method has either.
    """
    definition = fitted.definition
    study = open_search(fitted, "real", seed=seed, second_seed=False, stop_when_flat=False)
    objective = Objective(fitted, progress=False)
    while (spent := steps_of(study, fitted)) < budget:
        study.optimize(objective, n_trials=1)
    best = study.best_trial
    assert best.value is not None
    weights = suggest_weights(optuna.trial.FixedTrial(best.params), definition.names)
    return Answer(weights, best.value, spent, len(_finetuned(study)))


def steps_of(study: optuna.Study, fitted: FittedStudy) -> int:
    """Training steps of task runs and finetunes. (Tasks alone are the task runs.)"""
    whole = fitted.definition.finetuning.steps
    return int(fitted.costs["task_run_steps"]) + whole * len(_finetuned(study))


SEARCHES: dict[str, Callable[[FittedStudy, int, int], Answer]] = {
    UNIFORM: search_uniform,
    "doubling rule": search_doubling,
    "own-weight curve": search_curve,
    "TPE + Hyperband (-log u)": search_hyperband,
    "ours": search_ours,
}


def prepared(definition: StudyDefinition, seed: int) -> StudyDefinition:
    """The definition with three rungs, and a seed of its own."""
    steps, settings = definition.finetuning.steps, definition.finetuning
    rungs = (round(steps / 9), round(steps / 3), steps)
    return replace(
        definition,
        finetuning=replace(settings, rung_steps=rungs, seed=settings.seed + seed),
        posterior=replace(definition.posterior, seed=definition.posterior.seed + seed),
    )


@dataclass(frozen=True)
class Judge:
    """Scores of finetunes with seeds that no search has seen, relative to one seed's task runs."""

    fitted: FittedStudy
    fresh: int

    def scores(self, weights: Weights) -> dict[str, list[float]]:
        """By part of the data, "validation" and "test", a score for each fresh seed."""
        definition, store = self.fitted.definition, self.fitted.store
        alone = self._alone_on_test()
        found: dict[str, list[float]] = {"validation": [], "test": []}
        for number in range(self.fresh):
            settings = replace(definition.finetuning, seed=FRESH + number)
            run = store.run(self.fitted.model, self.fitted.tasks, weights, settings)
            found["validation"].append(self.fitted.goal.score_of(_metrics(run.evaluations)))
            tested = self._on_test(weights, settings.seed)
            found["test"].append(float(definition.goal(alone).score_of(tested)))
        return found

    def _on_test(self, weights: Weights, seed: int) -> dict[str, float]:
        """Each task's metric on test data; the finetune must be there."""
        fitted = self.fitted
        settings = replace(fitted.definition.finetuning, seed=seed)
        run = fitted.store.run(fitted.model, fitted.tasks, weights, settings)
        fitted.model.reset()
        fitted.model.load(run.parameters(), source=str(run.path))
        batches = task_batches(
            fitted.model, fitted.tasks, "test", batch_size=settings.evaluation_batch_size
        )
        return _metrics(evaluate_tasks(fitted.model, fitted.tasks, batches, "test"))

    def _alone_on_test(self) -> dict[str, float]:
        names, seed = self.fitted.definition.names, self.fitted.definition.finetuning.seed
        baselines = baseline_weights(names)
        return {name: self._on_test(baselines[name], seed)[name] for name in names}


def compare(
    build: Callable[[], StudyDefinition],
    workdir: Path,
    score: str,
    seeds: int,
    budget: float,
    fresh: int,
) -> list[dict[str, Any]]:
    """A row for each method and seed.

    All answers are judged by the score of seed 0, which may be relative to its task runs.
    """

    def fitted_in(name: str, seed: int) -> FittedStudy:
        """In a copy of the seed's task runs: no finetune is found that another search made."""
        definition = prepared(replace(build(), score=score), seed)
        runs, folder = workdir / f"runs-{seed}", workdir / name
        if not folder.exists():
            fit(definition, runs, progress=False)
            part = folder.with_suffix(".part")
            shutil.copytree(runs, part, dirs_exist_ok=True, copy_function=_copy)
            part.rename(folder)
        return fit(definition, folder, progress=False)

    judge = Judge(fitted_in("judge", 0), fresh)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, search in SEARCHES.items():
            folder = "".join(c for c in name if c.isalnum())
            fitted = fitted_in(f"{score}-{seed}-{folder}", seed)
            answer = search(fitted, seed, round(budget * fitted.definition.finetuning.steps))
            scores = judge.scores(answer.weights)
            rows.append(
                {
                    "score": score,
                    "method": name,
                    "seed": seed,
                    "weights": dict(answer.weights),
                    "steps": answer.steps,
                    "finetunes": answer.finetunes,
                    "ends": list(answer.ends),
                    "seen": answer.seen,
                    "scores": scores["validation"],
                    "test_scores": scores["test"],
                }
            )
            shown = f"{mean(scores['test']):.4f} at {_shown(answer.weights)}"
            typer.echo(f"{score}, {name}, seed {seed}: {shown}", err=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: by method, means over its seeds with standard errors.

    The last columns before the weights are differences from uniform weights, of the same fresh
    seeds, paired by the searches' seeds.
    """
    lines = [
        "| method | steps | finetunes | score seen | validation, fresh | test, fresh "
        "| over uniform, validation | over uniform, test | weights |",
        "|" + "---|" * 9,
    ]
    equal = {row["seed"]: row for row in rows if row["method"] == UNIFORM}
    for name in SEARCHES:
        mine = [row for row in rows if row["method"] == name]
        cells = [name, f"{mean(r['steps'] for r in mine):.0f}"]
        cells += [
            f"{mean(r['finetunes'] for r in mine):.1f}",
            f"{mean(r['seen'] for r in mine):.4f}",
        ]
        parts = ("scores", "test_scores")
        cells += [with_error([mean(r[part]) for r in mine]) for part in parts]
        for part in parts:
            gains = [mean(r[part]) - mean(equal[r["seed"]][part]) for r in mine]
            cells.append("" if name == UNIFORM else with_error(gains, sign=True))
        cells.append("; ".join(_shown(r["weights"]) for r in mine))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_error(values: list[float], *, sign: bool = False) -> str:
    """A mean with its standard error over the values, where there are several."""
    shown = f"{mean(values):+.4f}" if sign else f"{mean(values):.4f}"
    if len(values) < 2:
        return shown
    return f"{shown} ± {stdev(values) / math.sqrt(len(values)):.4f}"


def _finetuned(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """All whole finetunes but those of a task alone."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t for t in done if t.user_attrs.get(BASELINE, UNIFORM) == UNIFORM]


def _metrics(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    return {name: e.metric.value for name, e in evaluations.items()}


def _normalised(weights: Weights) -> dict[str, float]:
    total = sum(weights.values())
    return {name: w / total for name, w in weights.items()}


def _shown(weights: Weights) -> str:
    return " / ".join(f"{w:.2f}".removeprefix("0") for w in weights.values())


def main(
    definition: Definition,
    workdir: Annotated[Path, typer.Option(help="Folder of finetunes.")] = Path("workdir/real"),
    seeds: Annotated[int, typer.Option(help="Searches of each method.")] = 3,
    budget: Annotated[float, typer.Option(help="Of a search, in finetunes.")] = 12.0,
    fresh: Annotated[int, typer.Option(help="Finetunes that judge an answer.")] = 3,
    scores: Annotated[str, typer.Option(help="Separated by commas.")] = "mean",
    debug: Debug = False,
) -> None:
    """Search for task weights in earnest, at equal cost.

    Example: python studies/search/real.py studies/mnist/optimize.py
    """

    def work() -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        rows = {
            score: compare(
                lambda: load_definition(definition), workdir, score, seeds, budget, fresh
            )
            for score in listed(scores)
        }
        name = definition.resolve().parent.name
        write_json(
            Path(__file__).with_name("results") / f"real-{name}.json",
            {
                "command": " ".join(["python", *sys.argv]),
                "searches": [row for found in rows.values() for row in found],
                "machine": {"cores": os.cpu_count(), "cpu": cpu_name()},
                "versions": {"python": platform.python_version()}
                | {package: version(package) for package in ("torch", "optuna", "numpy")},
            },
        )
        for score, found in rows.items():
            typer.echo(f"\n{score}\n\n{table(found)}")

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
