"""Real searches of a study at equal cost, without any table: uniform weights, Optuna's, ours.

    python studies/search/real.py studies/mnist/optimize.py --scores worst,relative --seeds 3

Every method may train for so many steps as `--budget` finetunes take, task runs included;
finetunes are evaluated at a ninth, a third and the end of their steps, where TPE + Hyperband may
stop them. The weights that each search ends with are then finetuned again with `--fresh` seeds
that no search has seen, whose mean score is the answer. Writes into the folder results beside this
file, and prints a table.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna
import typer
from optuna.trial import TrialState

from optuna_merge import Objective, PreviewSampler, PromotionPruner
from optuna_merge._files import write_json
from optuna_merge.cli import Debug, Definition
from optuna_merge.commands import guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.study import BASELINE, UNIFORM, baseline_weights, prepare_study
from optuna_merge.tasks import Evaluation
from optuna_merge.weights import suggest_weights, weight_params
from studies.families import cpu_name
from studies.search.methods import STARTUP

FRESH = 1000
"""Seeds from here on were seen by no search."""


@dataclass(frozen=True)
class Answer:
    """What a search ended with.

    Attributes:
        weights: Its best task weights.
        seen: The score that it saw there.
        steps: Training steps that it took.
        finetunes: Whole finetunes among them, task runs not counted.
    """

    weights: Mapping[str, float]
    seen: float
    steps: int
    finetunes: int


def search_uniform(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """One finetune at uniform weights."""
    weights = baseline_weights(fitted.definition.names)[UNIFORM]
    settings = fitted.definition.finetuning
    run = fitted.store.run(fitted.model, fitted.tasks, weights, settings)
    return Answer(weights, fitted.score(_metrics(run.evaluations)), settings.steps, 1)


def search_hyperband(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """Optuna's TPESampler, and HyperbandPruner over the rungs of a finetune."""
    names, settings = fitted.definition.names, fitted.definition.finetuning
    first, *_, last = settings.rungs()
    study = optuna.create_study(
        study_name=str(seed),  # brackets are drawn by it
        direction=fitted.definition.direction,
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
        pruner=optuna.pruners.HyperbandPruner(min_resource=first, max_resource=last),
    )
    study.enqueue_trial(weight_params(baseline_weights(names)[UNIFORM]))
    spent = 0

    def objective(trial: optuna.Trial) -> float:
        def on_rung(step: int, evaluations: dict[str, Evaluation]) -> None:
            nonlocal spent
            spent += step - max(trial.user_attrs.get("step", 0), 0)
            trial.set_user_attr("step", step)
            trial.report(fitted.score(_metrics(evaluations)), step)
            if step < last and trial.should_prune():
                raise optuna.TrialPruned

        weights = suggest_weights(trial, names)
        run = fitted.store.run(fitted.model, fitted.tasks, weights, settings, on_rung=on_rung)
        return fitted.score(_metrics(run.evaluations))

    while spent < budget:
        study.optimize(objective, n_trials=1)
    return _answer(study, fitted, spent)


def search_ours(fitted: FittedStudy, seed: int, budget: int) -> Answer:
    """`PreviewSampler` and `PromotionPruner`, with their defaults."""
    definition = fitted.definition
    study = optuna.create_study(
        direction=definition.direction,
        sampler=PreviewSampler(definition.names, seed=seed, score=fitted.scores),
        pruner=PromotionPruner(score=fitted.scores, seed=seed),
    )
    prepare_study(study, fitted)
    objective = Objective(fitted, progress=False)
    while (spent := steps_of(study, fitted)) < budget:
        study.optimize(objective, n_trials=1)
    return _answer(study, fitted, spent)


def steps_of(study: optuna.Study, fitted: FittedStudy) -> int:
    """Training steps of task runs and finetunes. (Tasks alone are the task runs.)"""
    whole = fitted.definition.finetuning.steps
    return int(fitted.costs["task_run_steps"]) + whole * len(_finetuned(study))


SEARCHES: dict[str, Callable[[FittedStudy, int, int], Answer]] = {
    "uniform": search_uniform,
    "TPE + Hyperband": search_hyperband,
    "ours": search_ours,
}


def prepared(definition: StudyDefinition, seed: int) -> StudyDefinition:
    """The definition with three rungs, merges alone as previews, and a seed of its own."""
    steps, settings = definition.finetuning.steps, definition.finetuning
    rungs = (round(steps / 9), round(steps / 3), steps)
    return replace(
        definition,
        finetuning=replace(settings, rung_steps=rungs, seed=settings.seed + seed),
        posterior=replace(definition.posterior, seed=definition.posterior.seed + seed),
        refinement=None,
    )


def judged(fitted: FittedStudy, weights: Mapping[str, float], fresh: int) -> list[float]:
    """Scores of finetunes at the weights with seeds that no search has seen."""
    scores = []
    for number in range(fresh):
        settings = replace(fitted.definition.finetuning, seed=FRESH + number)
        run = fitted.store.run(fitted.model, fitted.tasks, weights, settings)
        scores.append(fitted.score(_metrics(run.evaluations)))
    return scores


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
            shutil.copytree(runs, part, dirs_exist_ok=True)
            part.rename(folder)
        return fit(definition, folder, progress=False)

    judge = fitted_in("judge", 0)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, search in SEARCHES.items():
            fitted = fitted_in(f"{score}-{seed}-{name.replace(' ', '')}", seed)
            answer = search(fitted, seed, round(budget * fitted.definition.finetuning.steps))
            scores = judged(judge, answer.weights, fresh)
            rows.append(
                {
                    "score": score,
                    "method": name,
                    "seed": seed,
                    "weights": dict(answer.weights),
                    "steps": answer.steps,
                    "finetunes": answer.finetunes,
                    "seen": answer.seen,
                    "scores": scores,
                }
            )
            shown = f"{mean(scores):.4f} at {_shown(answer.weights)}"
            typer.echo(f"{score}, {name}, seed {seed}: {shown}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: by method, means over its seeds and their standard deviation."""
    lines = [
        "| method | steps | finetunes | score seen | fresh score | weights |",
        "|" + "---|" * 6,
    ]
    for name in SEARCHES:
        mine = [row for row in rows if row["method"] == name]
        fresh = [mean(row["scores"]) for row in mine]
        spread = f" ± {stdev(fresh):.4f}" if len(fresh) > 1 else ""
        lines.append(
            f"| {name} | {mean(r['steps'] for r in mine):.0f} "
            f"| {mean(r['finetunes'] for r in mine):.1f} "
            f"| {mean(r['seen'] for r in mine):.4f} | {mean(fresh):.4f}{spread} "
            f"| {'; '.join(_shown(r['weights']) for r in mine)} |"
        )
    return "\n".join(lines)


def _answer(study: optuna.Study, fitted: FittedStudy, spent: int) -> Answer:
    best = study.best_trial
    names = fitted.definition.names
    weights = suggest_weights(optuna.trial.FixedTrial(best.params), names)
    assert best.value is not None
    return Answer(weights, best.value, spent, len(_finetuned(study)))


def _finetuned(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """All whole finetunes but those of a task alone."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t for t in done if t.user_attrs.get(BASELINE, UNIFORM) == UNIFORM]


def _metrics(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    return {name: e.metric.value for name, e in evaluations.items()}


def _shown(weights: Mapping[str, float]) -> str:
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
            for score in map(str.strip, scores.split(","))
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
