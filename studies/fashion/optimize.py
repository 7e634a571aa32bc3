"""Three groups of Fashion-MNIST on one small ViT with one shared head.

    python studies/fashion/optimize.py --n-trials 40

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
from studies.fashion.data import load_tasks, pretraining_data
from studies.fetch import default_cache

HEAD = "garments"  # one head of ten classes, shared by all tasks


def definition() -> StudyDefinition:
    """Find task weights for tops, shoes and other garments on a ViT of 42,000 parameters."""
    cache = default_cache()
    tasks = [
        Task(name, data["train"], data["validation"], 10, test=data["test"], head=HEAD)
        for name, data in load_tasks(cache).items()
    ]
    body, head = fresh_vit()
    pretrain(body, head, cache)
    return StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, heads={HEAD: head}),
        finetuning=FinetuneSettings(
            steps=150, batch_size=32, learning_rate=1e-3, evaluation_batch_size=600
        ),
        posterior=PosteriorSettings(family="diagonal", examples=600, chunk_size=50),
        score="worst_relative",
    )


def fresh_vit() -> tuple[nn.Module, nn.Module]:
    """A small vision transformer and its classifier, always with the same initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = timm.models.VisionTransformer(
            img_size=28, patch_size=7, in_chans=1, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2,
            num_classes=0,
        )  # fmt: skip
        return body, nn.Linear(body.num_features, 10)


def pretrain(body: nn.Module, head: nn.Module, cache: Path) -> None:
    """Train body and head on the held-back images, once for this cache folder."""
    data = pretraining_data(cache)
    first = {name: column[:500] for name, column in data.items()}  # a run needs some to evaluate
    task = Task("pretraining", train=data, validation=first, num_outputs=10, head=HEAD)
    model: MultitaskModel = from_module(body, [task], heads={HEAD: head})
    store = FinetuneStore(cache / "fashion-vit", {task.name: model.describe()["hash"]})
    settings = FinetuneSettings(
        steps=400, batch_size=64, learning_rate=2e-3, num_rungs=1, evaluation_batch_size=500
    )
    run = store.run(model, [task], {"pretraining": 1.0}, settings)
    model.load(run.parameters())


if __name__ == "__main__":
    script(definition, name="fashion", n_trials=40)
