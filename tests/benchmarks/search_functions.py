"""Search on known functions of task weights: regret after 15 truths.

    python tests/benchmarks/search_functions.py --tasks 4 8 --seeds 4

A problem has a truth whose optimum is known (inside the simplex, or sparse: on a face) and a
preview that is biased, flatter, and correlated with the truth at .95, .8, .5 or 0 over uniform
random weights. The rest of a preview is another smooth function, so it misleads in earnest.

Methods, all with the same number of truths:
    ours         60 previews by PreviewSampler; after every fourth one the preview with the largest
                 expected improvement of the truth is promoted
    simplex GP   PreviewSampler on truths alone: no previews
    GPSampler    Optuna's, on truths alone, weights = parameters / sum
    previews     60 previews by PreviewSampler that never sees a truth; the best is the answer
    random       uniform on the simplex
Regrets are in units of the truth's range, about 1 from its optimum to its mean times two.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import optuna
import torch
from optuna.trial import TrialState, create_trial

from optuna_merge.samplers import PreviewSampler
from optuna_merge.samplers._acquisition import TruthImprovement
from optuna_merge.samplers._history import TrialReader
from optuna_merge.samplers._model import TruthModel
from optuna_merge.weights import canonical_weights, suggest_weights, weight_params

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]


class Problem:
    """Truth and preview on the simplex over T tasks; both map `n x T` to `n`. The optimum is 0."""

    def __init__(self, n_tasks: int, correlation: float, sparse: bool, seed: int) -> None:
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


def ours(
    problem: Problem, seed: int, n_truths: int, n_previews: int, report: list[float]
) -> float:
    tasks = problem.tasks
    study = optuna.create_study(direction="maximize", sampler=PreviewSampler(tasks, seed=seed))
    reader, promoted, truths = TrialReader(tuple(tasks)), set[int](), list[float]()
    for i in range(n_previews):
        start = time.perf_counter()
        trial = study.ask()
        w = np.array([list(suggest_weights(trial, tasks).values())])
        trial.report(float(problem.preview(w)[0]), 0)
        study.tell(trial, state=TrialState.PRUNED)
        report.append(time.perf_counter() - start)
        while i + 1 >= len(tasks) + 4 and len(truths) < n_truths * (i + 1) // n_previews:
            trials = study.get_trials(deepcopy=False)
            series = reader.read(study.study_name, trials).score(1.0)
            left = [t for t in trials if t.state == TrialState.PRUNED and t.number not in promoted]
            points = np.array([canonical_weights(list(t.params.values())) for t in left])
            acquisition = TruthImprovement(TruthModel.fit(series))
            value = acquisition(points) if truths else acquisition.merit(points)
            chosen = left[int(np.argmax(value))]
            promoted.add(chosen.number)
            truths.append(float(problem.truth(points[[int(np.argmax(value))]])[0]))
            study.add_trial(
                create_trial(
                    params=chosen.params,
                    distributions=chosen.distributions,
                    intermediate_values=chosen.intermediate_values,
                    user_attrs={"promoted_from": chosen.number},
                    value=truths[-1],
                )
            )
    return -max(truths)


def simplex_gp(problem: Problem, seed: int, n_truths: int) -> float:
    tasks = problem.tasks
    study = optuna.create_study(
        direction="maximize", sampler=PreviewSampler(tasks, seed=seed, n_startup_trials=6)
    )
    # The vertices are rarely good: like the others it starts from spread points.
    for w in np.random.default_rng(seed).dirichlet(np.ones(len(tasks)), 5):
        study.enqueue_trial(weight_params(dict(zip(tasks, w.tolist()))))

    def objective(trial: optuna.Trial) -> float:
        return float(problem.truth(np.array([list(suggest_weights(trial, tasks).values())]))[0])

    study.optimize(objective, n_trials=n_truths)
    return -study.best_value


def gp_sampler(problem: Problem, seed: int, n_truths: int) -> float:
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=6)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        w = suggest_weights(trial, problem.tasks)
        return float(problem.truth(np.array([list(w.values())]))[0])

    study.optimize(objective, n_trials=n_truths)
    return -study.best_value


def previews_only(problem: Problem, seed: int, n_previews: int) -> float:
    study = optuna.create_study(
        direction="maximize", sampler=PreviewSampler(problem.tasks, seed=seed)
    )
    best, regret = -np.inf, np.inf
    for _ in range(n_previews):
        trial = study.ask()
        w = np.array([list(suggest_weights(trial, problem.tasks).values())])
        value = float(problem.preview(w)[0])
        trial.report(value, 0)
        study.tell(trial, state=TrialState.PRUNED)
        if value > best:
            best, regret = value, -float(problem.truth(w)[0])
    return regret


def random_search(problem: Problem, seed: int, n_truths: int) -> float:
    w = np.random.default_rng(seed).dirichlet(np.ones(len(problem.tasks)), n_truths)
    return -float(problem.truth(w).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--seeds", type=int, default=4, help="each with two kinds of optimum")
    parser.add_argument("--correlations", type=float, nargs="+", default=[0.95, 0.8, 0.5, 0.0])
    parser.add_argument("--truths", type=int, default=15)
    parser.add_argument("--previews", type=int, default=60)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    names = ["ours", "simplex GP", "GPSampler", "previews", "random"]
    print(f"{'median (worst) regret':22s}" + "".join(f"{n:>20s}" for n in names) + "  s/ask")
    once: dict[tuple[int, bool, int], list[float]] = {}
    for n_tasks in args.tasks:
        for correlation in args.correlations:
            rows, seconds = [], []
            for seed in range(args.seeds):
                for sparse in (False, True):
                    problem = Problem(n_tasks, correlation, sparse, seed)
                    key = (n_tasks, sparse, seed)
                    if key not in once:  # these never see a preview
                        once[key] = [
                            simplex_gp(problem, seed, args.truths),
                            gp_sampler(problem, seed, args.truths),
                            random_search(problem, seed, args.truths),
                        ]
                    alone, stock, random = once[key]
                    mine = ours(problem, seed, args.truths, args.previews, seconds)
                    blind = previews_only(problem, seed, args.previews)
                    rows.append([mine, alone, stock, blind, random])
            table = np.array(rows)
            cells = zip(np.median(table, axis=0), table.max(axis=0))
            print(
                f"T={n_tasks:<3d} correlation {correlation:<5}"
                + "".join(f"{f'{m:.5f} ({w:.4f})':>20s}" for m, w in cells)
                + f"  {np.mean(seconds):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
