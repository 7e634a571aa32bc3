"""Searches for task weights at equal cost, replayed on a study's tables of finetunes.

    OPTUNA_MERGE_BENCHMARKS=FOLDER python studies/search/peers.py studies/mnist/results

The tables are those that `studies/families.py` makes of a full grid. Cost is counted in units of
one finetune on three axes: training steps, examples (forward passes too), and seconds, by the
study's prices.json (`studies/search/prices.py`). Methods that use previews pay for the task runs
and posteriors, and for each preview. All finetunes of a search have one of the table's seeds;
regret is measured by the seeds that it does not see.
`studies/search/methods.py` has the methods. SMAC3 and Syne Tune run in virtual environments of
their own, FOLDER/smac and FOLDER/syne-tune; without FOLDER they are left out.

Writes NAME.csv (a row a search, with the costs of each truth that looked best in it),
NAME-curves.csv, NAME-costs.csv (quartiles of the cost until within the noise of one finetune of
the best, and how many finetunes ended at each rung), NAME.md, NAME.svg and NAME.json for each
study, and goes on where it ended.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import optuna
import torch
import typer

from optuna_merge._base.files import atomic_path, sha256_file, write_json
from optuna_merge.commands import Debug, guarded
from studies.families import cpu_name
from studies.flags import listed
from studies.preview_quality import write_csv
from studies.search import others
from studies.search.methods import METHODS, PARTS
from studies.search.regret import (
    Curve,
    Search,
    difference_table,
    difficulty,
    ordered,
    picture,
    quartiles,
    reached,
    table,
)
from studies.search.replay import AXES, Record, Truth
from studies.search.tables import Tables, read_tables

FOLDER = "OPTUNA_MERGE_BENCHMARKS"
SCORES = "worst,relative,mean"
AT = (1, 4, 6, 8, 10, 12, 16)
"""Costs at which tables give the regret."""

PREVIEWED = ("best previews", "quadratic", "ours until flat", "ours", *PARTS)
"""Methods that depend on the previews."""

OURS = "ours"

CHEAP = (
    "uniform",
    "proportional",
    "doubling rule",
    "own-weight curve",
    "random",
    "TPE",
    "TPE (-log u)",
    "TPE + Hyperband",
    "TPE + Hyperband (-log u)",
    "ASHA",
    "ASHA (-log u)",
)
"""Methods of which many searches are cheap."""

OF_PREVIEWS = ("family", "previews.csv")
"""What of the tables only these depend on."""

HERE = METHODS | PARTS
"""Methods of this process."""

Key = tuple[str, str, int]
"""Score, method and seed."""


@dataclass(frozen=True)
class Replay:
    """What is replayed on the tables of one study."""

    folder: Path
    family: str
    budget: float


_tables = cache(read_tables)  # once a process: most searches take less time than reading them


def run_here(replay: Replay, score: str, method: str, seed: int) -> dict[int, Record]:
    """One search by a method of this process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tables = _tables(replay.folder, replay.family)
    return {seed: HERE[method](tables, score, seed, replay.budget).record}


