"""How costs grow: with the tasks, the size of the body, and the task runs of a mixture.

    python studies/growth.py

Times the parts of a study on scikit-learn's digits: the posteriors' curvature, one merge, the
heads solved for it, one preview (merge, heads and evaluation), one training step of a real
finetune, and what the sampler takes for one suggestion. Tasks are pairs of classes (0 or 1, 1 or
2, ...) that share one head; bodies are vision transformers of fresh parameters, for how long
things take does not depend on what they learn. Writes growth.csv and growth.svg into
studies/results. Every configuration is timed in a process of its own, on one thread. A task run
costs as many steps as a finetune, each a step's part of one task.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
import timm
import torch
import typer

from optuna_merge import (
    FinetuneSettings,
    PosteriorSettings,
    PreviewSampler,
    PreviewSettings,
    StudyDefinition,
    Task,
)
from optuna_merge._base.files import atomic_path
from optuna_merge.commands import Debug, guarded
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.models import from_module
from optuna_merge.trials import suggest_weights, weight_params
from studies.digits.data import Split, load_tasks
from studies.pictures import svg, text
from studies.preview_quality import write_csv

BODIES = {"0.1M": (64, 2), "1M": (128, 5), "10M": (320, 8), "100M": (832, 12)}
"""Width and layers of the bodies, by their size."""

PARTS = ("posteriors", "merge", "heads", "preview", "finetune step", "suggestion")
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#444444")
MERGED = PreviewSettings(heads="merged")  # heads of the task runs, not solved for a merge
_PREVIEWS, _TRUTHS = 60, 15  # of the history that a suggestion is made from
_REPEATS = 5
_WIDTH, _HEIGHT, _LEFT, _GAP = 250.0, 210.0, 50.0, 62.0


@dataclass(frozen=True)
class Configuration:
    """What is timed.

    Attributes:
        axis: What varies: "tasks", "parameters" or "components".
        body: One of `BODIES`.
        tasks: Number of tasks.
        family: Posterior family.
        components: Task runs that a posterior is made of.
        examples: Of a task, for training and validation each.
        batch_size: Of a training step, a task.
    """

    axis: str
    body: str = "0.1M"
    tasks: int = 3
    family: str = "diagonal"
    components: int = 1
    examples: int = 64
    batch_size: int = 16

    def definition(self) -> StudyDefinition:
        width, layers = BODIES[self.body]
        data = load_tasks()["upright"]
        pairs = sorted(combinations(range(10), 2), key=lambda p: ((p[1] - p[0]) % 5, p))
        tasks = []
        for one, other in pairs[: self.tasks]:
            train, validation = (
                _pair(data[split], (one, other), self.examples)
                for split in ("train", "validation")
            )
            tasks.append(Task(f"{one}or{other}", train, validation, 10, head="digits"))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            body = timm.models.VisionTransformer(
                img_size=8, patch_size=2, in_chans=1, embed_dim=width, depth=layers,
                num_heads=max(width // 64, 1), num_classes=0,
            )  # fmt: skip
            model = from_module(body, tasks, features=width)
        return StudyDefinition(
            tasks=tasks,
            model=model,
            finetuning=FinetuneSettings(
                steps=4, batch_size=self.batch_size, num_rungs=1, evaluation_batch_size=64
            ),
            posterior=PosteriorSettings(
                family=self.family,
                examples=self.examples,
                chunk_size=4 if self.body == "100M" else 16,
                components=self.components,
                responsibilities="fixed",
                damping=1e-3,
            ),
        )


def _pair(split: Split, classes: tuple[int, int], count: int) -> Split:
    """So many examples of two classes, some more than once if there are too few."""
    rows = torch.isin(split["labels"], torch.tensor(classes)).nonzero()[:, 0]
    rows = rows.repeat(math.ceil(count / len(rows)))[:count]
    return {name: values[rows] for name, values in split.items()}


CONFIGURATIONS = (
    *(Configuration("tasks", tasks=n) for n in (2, 4, 8, 16)),
    *(
        Configuration("parameters", body=body, family=family, examples=16, batch_size=8)
        for family in ("isotropic", "diagonal", "kronecker")
        for body in BODIES
        if family != "kronecker" or body in ("0.1M", "1M")  # a merge of more takes minutes
    ),
    *(Configuration("components", components=n) for n in (1, 2, 4, 8)),
)


def measure(configuration: Configuration) -> dict[str, float]:
    """Seconds by part, the parameters of the body, and the bytes of all posteriors."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    definition = configuration.definition()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(definition, folder, progress=False)
        files = Path(folder).rglob("posteriors/**/*.safetensors")
        found = {
            "parameters": sum(p.numel() for p in definition.model.body.parameters()),
            "bytes": sum(path.stat().st_size for path in files),
            "posteriors": fitted.costs["posterior_seconds"],
            "finetune step": _step(fitted),
        }
        drawn = torch.rand(_REPEATS, configuration.tasks, dtype=torch.float64)
        drawn /= drawn.sum(dim=1, keepdim=True)
        weights = [dict(zip(definition.names, row)) for row in drawn.tolist()]
        fitted.previewer(weights[0])
        plain = fit(replace(definition, preview=MERGED), folder, progress=False).previewer
        plain(weights[0])
        found["merge"] = _median(plain.load, weights)
        found["heads"] = _median(fitted.previewer.load, weights) - found["merge"]
        found["preview"] = _median(lambda w: fitted.previewer(w), weights)
        if configuration.axis == "tasks":
            found["suggestion"] = _suggestion(definition.names)
    return found


