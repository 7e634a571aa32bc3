"""What a preview costs beside the forward pass it can't do without; run on an idle machine.

    pytest tests/benchmarks/test_preview_speed.py -s --override-ini addopts=""

Prints one line a figure, `ratio <name> <value>`: medians of REPEATS, side by side in one run. The
posteriors are made up (the task runs' cost is not what is measured); the model and the data are
those of the text and the digits study.

The comparison with a preview made by hand (mergekit's merge in memory, a new model for every task,
transformers' Trainer) needs an environment with mergekit==0.1.5, transformers and accelerate in
$OPTUNA_MERGE_BENCHMARKS/mergekit.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optuna_merge.models import (
    LastLayers,
    MultitaskModel,
    cache_trunk,
    from_module,
    from_transformers as from_hub,
)
from optuna_merge.posteriors import DiagonalGaussian
from optuna_merge.previews import Previewer, PreviewSettings
from optuna_merge.tasks import EvaluationBatches, Task, text_task
from studies.digits.data import load_tasks as load_digits
from studies.digits.optimize import HEAD, fresh_vit
from studies.fetch import default_cache
from studies.text.data import body_path, load_tasks as load_texts

REPEATS = 5
EXAMPLES = 400
BATCH_SIZE = 64


def test_previews_of_minilm_beside_a_bare_forward_pass() -> None:
    cache = default_cache()
    body = str(body_path(cache))
    data = load_texts(cache, train=20, validation=EXAMPLES, test=20)
    tasks = [text_task(name, splits, body, max_length=40) for name, splits in data.items()]
    everything = from_hub(body, tasks, trainable="all")
    batches = {task.name: list(EvaluationBatches(task)) for task in tasks}

    def bare() -> None:
        with torch.inference_mode():
            for name, prepared in batches.items():
                for batch in prepared:
                    everything(batch, name)

    last = from_hub(body, tasks, trainable=LastLayers(2))
    whole = previewer(everything, tasks)
    part = previewer(last, cache_trunk(last, tasks))
    uniform = {task.name: 1 / 3 for task in tasks}
    half = previewer(everything, tasks, PreviewSettings(mixed_precision="bf16"))
    seconds = medians(bare, lambda: whole(uniform), lambda: part(uniform), lambda: half(uniform))
    report("preview_all_layers_to_bare_forward", seconds[1] / seconds[0])
    report("preview_two_of_six_layers_to_bare_forward", seconds[2] / seconds[0])
    report("preview_all_layers_to_the_same_in_bf16", seconds[1] / seconds[3])


def test_previews_of_minilm_beside_those_made_by_hand(tmp_path: Path) -> None:
    python = Path(os.environ.get("OPTUNA_MERGE_BENCHMARKS", "nowhere")) / "mergekit/bin/python"
    if not python.exists():
        pytest.skip(f"{python} does not exist; OPTUNA_MERGE_BENCHMARKS names its folder")
    cache = default_cache()
    body = str(body_path(cache))
    data = load_texts(cache, train=20, validation=EXAMPLES, test=20)
    tasks = [text_task(name, splits, body, max_length=40) for name, splits in data.items()]
    columns = {
        f"{task.name}.{name}": column.contiguous()
        for task in tasks
        for name, column in task.validation.columns.items()  # type: ignore[union-attr]
    }
    save_file(columns, tmp_path / "data.safetensors")
    everything = from_hub(body, tasks, trainable="all")
    last = from_hub(body, tasks, trainable=LastLayers(2))
    whole = previewer(everything, tasks)
    part = previewer(last, cache_trunk(last, tasks))
    uniform = {task.name: 1 / 3 for task in tasks}
    script = Path(__file__).with_name("by_hand.py")
    command = [str(python), str(script), body, str(tmp_path / "data.safetensors")]
    command += [str(n) for n in (BATCH_SIZE, torch.get_num_threads(), REPEATS)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ours = medians(lambda: whole(uniform), lambda: part(uniform))
    output = subprocess.run(
        [*command, str(tmp_path / "trainer")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    ).stdout
    theirs = json.loads(output.splitlines()[-1])
    report("preview_all_layers_over_by_hand", theirs["all"] / ours[0])
    report("preview_two_of_six_layers_over_by_hand", theirs["last_two"] / ours[1])


def test_memory_of_a_thousand_previews() -> None:
    tasks = [
        Task(name, data["train"], data["validation"], 10, head=HEAD)
        for name, data in load_digits().items()
    ]
    body, head = fresh_vit()
    made = previewer(from_module(body, tasks, heads={HEAD: head}), tasks)
    names = [task.name for task in tasks]
    peaks = []
    for row in torch.distributions.Dirichlet(torch.ones(3)).sample((1000,)).tolist():
        made(dict(zip(names, row)))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    report("peak_memory_after_1000_previews_to_after_10", peaks[-1] / peaks[9])


def previewer(
    model: MultitaskModel,
    tasks: list[Task] | tuple[Task, ...],
    settings: PreviewSettings | None = None,
) -> Previewer:
    """A previewer of made-up posteriors around the model's own parameters."""
    torch.manual_seed(0)
    state = model.state(model.shared_names())
    posteriors = {
        task.name: DiagonalGaussian(
            {name: t + 1e-3 * torch.randn_like(t) for name, t in state.items()},
            {name: torch.rand_like(t) + 1e-3 for name, t in state.items()},
        )
        for task in tasks
    }
    heads = {task.name: model.state(model.own_names(task.name)) for task in tasks}
    return Previewer(model, tasks, posteriors, heads, batch_size=BATCH_SIZE, settings=settings)


def medians(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, their repeats taken in turn after one warm-up each."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 1):
        for function, taken in zip(functions, seconds):
            started = time.perf_counter()
            function()
            if repeat:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]


def report(name: str, value: float) -> None:
    print(f"ratio {name} {value:.3f}")
