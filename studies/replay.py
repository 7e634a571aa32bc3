"""What `optuna-merge replay` is worth: its answer and its curves against dense finetunes.

    python studies/replay.py --workdir workdir/replay

Two pairs of the digits' tasks: the pretrained body's own task is the general set, another
orientation the own data. The search is that of the command by default. Then shares on a grid are
finetuned with seeds that no search has seen; it goes on where it was ended. A sweep of five shares
with one seed each, the commonest way to choose, is compared on the same finetunes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import optuna

import optuna_merge as om
from optuna_merge.models import from_module
from optuna_merge.surrogate import MetricCurve, keeping, replay
from optuna_merge.trials import study_spending
from studies.digits.optimize import HEAD, definition, fresh_vit, pretrain
from studies.fetch import default_cache

Array = npt.NDArray[np.float64]
PAIRS = (("rotated", "upright"), ("mirrored", "upright"))
GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0)
SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
KEEP, N_TRIALS, MAX_PROMOTIONS = 0.95, 30, 6
FIRST_SEED = 100  # of the judge's finetunes
NEAR = 0.15  # of the share that is found


def pair_definition(own: str, general: str) -> om.StudyDefinition:
    """The digits' study of two of its tasks, as the command asks it."""
    whole = definition()
    tasks = [task for name in (own, general) for task in whole.tasks if task.name == name]
    body, head = fresh_vit()
    pretrain(body, head, default_cache())
    model = from_module(body, tasks, heads={HEAD: head})
    constraints = (keeping(general, KEEP),)
    return replace(whole, tasks=tasks, model=model, score=f"target:{own}", constraints=constraints)


def searched(fitted: om.FittedStudy, name: str, storage: str) -> optuna.Study:
    """The search by the command's defaults, to its end."""
    study = om.open_search(fitted, name, storage, max_promotions=MAX_PROMOTIONS, seed=0)
    objective = om.Objective(fitted, progress=False)
    waiting = optuna.trial.TrialState.WAITING
    missing = N_TRIALS - len([t for t in study.get_trials(deepcopy=False) if t.state != waiting])
    if missing > 0:
        study.optimize(objective, n_trials=missing)
    while study.get_trials(states=[waiting], deepcopy=False):
        study.optimize(objective, n_trials=1)
    return study


def dense(fitted: om.FittedStudy, own: str, general: str, seeds: int) -> Array:
    """Metrics of own and general at the grid's shares, `seeds x shares x 2`."""
    found = np.empty((seeds, len(GRID), 2))
    for seed in range(seeds):
        for i, share in enumerate(GRID):
            weights = {own: 1 - share, general: share}
            done = fitted.finetune(weights, _ignore, repeat=FIRST_SEED + seed).values
            found[seed, i] = done[own], done[general]
    return found


def _ignore(step: int, metrics: Mapping[str, float]) -> None:
    """A report that lets everything go on."""


def judged(study: optuna.Study, own: str, general: str, truths: Array) -> dict[str, Any]:
    """The answer beside the dense truths, whose means are drawn through by straight lines."""
    found = replay(study, general, KEEP)
    means = truths.mean(axis=0)
    fine = np.array(found.shares)
    true_own, true_general = (np.interp(fine, GRID, means[:, i]) for i in (0, 1))
    bound = KEEP * float(means[-1, 1])
    best = float(true_own[true_general >= bound].max())

    def at(share: float) -> dict[str, float]:
        mine, theirs = (float(np.interp(share, fine, of)) for of in (true_own, true_general))
        return {"share": share, "own": mine, "general": theirs, "kept": theirs / means[-1, 1]}

    def covered(curve: MetricCurve, truth: Array, near: bool) -> float:
        centre = found.best.share if found.best is not None else 0.5
        index = [
            int(np.argmin(np.abs(fine - s))) for s in GRID if not near or abs(s - centre) <= NEAR
        ]
        inside = [curve.low[i] <= truth[i] <= curve.high[i] for i in index]
        return float(np.mean(inside)) if inside else float("nan")

    sweeps = []
    for one in truths:
        rows = [GRID.index(share) for share in SWEEP]
        able = [i for i in rows if one[i, 1] >= KEEP * one[-1, 1]]
        sweeps.append(at(GRID[max(able, key=lambda i: one[i, 0])]) if able else None)
    curves = ((found.own, true_own), (found.general, true_general))
    return {
        "own": own,
        "general": general,
        "keep": KEEP,
        "bound": bound,
        "best": best,
        "found": None if found.best is None else at(found.best.share),
        "cautious": None if found.cautious is None else at(found.cautious.share),
        "finetuned": None if found.finetuned_best is None else at(found.finetuned_best.share),
        "sweep": sweeps,
        "covered": {c.task: covered(c, t, False) for c, t in curves},
        "covered_near": {c.task: covered(c, t, True) for c, t in curves},
        "finetunes": study_spending(study).total,
        "dense": {"shares": GRID, "own": means[:, 0].tolist(), "general": means[:, 1].tolist()},
        "error_of_dense": float((truths.std(axis=0, ddof=1) / len(truths) ** 0.5).mean()),
    }


def main() -> None:
    """Search, finetune the grid, judge, and store what is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("workdir/replay"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--own", nargs="*", default=[own for own, _ in PAIRS])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/replay.json")
    args = parser.parse_args()
    rows = []
    for own, general in PAIRS:
        if own not in args.own:
            continue
        name = f"{own}-{general}"
        fitted = om.fit(pair_definition(own, general), args.workdir / name, progress=False)
        study = searched(fitted, name, f"sqlite:///{args.workdir / name / 'study.db'}")
        truths = dense(fitted, own, general, args.seeds)
        rows.append(judged(study, own, general, truths))
        print(json.dumps(rows[-1], indent=1), flush=True)
    command = f"python studies/replay.py --seeds {args.seeds} --own {' '.join(args.own)}"
    text = json.dumps({"command": command, "pairs": rows}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
