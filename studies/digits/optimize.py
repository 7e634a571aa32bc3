"""Three orientations of scikit-learn's digits on one small ViT: the whole path in a minute.

    python studies/digits/optimize.py --n-trials 40

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
No pretrained weights of this size exist: the study pretrains its body itself, on held-back digits
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
from studies.digits.data import load_tasks, pretraining_data
from studies.fetch import default_cache

HEAD = "digits"  # one head of ten classes, shared by all tasks


def definition() -> StudyDefinition:
    """Find task weights for upright, rotated and mirrored digits on a ViT of 18,000 parameters."""
    tasks = [
        Task(name, data["train"], data["validation"], 10, test=data["test"], head=HEAD)
        for name, data in load_tasks().items()
    ]
    body, head = fresh_vit()
    pretrain(body, head, default_cache())
    return StudyDefinition(
        tasks=tasks,
        model=from_module(body, tasks, heads={HEAD: head}),
        finetuning=FinetuneSettings(
            steps=60, batch_size=32, learning_rate=1e-3, evaluation_batch_size=300
        ),
        posterior=PosteriorSettings(family="diagonal", examples=600, chunk_size=100),
        score="worst_relative",
    )


def fresh_vit() -> tuple[nn.Module, nn.Module]:
    """A small vision transformer and its classifier, always with the same initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = timm.models.VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2,
            num_classes=0,
        )  # fmt: skip
        return body, nn.Linear(body.num_features, 10)


def pretrain(body: nn.Module, head: nn.Module, cache: Path) -> None:
    """Train body and head on the held-back digits, once for this cache folder."""
    data = pretraining_data()
    task = Task("pretraining", train=data, validation=data, num_outputs=10, head=HEAD)
    model: MultitaskModel = from_module(body, [task], heads={HEAD: head})
    store = FinetuneStore(cache / "digits-vit", {task.name: model.describe()["hash"]})
    settings = FinetuneSettings(
        steps=800, batch_size=64, learning_rate=3e-3, num_rungs=1, evaluation_batch_size=500
    )
    run = store.run(model, [task], {"pretraining": 1.0}, settings)
    model.load(run.parameters())


if __name__ == "__main__":
    script(definition, name="digits", n_trials=40)
