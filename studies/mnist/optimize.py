"""Digits, garments and large digits in negative on one small ViT, a head each.

    python studies/mnist/optimize.py --n-trials 40

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
No pretrained weights of this size exist: the study pretrains its body itself, on held-back images
under noise, and keeps the result in the cache folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm
import torch
from torch import nn

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition, Task
from optuna_merge.cli import script
from optuna_merge.finetuning import FinetuneStore
from optuna_merge.models import MultitaskModel, from_module
from studies.fetch import default_cache
from studies.mnist.data import load_tasks, pretraining_data

CLASSES = {"digits": 10, "garments": 10, "large": 2}
WIDTH = 48


def definition() -> StudyDefinition:
    """Find task weights for digits, garments and large digits on a ViT of 42,000 parameters."""
    cache = default_cache()
    tasks = [
        Task(name, data["train"], data["validation"], CLASSES[name], test=data["test"])
        for name, data in load_tasks(cache).items()
    ]
    body = fresh_vit()
    pretrain(body, cache)
    return StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, features=WIDTH),
        finetuning=FinetuneSettings(
            steps=150, batch_size=32, learning_rate=1e-3, evaluation_batch_size=600
        ),
        posterior=PosteriorSettings(family="diagonal", examples=600, chunk_size=50),
        score="relative",
    )


def fresh_vit() -> nn.Module:
    """A small vision transformer, always with the same initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body: nn.Module = timm.models.VisionTransformer(
            img_size=28, patch_size=7, in_chans=1, embed_dim=WIDTH, depth=2, num_heads=4,
            mlp_ratio=2, num_classes=0,
        )  # fmt: skip
    return body


def pretrain(body: nn.Module, cache: Path) -> None:
    """Train the body on the held-back images, once for this cache folder."""
    data = pretraining_data(cache)
    rows = slice(0, None, 8)  # a run needs some to evaluate
    some = {name: column[rows] for name, column in data.items()}
    task = Task("pretraining", train=data, validation=some, num_outputs=20)
    model: MultitaskModel = from_module(body, [task], features=WIDTH)
    store = FinetuneStore(cache / "mnist-vit", {task.name: model.describe()["hash"]})
    settings = FinetuneSettings(
        steps=400, batch_size=64, learning_rate=2e-3, num_rungs=1, evaluation_batch_size=500
    )
    run = store.run(model, [task], {"pretraining": 1.0}, settings)
    model.load(run.parameters())


if __name__ == "__main__":
    script(definition, name="mnist", n_trials=40)
