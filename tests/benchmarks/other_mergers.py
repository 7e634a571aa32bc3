"""Times mergekit's and FusionBench's merges; run by the interpreter that has one of them.

Usage: python other_mergers.py mergekit|fusion-bench|files SHAPES.json [PATHS...]
Prints one JSON object of seconds by method.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WEIGHTS = [0.2, 0.3, 0.5]


def best_of(run: Callable[[], Any], repeats: int = 7) -> float:
    """Least seconds of some runs, after one for warming up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def make_tensors(shapes: dict[str, list[int]], count: int) -> list[dict[str, torch.Tensor]]:
    """Random tensors of the shapes given, all positive, the same in every process."""
    torch.manual_seed(0)
    return [{k: torch.rand(s) + 0.1 for k, s in shapes.items()} for _ in range(count)]


def time_mergekit(shapes: dict[str, list[int]]) -> dict[str, float]:
    from mergekit.merge_methods.api import merge_state_dicts

    base, *models = make_tensors(shapes, 4)
    tasks = {"base": base, **{str(k): model for k, model in enumerate(models)}}
    scales = {"weight": {str(k): weight for k, weight in enumerate(WEIGHTS)}}
    arithmetic = {**scales, "normalize": False}
    return {
        "linear": best_of(
            lambda: merge_state_dicts(models, "linear", parameters={"weight": WEIGHTS})
        ),
        "task_arithmetic": best_of(
            lambda: merge_state_dicts(tasks, "task_arithmetic", parameters=arithmetic, base="base")
        ),
    }


def time_fusion_bench(shapes: dict[str, list[int]]) -> dict[str, float]:
    from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
    from fusion_bench.utils.state_dict_arithmetic import state_dict_weighted_sum

    tensors = make_tensors(shapes, 6)
    models, fishers = tensors[:3], tensors[3:]
    lists = {name: [model[name] for model in models] for name in shapes}
    scales = torch.tensor(WEIGHTS)
    return {
        "weighted_sum": best_of(lambda: state_dict_weighted_sum(models, WEIGHTS)),
        "fisher": best_of(
            lambda: merging_with_fisher_weights(
                lists, fishers, scales, normalize_fisher_weight=False
            )
        ),
    }


def time_mergekit_files(paths: list[str]) -> dict[str, float]:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    *models, output = paths
    config = {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "models": [
            {"model": model, "parameters": {"weight": weight}}
            for model, weight in zip(models, WEIGHTS)
        ],
    }
    configuration = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
    # From disk to disk: earlier writes are finished first, and our own before the clock stops.
    os.sync()
    start = time.perf_counter()
    run_merge(configuration, output, MergeOptions(lazy_unpickle=True, copy_tokenizer=False))
    os.sync()
    return {"files": time.perf_counter() - start}


def main() -> None:
    torch.set_num_threads(1)
    which, *arguments = sys.argv[1:]
    if which == "files":
        seconds = time_mergekit_files(arguments)
    else:
        shapes = json.loads(Path(arguments[0]).read_text())
        with torch.no_grad():
            seconds = (time_mergekit if which == "mergekit" else time_fusion_bench)(shapes)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
