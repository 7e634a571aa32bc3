"""Small real parts that many tests share: toy tasks, a toy body, a tiny BERT and a tiny ViT."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.models import LastLayers, MultitaskModel, from_module, from_transformers
from optuna_merge.tasks import Batch, Loss, Task, TensorData, cross_entropy

torch.set_num_threads(1)  # the parts are tiny: threads only cost time

FEATURES = 8

PASSWORD = "pa ss/wo@rd{1}%"  # what a URL, a template or a configuration file trips over
"""Of the test databases."""


def toy_columns(size: int = 24, classes: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Points whose class is the largest of some linear functions; all classes occur."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=generator)
    labels = (x @ torch.randn(6, classes, generator=generator)).argmax(1)
    labels[:classes] = torch.arange(classes)
    return {"x": x, "labels": labels}


def toy_task(name: str, seed: int = 0, *, classes: int = 2, **changes: Any) -> Task:
    """24 training and 30 validation examples; `changes` are fields of `Task`."""
    data = toy_columns(54, classes, seed)
    fields: dict[str, Any] = {
        "train": {column: rows[:24] for column, rows in data.items()},
        "validation": {column: rows[24:] for column, rows in data.items()},
        "num_outputs": classes,
    }
    return Task(name, **(fields | changes))


def toy_tasks() -> tuple[Task, Task]:
    """Two tasks of two and three classes with a head of their own each."""
    return toy_task("red", 1), toy_task("blue", 2, classes=3)


def toy_body(dropout: float = 0.2) -> nn.Module:
    """Two hidden layers with the same initial values in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, FEATURES), nn.Tanh(), nn.Dropout(dropout), nn.Linear(FEATURES, FEATURES)
        )


def toy_model(tasks: Sequence[Task], *, dropout: float = 0.2, **options: Any) -> MultitaskModel:
    """The toy body with linear heads."""
    return from_module(toy_body(dropout), tasks, features=FEATURES, inputs=["x"], **options)


def toy_settings(**changes: Any) -> FinetuneSettings:
    """Seven steps, rungs after 3, 5 and 7."""
    fields: dict[str, Any] = {
        "steps": 7,
        "batch_size": 10,
        "learning_rate": 0.02,
        "evaluation_batch_size": 16,
    }
    return FinetuneSettings(**(fields | changes))


def toy_definition(tasks: Sequence[Task] | None = None, **changes: Any) -> StudyDefinition:
    """A study of the toy tasks that is fitted in a moment; new parts at every call."""
    tasks = toy_tasks() if tasks is None else tasks
    fields: dict[str, Any] = {
        "tasks": tasks,
        "model": toy_model(tasks),
        "finetuning": toy_settings(),
        "posterior": PosteriorSettings(examples=16, damping_examples=20, chunk_size=8),
    }
    return StudyDefinition(**(fields | changes))


class InterruptedData(TensorData):
    """In-memory data whose reading is interrupted once, at a read counted from 0."""

    def __init__(self, columns: dict[str, Tensor], at: int) -> None:
        super().__init__(columns)
        self.reads_left = at

    def __getitem__(self, indices: list[int]) -> Batch:
        self.reads_left -= 1
        if self.reads_left == -1:
            raise KeyboardInterrupt
        return super().__getitem__(indices)


class UnreadableData(TensorData):
    """Data that any read by the training loop fails for: for runs that must not train."""

    def __getitem__(self, indices: list[int]) -> Batch:
        if len(indices) > 1:  # a `Task` looks at one example when it is made
            raise AssertionError("the training data were read")
        return super().__getitem__(indices)


def failing_loss(at: int, value: float) -> Loss:
    """Cross-entropy until the call `at`, counted from 0; from then on all losses are `value`."""
    calls = iter(range(10**6))

    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        losses = cross_entropy(outputs, labels)
        return losses if next(calls) < at else losses * 0 + value

    return Loss("failing", function, cross_entropy.sample_labels, classification=True)


def save_bert(folder: Path, *, hidden: int = 16, layers: int = 3, dropout: float = 0.1) -> str:
    """A BERT of a few thousand parameters as `from_pretrained` reads it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def token_task(name: str, seed: int, *, classes: int = 2, size: int = 24) -> Task:
    """Token sequences of 3 to 9 tokens; the class is a matter of the first one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 50, (size, 9), generator=generator)
    lengths = torch.randint(3, 10, (size, 1), generator=generator)
    mask = (torch.arange(9) < lengths).long()
    columns = {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(mask),
        "labels": tokens[:, 0] % classes,
    }
    half = size // 2
    return Task(
        name,
        train={column: rows[:half] for column, rows in columns.items()},
        validation={column: rows[half:] for column, rows in columns.items()},
        num_outputs=classes,
    )


def bert_model(folder: str, tasks: Sequence[Task], **options: Any) -> MultitaskModel:
    """A multitask model around a saved BERT, the last layer trained unless told otherwise."""
    return from_transformers(folder, tasks, **({"trainable": LastLayers(1)} | options))


def tiny_vit() -> nn.Module:
    """A timm vision transformer with three blocks, for images 1 x 8 x 8."""
    import timm

    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=8,
        patch_size=4,
        in_chans=1,
        embed_dim=16,
        depth=3,
        num_heads=2,
        mlp_ratio=2,
        num_classes=5,
    )


def image_columns(size: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Noise images with cycling labels."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(size, 1, 8, 8, generator=generator),
        "labels": torch.arange(size) % classes,
    }


def image_tasks() -> tuple[Task, Task]:
    """Two tasks on noise images."""
    return tuple(  # type: ignore[return-value]
        Task(name, image_columns(12, 2, seed), image_columns(10, 2, seed + 9), 2)
        for seed, name in enumerate(("left", "right"))
    )


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two states have the same names and, bit for bit, the same values."""
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


def flip_byte(path: Path, position: int = -1) -> None:
    """Damage a file; position -1 is the last byte of the last tensor of a safetensors file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut the last ten bytes off a file."""
    path.write_bytes(path.read_bytes()[:-10])


def files_below(folder: Path) -> dict[str, int]:
    """Files (but not locks) by path, with the time of their last change in nanoseconds."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in path.name
    }


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within this block writing more than `size` bytes to one file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def raise_at(step: int) -> Callable[[int, object], None]:
    """An `on_rung` that interrupts the run after `step` steps."""

    def on_rung(done: int, evaluations: object) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_rung
