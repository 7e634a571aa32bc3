"""Search on known functions of task weights: regret after 15 truths.

    python tests/benchmarks/search_functions.py --tasks 4 8 --seeds 4 --csv functions.csv
    python tests/benchmarks/search_functions.py --composite --tasks 3 6 --seeds 4

A problem has a truth whose optimum is known (inside the simplex, or sparse: on a face) and a
preview that is biased, flatter, and correlated with the truth at .95, .8, .5, 0, or below zero,
over uniform random weights. The rest of a preview is another smooth function, so it misleads in
earnest.

Methods, all with the same number of truths:
    ours         60 previews by PreviewSampler, of which PromotionPruner promotes a fourth
    simplex GP   PreviewSampler on truths alone: no previews
    truths, T more   the same, with a truth more for each task: what the task runs cost that
                 previews need
    GPSampler    Optuna's, on truths alone, weights = parameters / sum
    TPE          likewise
    previews     60 previews by PreviewSampler that never sees a truth; the best is the answer
    random       uniform on the simplex
Regrets are in units of the truth's range, about 1 from its optimum to its mean times two. With
`--noise s` every value seen has an error of s standard deviations of the truth, and the regret is
that of the best truth as seen.

`--baselines`: the truths of uniform weights and of every task alone are there in advance, as
in a real study, for all methods but `previews` and `random`.

`--composite` compares PreviewSampler with and without `score=`: the score is the worst of the
metrics, each metric is a saturating function of all weights, each preview is too low, by a fifth,
and a fifth of it is another function.
"""

from __future__ import annotations

import argparse
import csv
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
import torch
from optuna.trial import TrialState

from optuna_merge.pruners import PromotionPruner, read_ledger
from optuna_merge.samplers import PreviewSampler
from optuna_merge.search import baseline_weights
from optuna_merge.trials import canonical_weights, suggest_weights, weight_params

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]


