"""Sentences as a frozen MiniLM sees them, and an adapter that is trained on top.

The features of a sentence are the mean over its tokens of what the fifth of MiniLM-L6's six layers
gives, computed once and kept in the cache folder. What a study finetunes and merges is the adapter
and a head, in place of the last layer: a finetune takes a second on one core, and a table may
have many task weights and seeds.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import FileLock
from torch import Tensor, nn

from optuna_merge._base.tensors import load_tensors, save_tensors
from optuna_merge.models import MultitaskModel, from_module
from optuna_merge.tasks import Task
from studies.text.data import body_path

_logger = logging.getLogger(__name__)

WIDTH = 384
"""Of MiniLM's hidden states."""

_LAYERS = 5
"""Frozen ones. The sixth prepares sentences for comparison, and leaves tasks less to learn."""

_HIDDEN = 96
_BLOCKS = 2
_BATCH = 64
_INPUT = "features"


def sentence_tasks(
    splits: Mapping[str, Mapping[str, Dataset]],
    cache: Path,
    *,
    head: str,
    classes: int,
    max_length: int = 40,
) -> list[Task]:
    """The tasks, all with one head, on the features of their sentences.

    Args:
        splits: By task, "train", "validation" and "test" with columns `text` and `label`.
        cache: Where MiniLM and the features are kept.
        head: Name of the head.
        classes: How many outputs it has.
        max_length: Tokens of a sentence that are read.
    """
    tasks = []
    for name, parts in splits.items():
        data = {
            part: {
                _INPUT: features(
                    list(rows["text"]), cache, max_length=max_length, title=f"{name}, {part}"
                ),
                "labels": torch.tensor(rows["label"]),
            }
            for part, rows in parts.items()
        }
        tasks.append(
            Task(name, data["train"], data["validation"], classes, test=data["test"], head=head)
        )
    return tasks


def adapted(tasks: Sequence[Task], *, head: str, classes: int) -> MultitaskModel:
    """An adapter and one head for all tasks, always with the same initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = Adapter()
        heads = {head: nn.Linear(WIDTH, classes)}
    return from_module(body, tasks, heads=heads, inputs=(_INPUT,))


class Adapter(nn.Module):
    """Residual blocks with a bottleneck, at first nearly the identity (Houlsby et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(WIDTH, _HIDDEN) for _ in range(_BLOCKS))
        self.up = nn.ModuleList(nn.Linear(_HIDDEN, WIDTH) for _ in range(_BLOCKS))
        for up in self.up:
            assert isinstance(up, nn.Linear)
            nn.init.normal_(up.weight, std=1e-2)
            nn.init.zeros_(up.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features from standardised features."""
        found = nn.functional.layer_norm(inputs, (WIDTH,))
        for down, up in zip(self.down, self.up):
            found = found + up(nn.functional.gelu(down(found)))
        return found


def features(
    texts: Sequence[str], cache: Path, *, max_length: int = 40, title: str = "texts"
) -> Tensor:
    """Mean hidden states, a row a text; from the cache folder where they are there.

    Args:
        texts: What is read.
        cache: Where MiniLM and the features are kept.
        max_length: Tokens of a text that are read.
        title: What the log calls the texts.
    """
    joined = "\n".join([f"{_LAYERS} {max_length}", *texts])
    key = hashlib.sha256(joined.encode()).hexdigest()[:24]
    path = cache / "sentences" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _logger.info("%s: MiniLM reads %d texts, once for all studies", title, len(texts))
            save_tensors({_INPUT: _computed(texts, cache, max_length)}, path)
    return load_tensors(path)[0][_INPUT]


@torch.inference_mode()
def _computed(texts: Sequence[str], cache: Path, max_length: int) -> Tensor:
    tokenizer, model = _reader(str(body_path(cache)))
    # Of like length together: what is padded costs as much as what is read.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.zeros(len(texts), WIDTH)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = tokenizer(
            [texts[i] for i in rows],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found[rows] = (hidden * mask).sum(1) / mask.sum(1)
    return found


@functools.cache
def _reader(folder: str) -> tuple[Any, Any]:
    """MiniLM's tokenizer and its first layers, once a process."""
    import transformers  # takes a second, and features that are kept need none of it
    from transformers import AutoModel, AutoTokenizer

    transformers.logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder).eval()
    finally:
        transformers.logging.enable_progress_bar()
    model.encoder.layer = model.encoder.layer[:_LAYERS]
    return AutoTokenizer.from_pretrained(folder), model