def run_there(
    replay: Replay, score: str, method: str, seeds: list[int], environments: Path
) -> dict[int, Record]:
    """All searches by a method of another library, in its environment.

    Raises:
        RuntimeError: it failed; the message ends with what it printed.
    """
    landscape = read_tables(replay.folder, replay.family).landscape(score)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "landscape.json"
        write_json(path, landscape.as_json())
        arguments = [method, str(path), str(replay.budget), *map(str, seeds)]
        done = subprocess.run(
            [
                environments / others.METHODS[method] / "bin" / "python",
                others.__file__,
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{method} failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return {
        seed: Record([Truth(tuple(costs), *rest) for costs, *rest in truths], ends)
        for seed, (truths, ends) in zip(seeds, found)
    }


class Results:
    """The searches of one study, in a CSV file that is gone on with if the tables are the same.

    Where nothing but the previews has changed, searches without previews stay.
    """

    def __init__(self, out: Path, name: str, about: dict[str, Any]) -> None:
        self._path = out / f"{name}.csv"
        self._searches: dict[Key, Search] = {}
        self._ends: dict[Key, list[int]] = {}
        note = out / f"{name}.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        old, new = known.get("tables", {}), about["tables"]
        if self._path.exists() and _of_truths(old) == _of_truths(new):
            self._read(without=() if old == new else PREVIEWED)
        else:  # before the note says otherwise: this may end at any time
            self._path.unlink(missing_ok=True)
        write_json(note, about)

    def __contains__(self, key: Key) -> bool:
        return key in self._searches

    def add(self, key: Key, search: Search, ends: list[int]) -> None:
        """A search, and how many of its finetunes ended at each rung."""
        self._searches[key], self._ends[key] = search, ends

    def of(self, score: str) -> dict[str, list[Search]]:
        """By method."""
        found = defaultdict(list)
        for (its, method, _), search in sorted(self._searches.items()):
            if its == score:
                found[method].append(search)
        return dict(found)

    def ends(self, score: str, method: str) -> list[int]:
        """How many finetunes of all its searches ended at each rung."""
        found = [e for (*key, _), e in self._ends.items() if key == [score, method]]
        return [sum(rung) for rung in zip(*found)]

    def write(self) -> None:
        rows: list[list[object]] = [["score", "method", "seed", "ends", *AXES, "regret"]]
        for key, search in sorted(self._searches.items()):
            costs = [_joined(f"{cost:.4g}" for cost in axis) for axis in search.costs]
            regrets = _joined(f"{regret:.5g}" for regret in search.regrets)
            rows.append([*key, _joined(map(str, self._ends[key])), *costs, regrets])
        write_csv(self._path, rows)

    def _read(self, without: Collection[str]) -> None:
        with self._path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key = row["score"], row["method"], int(row["seed"])
                if row["method"] in without:
                    continue
                *costs, regrets = (
                    tuple(map(float, row[column].split())) for column in (*AXES, "regret")
                )
                self._searches[key] = Search(tuple(costs), regrets)
                self._ends[key] = [int(end) for end in row["ends"].split()]


def _joined(numbers: Iterable[str]) -> str:
    """Several numbers in one cell."""
    return " ".join(numbers)


def _of_truths(tables: dict[str, Any]) -> dict[str, Any]:
    return {part: found for part, found in tables.items() if part not in OF_PREVIEWS}


def missing(
    results: Results,
    replay: Replay,
    scores: list[str],
    methods: list[str],
    seeds: dict[str, int],
    environments: Path | None,
    pool: ProcessPoolExecutor,
) -> Iterator[tuple[str, str, Future[dict[int, Record]]]]:
    """Start what is not there yet, the longest first; `seeds` by method."""
    for method in reversed(ordered(methods)):
        for score in scores:
            wanted = [s for s in range(seeds[method]) if (score, method, s) not in results]
            if method in HERE:
                for seed in wanted:
                    yield score, method, pool.submit(run_here, replay, score, method, seed)
            elif wanted and environments is not None:
                yield (
                    score,
                    method,
                    pool.submit(run_there, replay, score, method, wanted, environments),
                )


def compare(
    replay: Replay,
    out: Path,
    scores: list[str],
    methods: list[str],
    seeds: dict[str, int],
    processes: int,
) -> str:
    """Run what is missing, write the files, and return the tables; `seeds` by method."""
    tables = read_tables(replay.folder, replay.family)
    if len(set(tables.sizes)) == 1:  # then these are uniform weights
        methods = [method for method in methods if method != "proportional"]
    landscapes = {score: tables.landscape(score) for score in scores}
    found = os.environ.get(FOLDER)
    environments = None if found is None else Path(found)
    results = Results(out, tables.name, _about(replay, tables, environments))
    pool = ProcessPoolExecutor(processes)
    try:
        begun = {
            future: (score, method)
            for score, method, future in missing(
                results, replay, scores, methods, seeds, environments, pool
            )
        }
        for count, future in enumerate(as_completed(begun)):
            score, method = begun[future]
            for seed, record in future.result().items():
                search = Search.of(record.truths, landscapes[score], seed)
                results.add((score, method, seed), search, record.ends)
            if count % 20 == 0 or method not in HERE:
                results.write()
    finally:  # where a search or the disk fails, no further search is begun
        pool.shutdown(cancel_futures=True)
    results.write()
    return _publish(results, replay, tables, out, scores)


def _publish(
    results: Results, replay: Replay, tables: Tables, out: Path, scores: list[str]
) -> str:
    panels, parts = {}, []
    curves: list[list[object]] = [["score", "method", "axis", "cost", "mean", "low", "high"]]
    untils: list[list[object]] = [
        ["score", "method", "axis", "low", "median", "high", "reached", *_rungs(tables)]
    ]
    costs = np.arange(1.0, replay.budget + 0.5)
    at = [cost for cost in AT if cost <= replay.budget]
    for score in scores:
        landscape, searches = tables.landscape(score), results.of(score)
        noise = landscape.noise
        panels[f"{tables.name}: {score}"] = (searches, noise)
        parts += [
            f"{tables.name}, {score}: {difficulty(landscape, _uniform_regret(tables, score))}.",
            f"Rank correlation with the truth where no weight is zero: {_ranks(tables, score)}.",
            table(searches, noise, at, dict.fromkeys(searches, replay.budget)),
            f"Ours less each of the others, regret at {at[-1]:g} finetunes in steps:",
            difference_table(searches, OURS, at[-1]),
        ]
        for method in ordered(searches):
            ends, found = results.ends(score, method), searches[method]
            for axis, name in enumerate(AXES):
                curve = Curve.of(found, costs, axis)
                for cost, *values in zip(costs, curve.mean, curve.low, curve.high):
                    numbers = ["" if np.isnan(v) else f"{v:.5g}" for v in values]
                    curves.append([score, method, name, f"{cost:g}", *numbers])
                until = [f"{q:.4g}" for q in quartiles(found, noise, axis)]
                share = reached(found, noise, replay.budget, axis)
                untils.append([score, method, name, *until, f"{share:.3g}", *ends])
    write_csv(out / f"{tables.name}-curves.csv", curves)
    write_csv(out / f"{tables.name}-costs.csv", untils)
    text = "\n\n".join(parts)
    drawn = picture(panels, replay.budget)
    for name, content in ((f"{tables.name}.md", f"{text}\n"), (f"{tables.name}.svg", drawn)):
        with atomic_path(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text


def _rungs(tables: Tables) -> list[str]:
    return [f"ends_at_{step}" for step in tables.steps]


def _uniform_regret(tables: Tables, score: str) -> float:
    """What uniform weights lose, mean over all seeds.

    Raises:
        ValueError: they were not finetuned.
    """
    landscape, n_tasks = tables.landscape(score), len(tables.tasks)
    near = np.flatnonzero(np.abs(tables.weights - 1 / n_tasks).max(axis=1) < 1e-6)
    if not len(near):
        raise ValueError(
            f"the tables of {tables.name!r} have no finetunes at uniform weights; add them by the "
            f"command that made the tables, with --extend"
        )
    return float(landscape.truth.max() - landscape.truth[near[0]])


def _ranks(tables: Tables, score: str) -> str:
    return ", ".join(f"{name} {rank:.2f}" for name, rank in tables.ranks(score).items())


def _about(replay: Replay, tables: Tables, environments: Path | None) -> dict[str, Any]:
    files = ("truth.csv", "previews.csv")
    return {
        "command": " ".join(["python", *sys.argv]),
        "tables": {name: sha256_file(replay.folder / name) for name in files}
        | {
            "family": replay.family,
            "budget": replay.budget,
            "prices": json.loads(json.dumps(asdict(tables.prices))),
        },
        "steps": tables.steps,
        "refined": list(tables.refined),
        "truth_seeds": len(tables.truths),
        "posterior_sets": len(tables.previews),
        "machine": {"cores": os.cpu_count(), "cpu": cpu_name()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "optuna", "botorch", "numpy")}
        | ({} if environments is None else _other_versions(environments)),
    }


def _other_versions(environments: Path) -> dict[str, str]:
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    return {
        name: subprocess.run(
            [environments / name / "bin" / "python", "-c", code, name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in dict.fromkeys(others.METHODS.values())
    }


def main(
    results: Annotated[list[Path], typer.Argument(help="Folders of the studies' tables.")],
    out: Annotated[Path, typer.Option(help="Folder of what is found.")] = Path(
        "studies/search/results"
    ),
    scores: Annotated[str, typer.Option(help="Separated by commas.")] = SCORES,
    methods: Annotated[
        str, typer.Option(help="Separated by commas; default all but ours without a part.")
    ] = "",
    family: Annotated[str, typer.Option(help="Posteriors of the previews.")] = "diagonal+heads",
    seeds: Annotated[int, typer.Option(help="Searches of each method.")] = 20,
    cheap_seeds: Annotated[
        int, typer.Option(help="Searches of each method whose searches are cheap.")
    ] = 200,
    budget: Annotated[float, typer.Option(help="Of a search, in finetunes.")] = 12.0,
    processes: Annotated[int, typer.Option(help="Searches at a time.")] = 2,
    debug: Debug = False,
) -> None:
    """Compare searches for task weights at equal cost.

    Example: python studies/search/peers.py studies/mnist/results studies/fashion/results
    """

    def work() -> None:
        known = ordered([*HERE, *others.METHODS])
        chosen = listed(methods) or [m for m in known if m not in PARTS]
        if unknown := [m for m in chosen if m not in known]:
            raise ValueError(f"no method {unknown[0]!r}, only {', '.join(known)}")
        out.mkdir(parents=True, exist_ok=True)
        for folder in results:
            counts = {m: max(seeds, cheap_seeds) if m in CHEAP else seeds for m in chosen}
            replay = Replay(folder, family, budget)
            typer.echo(compare(replay, out, listed(scores), chosen, counts, processes) + "\n")

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