class Problem:
    """Truth and preview on the simplex over T tasks; both map `n x T` to `n`. The optimum is 0."""

    def __init__(
        self, n_tasks: int, correlation: float, sparse: bool, seed: int, noise: float = 0.0
    ) -> None:
        rng = np.random.default_rng([seed, n_tasks, int(sparse)])
        uniform = rng.dirichlet(np.ones(n_tasks), 20_000)
        self.tasks = [f"t{i}" for i in range(n_tasks)]
        self.truth = self._function(n_tasks, sparse, rng, uniform)
        other = self._function(n_tasks, bool(rng.random() < 0.5), rng, uniform)
        f, g = self.truth(uniform), other(uniform)
        mean, std = f.mean(), f.std()
        slope = np.mean((g - g.mean()) * (f - mean)) / std**2
        rest = (g - g.mean() - slope * (f - mean)).std()

        def preview(w: Array) -> Array:
            z = (self.truth(w) - mean) / std
            error = (other(w) - g.mean() - slope * std * z) / rest
            mixed = correlation * z + np.sqrt(1 - correlation**2) * error
            return mean - std + 0.6 * std * mixed

        self.preview: Function = preview
        self._noise, self._rng = noise * std, np.random.default_rng(seed)

    def see_truth(self, w: Array) -> float:
        """One finetune: the truth at `1 x T` with the noise of its seed."""
        return float(self.truth(w)[0] + self._noise * self._rng.normal())

    def see_preview(self, w: Array) -> float:
        return float(self.preview(w)[0] + self._noise * self._rng.normal())

    def regret(self, points: Array, seen: Sequence[float]) -> float:
        """Of the point that looked best, `n x T` and n values."""
        return -float(self.truth(points[[int(np.argmax(seen))]])[0])

    @staticmethod
    def _function(
        n_tasks: int, sparse: bool, rng: np.random.Generator, uniform: Array
    ) -> Function:
        best, slope = rng.dirichlet(np.full(n_tasks, 2.0)), np.zeros(n_tasks)
        if sparse:
            support = rng.permutation(n_tasks)[: max(2, n_tasks // 2 - 1)]
            best = np.zeros(n_tasks)
            best[support] = rng.dirichlet(np.full(len(support), 3.0))
            slope = np.where(best > 0, 0.0, rng.uniform(0.1, 0.6, n_tasks))
        basis = np.linalg.qr(rng.normal(size=(n_tasks, n_tasks)))[0]
        curvature = (basis * np.exp(rng.uniform(np.log(0.2), np.log(4), n_tasks))) @ basis.T

        def distance(w: Array) -> Array:
            return np.einsum("ni,ij,nj->n", w - best, curvature, w - best) + w @ slope

        unit = distance(uniform).mean()
        return lambda w: -distance(w) / (unit + distance(w))


def weights_of(trial: optuna.trial.BaseTrial, tasks: Sequence[str]) -> Array:
    return np.array([list(suggest_weights(trial, tasks).values())])


def run(study: optuna.Study, objective: Callable[[optuna.Trial], float], n_previews: int) -> None:
    """Trials until there are enough previews, and until all that was promoted is finetuned."""

    def goes_on() -> bool:
        trials = study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        return waiting or len(read_ledger(trials).previews) < n_previews

    while goes_on():
        study.optimize(objective, n_trials=1)


def baseline_points(n_tasks: int) -> Array:
    return np.concatenate([np.full((1, n_tasks), 1 / n_tasks), np.eye(n_tasks)])


def ours(problem: Problem, seed: int, n_truths: int, n_previews: int, baselines: bool) -> float:
    tasks = problem.tasks
    study = optuna.create_study(
        direction="maximize",
        sampler=PreviewSampler(tasks, seed=seed),
        pruner=PromotionPruner(fraction=n_truths / n_previews, seed=seed),
    )
    if baselines:
        for name, weights in baseline_weights(tasks).items():
            study.enqueue_trial(weight_params(weights), user_attrs={"baseline": name})

    def objective(trial: optuna.Trial) -> float:
        w = weights_of(trial, tasks)
        if "promoted_from" not in trial.user_attrs:
            trial.report(problem.see_preview(w), 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        return problem.see_truth(w)

    run(study, objective, n_previews)
    return regret_of(problem, study)


def regret_of(problem: Problem, study: optuna.Study) -> float:
    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    points = np.array([canonical_weights(list(t.params.values())) for t in done])
    return problem.regret(points, [t.value or 0.0 for t in done])


def truths_alone(
    problem: Problem, sampler: optuna.samplers.BaseSampler, n_truths: int, start: Array
) -> float:
    """A sampler that spends its evaluations on truths, after the points given."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for w in start.tolist():
        study.enqueue_trial(weight_params(dict(zip(problem.tasks, w))))
    study.optimize(
        lambda trial: problem.see_truth(weights_of(trial, problem.tasks)), n_trials=n_truths
    )
    return regret_of(problem, study)


def previews_only(problem: Problem, seed: int, n_previews: int) -> float:
    sampler = PreviewSampler(problem.tasks, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(n_previews):
        trial = study.ask()
        trial.report(problem.see_preview(weights_of(trial, problem.tasks)), 0)
        study.tell(trial, state=TrialState.PRUNED)
    points = np.array([canonical_weights(list(t.params.values())) for t in study.trials])
    return problem.regret(points, [t.intermediate_values[0] for t in study.trials])


def without_previews(
    problem: Problem, method: str, seed: int, n_truths: int, baselines: bool
) -> float:
    """The regret of a method that sees no preview."""
    n_tasks = len(problem.tasks)
    uniform = np.random.default_rng(seed).dirichlet(np.ones(n_tasks), n_truths)
    start, n_all = uniform[:6], n_truths
    if baselines:
        start, n_all = baseline_points(n_tasks), n_truths + n_tasks + 1
    if method == CHARGED:
        n_all += n_tasks
    if method == "random":
        return problem.regret(uniform, [problem.see_truth(w[None]) for w in uniform])
    sampler: optuna.samplers.BaseSampler
    if method in ("simplex GP", CHARGED):
        # Vertices are rarely good: it starts from spread points, like the others.
        sampler = PreviewSampler(problem.tasks, seed=seed, n_startup_trials=6)
    elif method == "GPSampler":
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=6)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)
    given = baselines or method in ("simplex GP", CHARGED)
    return truths_alone(problem, sampler, n_all, start if given else start[:0])


def worst_metric(metrics: Array) -> Array:
    return np.asarray(metrics.min(axis=-1))


def composite(n_tasks: int, seed: int, n_truths: int, n_previews: int, use_metrics: bool) -> float:
    rng = np.random.default_rng([seed, n_tasks])
    tasks = [f"t{i}" for i in range(n_tasks)]
    transfer = rng.uniform(-0.3, 0.5, (2, n_tasks, n_tasks))
    transfer[:, range(n_tasks), range(n_tasks)] = rng.uniform(1, 4, n_tasks)

    def metrics(w: Array, fidelity: int) -> Array:
        truth, error = (1 - np.exp(-(w @ c) * n_tasks / 2) for c in transfer)
        return truth if fidelity else 0.8 * (0.8 * truth + 0.2 * error)

    grid = np.random.default_rng(0).dirichlet(np.ones(n_tasks), 50_000)
    for step in 0.5 ** np.arange(12):  # zoom in on the optimum
        top = grid[np.argsort(-worst_metric(metrics(grid, 1)))[:50]]
        near = top.repeat(200, axis=0) * np.exp(step * rng.normal(size=(10_000, n_tasks)))
        grid = np.concatenate([top, near / near.sum(axis=1, keepdims=True)])
    optimum = float(worst_metric(metrics(grid, 1)).max())

    score = worst_metric if use_metrics else None
    study = optuna.create_study(
        direction="maximize",
        sampler=PreviewSampler(tasks, seed=seed, score=score),
        pruner=PromotionPruner(fraction=n_truths / n_previews, seed=seed, score=score),
    )

    def objective(trial: optuna.Trial) -> float:
        w = weights_of(trial, tasks)
        if "promoted_from" not in trial.user_attrs:
            trial.report(told(trial, "preview", metrics(w, 0)[0]), 0)
        if trial.should_prune():
            raise optuna.TrialPruned
        return told(trial, "truth", metrics(w, 1)[0])

    def told(trial: optuna.Trial, fidelity: str, values: Array) -> float:
        for task, value in zip(tasks, values):
            trial.set_user_attr(f"{fidelity}_{task}", float(value))
        return float(worst_metric(values))

    run(study, objective, n_previews)
    return optimum - study.best_value


def composite_table(args: Arguments) -> None:
    print(f"{'median (worst) regret':22s}{'scalar':>20s}{'metrics':>20s}")
    for n_tasks in args.tasks:
        for n_truths in (5, args.truths):
            table = np.array(
                [
                    [composite(n_tasks, s, n_truths, args.previews, m) for m in (False, True)]
                    for s in range(args.seeds)
                ]
            )
            cells = zip(np.median(table, axis=0), table.max(axis=0))
            print(
                f"T={n_tasks:<3d} truths {n_truths:<10d}"
                + "".join(f"{f'{m:.5f} ({w:.4f})':>20s}" for m, w in cells),
                flush=True,
            )


CHARGED = "truths, T more"
METHODS = ("ours", "previews", "simplex GP", CHARGED, "GPSampler", "TPE", "random")
FIELDS = ("tasks", "optimum", "correlation", "seed", "method", "regret")
ANY = "any"
"""The correlation of methods that see no preview."""


class Results:
    """Regrets by problem and method, in a CSV file if one is given, which is gone on with."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._regrets: dict[tuple[str, ...], float] = {}
        if path is not None and path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    key = tuple(row[field] for field in FIELDS[:-1])
                    self._regrets[key] = float(row["regret"])
        elif path is not None:
            self._write(FIELDS)

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return tuple(map(str, key)) in self._regrets

    def add(self, key: tuple[object, ...], regret: float) -> None:
        self._regrets[tuple(map(str, key))] = regret
        self._write((*key, f"{regret:.6g}"))

    def _write(self, row: Sequence[object]) -> None:
        if self._path is not None:
            with self._path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(row)

    def show(self, n_tasks: int, correlation: float, seeds: int) -> None:
        """Medians and ninth deciles over both kinds of optimum and so many seeds."""
        cells = []
        for method in METHODS:
            found = [
                regret
                for (tasks, _, by, seed, name), regret in self._regrets.items()
                if tasks == str(n_tasks) and name == method and by in (ANY, str(correlation))
                if int(seed) < seeds
            ]
            cells.append(
                f"{np.median(found):.5f} ({np.quantile(found, 0.9):.4f})" if found else "-"
            )
        print(
            f"T={n_tasks:<3d} correlation {correlation:<5}" + "".join(f"{c:>20s}" for c in cells),
            flush=True,
        )


def measure(
    results: Results, n_tasks: int, sparse: bool, correlation: float, seed: int, args: Arguments
) -> None:
    """Add the regrets of one problem that are missing."""
    optimum = "sparse" if sparse else "interior"

    def problem() -> Problem:  # each method sees the same noise
        return Problem(n_tasks, correlation, sparse, seed, args.noise)

    if (key := (n_tasks, optimum, correlation, seed, "ours")) not in results:
        regret = ours(problem(), seed, args.truths, args.previews, args.baselines)
        results.add(key, regret)
    if (key := (n_tasks, optimum, correlation, seed, "previews")) not in results:
        results.add(key, previews_only(problem(), seed, args.previews))
    for method in METHODS[2:]:
        if (key := (n_tasks, optimum, ANY, seed, method)) not in results:
            regret = without_previews(problem(), method, seed, args.truths, args.baselines)
            results.add(key, regret)


class Arguments(argparse.Namespace):
    tasks: list[int]
    seeds: int
    correlations: list[float]
    truths: int
    previews: int
    noise: float
    baselines: bool
    composite: bool
    csv: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--seeds", type=int, default=4, help="each with two kinds of optimum")
    parser.add_argument("--correlations", type=float, nargs="+", default=[0.95, 0.8, 0.5, 0.0])
    parser.add_argument("--truths", type=int, default=15)
    parser.add_argument("--previews", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--composite", action="store_true")
    parser.add_argument("--csv", type=Path, help="file of all regrets; goes on where it ends")
    args = parser.parse_args(namespace=Arguments())
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.composite:
        composite_table(args)
        return
    results = Results(args.csv)
    print(f"{'median (90%) regret':22s}" + "".join(f"{n:>20s}" for n in METHODS))
    for n_tasks in args.tasks:
        for correlation in args.correlations:
            for seed in range(args.seeds):
                for sparse in (False, True):
                    measure(results, n_tasks, sparse, correlation, seed, args)
            results.show(n_tasks, correlation, args.seeds)


if __name__ == "__main__":
    main()
