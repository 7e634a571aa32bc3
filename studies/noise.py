"""What the noise of a finetune is by its prior, and what a seen gain is worth, on tables.

    python studies/noise.py

Of each table (`studies/families.py`) with two seeds or more: by task, the variance over seeds as a
share of the sampling variance on the validation data, where no weight is zero; how far off the
noise is when it is estimated from the prior alone, from one pair alone, and from both; and what
searches by random weights take for their gain over uniform ones. Such a search finetunes uniform
weights twice and 3 or 7 others once; the best of these is judged by a seed that it has not seen.
(Of tables with two seeds uniform weights' second one is the judge's.) Writes results/noise.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from optuna_merge._base.files import write_json
from optuna_merge.calibration import EVIDENT, PRIOR_FREEDOM, PRIOR_SHARE, shrunken_difference
from studies.search.tables import Tables, read_tables

HERE = Path(__file__).resolve().parent
TABLES = (
    "mnist/results",
    "newsgroups/results",
    "sentiment/results",
    "digits/results/tenths",
    "fashion/results/tenths",
    "text/results/sixths",
)
SCORES = ("worst", "mean", "relative")
SEARCHES = 300
_DRAWS = 2000

Json = dict[str, Any]


def shares(tables: Tables) -> dict[str, float]:
    """By task, the variance over seeds as a share of the sampling variance."""
    ends = tables.truths[:, -1, tables.weights.min(axis=1) > 0]
    mean = ends.mean(axis=0)
    sampling = (mean * (1 - mean) / tables.examples).mean(axis=0)
    return dict(zip(tables.tasks, (ends.var(axis=0, ddof=1).mean(axis=0) / sampling).tolist()))


def estimates(tables: Tables) -> dict[str, float]:
    """Root mean square error of the noise's logarithm: of the prior, of one pair, of both."""
    ends = tables.truths[:, -1, tables.weights.min(axis=1) > 0]
    mean = ends.mean(axis=0)
    prior = PRIOR_SHARE * (mean * (1 - mean) / tables.examples).mean(axis=0)
    true = ends.var(axis=0, ddof=1).mean(axis=0)
    pair = np.square(ends[0] - ends[1]) / 2
    both = (PRIOR_FREEDOM * prior + pair) / (PRIOR_FREEDOM + 1)
    least = np.square(0.5 / tables.examples)  # a pair may be equal
    found = {"prior": prior[None], "pair": np.maximum(pair, least), "both": both}
    return {
        name: float(np.sqrt(np.mean(np.square(np.log(of / true) / 2))))
        for name, of in found.items()
    }


def gains(tables: Tables, score: str, n: int) -> Json | None:
    """Of searches with n weightings: gains as seen, as expected, and by a fresh seed.

    None where fewer than a tenth of them see any.
    """
    rng = np.random.default_rng(0)
    values = tables.landscape(score).values[:, -1]
    seeds = len(values)
    weights = tables.weights
    uniform = int(np.argmin(np.abs(weights - 1 / weights.shape[1]).max(axis=1)))
    others = [i for i in np.flatnonzero(weights.max(axis=1) < 1) if i != uniform]
    metrics = tables.truths[:, -1, uniform].mean(axis=0)
    errors = np.sqrt(metrics * (1 - metrics) / tables.examples)
    drawn = tables.score(score, metrics + rng.normal(size=(_DRAWS, len(errors))) * errors)
    prior = PRIOR_FREEDOM * PRIOR_SHARE * drawn.var()
    rows = []
    for search in range(SEARCHES):
        mine, second, *rest = np.roll(np.arange(seeds), -search)
        judge = rest or [second]
        picked = sorted(rng.choice(others, n - 1, replace=False), key=lambda i: -values[mine, i])
        pair = values[[mine, second], uniform]
        noise = float(np.sqrt((prior + np.square(pair[0] - pair[1]) / 2) / (PRIOR_FREEDOM + 1)))
        truths = [values[mine, picked[0]], pair.mean(), *values[mine, picked[1:]]]
        counts = [1, 2, *[1] * (n - 2)]
        expected, _, chance = shrunken_difference(truths, counts, noise, PRIOR_FREEDOM + 1)
        fresh = values[judge, picked[0]].mean() - values[:, uniform].mean()
        if truths[0] > truths[1]:
            rows.append((truths[0] - truths[1], expected, fresh, chance >= EVIDENT))
    if len(rows) < SEARCHES / 10:
        return None
    seen, shrunken, fresh, evident = (np.array(column) for column in zip(*rows))
    told = evident.astype(bool)
    return {
        "searches": len(rows),
        "seen": float(seen.mean()),
        "expected": float(shrunken.mean()),
        "fresh": float(fresh.mean()),
        "evident": float(told.mean()),
        "fresh_where_evident": float(fresh[told].mean()) if told.any() else None,
        "noise": tables.landscape(score).noise,
    }


def main() -> None:
    found: Json = {}
    for folder in TABLES:
        tables = read_tables(HERE / folder)
        found[folder] = {
            "shares": shares(tables),
            "errors": estimates(tables),
            "gains": {
                f"{score}, {n} truths": row
                for score in (SCORES if tables.alone else SCORES[:2])
                for n in (4, 8)
                if (row := gains(tables, score, n)) is not None
            },
        }
    every = [share for of in found.values() for share in of["shares"].values()]
    errors = [of["errors"] for of in found.values()]
    rows = [row for of in found.values() for row in of["gains"].values()]
    bias = {
        kind: float(np.mean([(row[kind] - row["fresh"]) / row["noise"] for row in rows]))
        for kind in ("seen", "expected")
    }
    found["all"] = {
        "geometric_mean_share": float(np.exp(np.mean(np.log(every)))),
        "std_of_log_share": float(np.std(np.log(every), ddof=1)),
        "errors": {k: float(np.mean([e[k] for e in errors])) for k in errors[0]},
        "bias_in_noises": bias,
    }
    write_json(HERE / "results" / "noise.json", found)
    print("| table, score | seen | expected | fresh seed | told as a gain | fresh there | noise |")
    print("|---|---|---|---|---|---|---|")
    for folder, of in found.items():
        for name, row in of.get("gains", {}).items():
            there = row["fresh_where_evident"]
            print(
                f"| {folder.partition('/')[0]}, {name} | {row['seen']:+.4f} "
                f"| {row['expected']:+.4f} | {row['fresh']:+.4f} | {row['evident']:.0%} "
                f"| {'' if there is None else format(there, '+.4f')} | {row['noise']:.4f} |"
            )
    print(found["all"])


if __name__ == "__main__":
    main()