def _median(
    work: Callable[[Mapping[str, float]], object], weights: Sequence[dict[str, float]]
) -> float:
    seconds = []
    for given in weights:
        started = time.perf_counter()
        work(given)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _step(fitted: FittedStudy) -> float:
    """One step on all tasks: the difference of two runs, so that evaluations don't count."""
    uniform = {task.name: 1 / len(fitted.tasks) for task in fitted.tasks}
    seconds = []
    for steps in (2, 12):
        settings = replace(fitted.definition.finetuning, steps=steps)
        seconds.append(fitted.store.run(fitted.model, fitted.tasks, uniform, settings).seconds)
    return (seconds[1] - seconds[0]) / 10


def _suggestion(tasks: Sequence[str]) -> float:
    """What `PreviewSampler` takes for one trial of a study with previews and truths."""
    study = optuna.create_study(direction="maximize", sampler=PreviewSampler(tasks, seed=0))
    drawn = torch.distributions.Dirichlet(torch.ones(len(tasks), dtype=torch.float64))
    seconds = []
    for number in range(_PREVIEWS + _REPEATS):
        if number < _PREVIEWS:
            study.enqueue_trial(weight_params(dict(zip(tasks, drawn.sample().tolist()))))
        started = time.perf_counter()
        trial = study.ask()
        weights = suggest_weights(trial, tasks)
        seconds.append(time.perf_counter() - started)
        value = -sum((w - 1 / len(tasks)) ** 2 for w in weights.values())
        trial.report(value, 0)
        if number < _TRUTHS:
            study.tell(trial, 1.1 * value)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return statistics.median(seconds[_PREVIEWS:])


def picture(rows: Sequence[tuple[Configuration, Mapping[str, float]]]) -> str:
    """Seconds against what varies, both logarithmic, a panel an axis; families of one run."""
    parts = []
    tops = [v for _, found in rows for part, v in found.items() if part in PARTS and v > 0]
    low, high = math.floor(math.log10(min(tops))), math.ceil(math.log10(max(tops)))
    for index, axis in enumerate(("tasks", "parameters", "components")):
        chosen = [
            (_place(configuration, found), found)
            for configuration, found in rows
            if configuration.axis == axis and configuration.family == "diagonal"
        ]
        first, last = chosen[0][0], chosen[-1][0]
        x0, y0 = _LEFT + index * (_WIDTH + _GAP), 30.0

        def at(
            x: float, seconds: float, x0: float = x0, ends: tuple[float, float] = (first, last)
        ) -> str:
            share = math.log(x / ends[0]) / math.log(ends[1] / ends[0])
            height = (math.log10(seconds) - low) / (high - low)
            return f"{x0 + _WIDTH * share:.1f},{30.0 + _HEIGHT * (1 - height):.1f}"

        frame = f'width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"'
        parts.append(f'<rect x="{x0}" y="{y0}" {frame}/>')
        parts.append(text(x0 + _WIDTH / 2, 20, axis, bold=True))
        for part, colour in zip(PARTS, COLOURS):
            line = [at(x, found[part]) for x, found in chosen if part in found]
            parts.append(
                f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" '
                f'stroke-width="1.8"><title>{part}</title></polyline>'
            )
        for x, _ in chosen:
            place = x0 + _WIDTH * math.log(x / first) / math.log(last / first)
            label = f"{x / 1e6:.1f}M" if axis == "parameters" else f"{x:g}"
            parts.append(text(place, y0 + _HEIGHT + 14, label, size=9))
        for power in range(low, high + 1):
            y = y0 + _HEIGHT * (1 - (power - low) / (high - low))
            parts.append(text(x0 - 5, y + 4, f"{10.0**power:g} s", size=9, anchor="end"))
    for i, (part, colour) in enumerate(zip(PARTS, COLOURS)):
        x, y = _LEFT + 140 * i, 30 + _HEIGHT + 40
        parts.append(f'<circle cx="{x}" cy="{y - 4:.1f}" r="4" fill="{colour}"/>')
        parts.append(text(x + 9, y, part, anchor="start"))
    return svg(_LEFT + 3 * (_WIDTH + _GAP), 30 + _HEIGHT + 50, parts)


def _place(configuration: Configuration, found: Mapping[str, float]) -> float:
    """Where the configuration lies on its axis."""
    if configuration.axis == "parameters":
        return found["parameters"]
    return configuration.tasks if configuration.axis == "tasks" else configuration.components


def main(
    results: Annotated[Path, typer.Option(help="Folder of the table and the picture.")] = Path(
        __file__
    ).parent
    / "results",
    largest: Annotated[
        str, typer.Option(help=f"Leave out larger bodies than this one of {', '.join(BODIES)}.")
    ] = "100M",
    debug: Debug = False,
) -> None:
    """Time the parts of a study as tasks, parameters and components grow.

    Example: python studies/growth.py --largest 10M
    """

    def work() -> None:
        if largest not in BODIES:
            raise ValueError(f"--largest is {largest!r}, expected one of {', '.join(BODIES)}")
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that measure
        sizes = list(BODIES)
        rows = []
        header = ["axis", "tasks", "parameters", "family", "components", "bytes", *PARTS]
        table: list[list[object]] = [[*header]]
        for configuration in CONFIGURATIONS:
            if sizes.index(configuration.body) > sizes.index(largest):
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(measure, configuration).result()
            rows.append((configuration, found))
            seconds = [f"{found[part]:.4g}" if part in found else "" for part in PARTS]
            table.append(
                [
                    *(configuration.axis, configuration.tasks, int(found["parameters"])),
                    *(configuration.family, configuration.components, int(found["bytes"])),
                    *seconds,
                ]
            )
            typer.echo(" ".join(map(str, table[-1])))
        results.mkdir(exist_ok=True)
        write_csv(results / "growth.csv", table)
        with atomic_path(results / "growth.svg") as temporary:
            temporary.write_text(picture(rows), encoding="utf-8")

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
