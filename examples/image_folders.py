"""Folders of images, a subfolder per class, on a model of timm.

    python examples/image_folders.py                     # a tiny random ViT, no network
    python examples/image_folders.py resnet18.a1_in1k    # pretrained

Each task has classes and a head of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from timm.data import create_transform, resolve_data_config
from tiny import run

import optuna_merge as om
from optuna_merge.models import from_timm
from optuna_merge.tasks import image_task


def write_images(folder: Path, classes: dict[str, tuple[int, int, int]]) -> None:
    """Noisy pictures of 32 x 32 pixels, of one colour a class."""
    generator = torch.Generator().manual_seed(0)
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(24):
            noise = torch.randint(0, 120, (32, 32, 3), generator=generator)
            pixels = (noise + torch.tensor(colour)).clamp(max=255).to(torch.uint8)
            Picture.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")


def read_images(folder: Path) -> Dataset:
    """A table of images and classes; `datasets.load_dataset("imagefolder")` makes one, too."""
    names = sorted(path.name for path in folder.iterdir())
    files = [
        (str(f), i) for i, name in enumerate(names) for f in sorted((folder / name).iterdir())
    ]
    columns = {"image": [file for file, _ in files], "label": [label for _, label in files]}
    return Dataset.from_dict(columns, Features(image=Image(), label=ClassLabel(names=names)))


def main() -> None:
    """Which weights of fruits and flags give the best model of both?"""
    torch.manual_seed(0)
    named = len(sys.argv) > 1
    model, options = (sys.argv[1], {}) if named else ("test_vit", {"img_size": 32})
    body = timm.create_model(model, pretrained=named, num_classes=0, **options)
    transform = create_transform(**resolve_data_config({}, model=body))
    fruits = {"apple": (90, 0, 0), "lime": (0, 90, 0), "plum": (60, 0, 90)}
    flags = {"day": (130, 130, 60), "night": (0, 0, 40)}
    tasks = []
    with tempfile.TemporaryDirectory() as name:
        for task, classes in (("fruits", fruits), ("flags", flags)):
            write_images(Path(name) / task, classes)
            parts = read_images(Path(name) / task).train_test_split(0.5, seed=0)
            splits = {"train": parts["train"], "validation": parts["test"]}
            tasks.append(image_task(task, splits, transform))
        definition = om.StudyDefinition(
            tasks=tasks,
            model=from_timm(body, tasks),
            finetuning=om.FinetuneSettings(steps=6, batch_size=8, learning_rate=1e-3, num_rungs=1),
            posterior=om.PosteriorSettings(family="isotropic"),
        )
        run(definition, n_trials=6)


if __name__ == "__main__":
    main()
