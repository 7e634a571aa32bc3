"""Eight overlapping groups of newsgroups with one head: which task weights serve them, or one?

The head has all 20 newsgroups, and learns all of them. A task's metric is the accuracy among its
own ones, which are what its readers choose from.

    python studies/groups/optimize.py --n-trials 60

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
from optuna_merge.cli import script
from optuna_merge.tasks import Metric, accuracy
from studies.fetch import default_cache
from studies.groups.data import GROUPS, TARGET, load_tasks
from studies.sentences import adapted, sentence_tasks
from studies.text.data import NEWSGROUPS

HEAD = "newsgroup"  # one head of 20 classes, shared by all tasks


def own_accuracy(classes: Sequence[int]) -> Metric:
    """Share of examples whose largest output among these classes is the label."""
    condense = partial(_largest_of, torch.tensor(classes))
    return Metric("own_accuracy", accuracy.function, condense=condense)


def _largest_of(classes: Tensor, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    places = classes.to(outputs.device)
    return places[outputs[:, places].argmax(-1)], labels


def definition() -> StudyDefinition:
    """Find task weights for eight groups of newsgroups with an adapter on MiniLM-L6."""
    cache = default_cache()
    classes = len(NEWSGROUPS)
    tasks = [
        replace(task, metrics=(own_accuracy([*map(NEWSGROUPS.index, GROUPS[task.name])]),))
        for task in sentence_tasks(
            load_tasks(cache), cache, head=HEAD, classes=classes, max_length=64
        )
    ]
    return StudyDefinition(
        tasks=tasks,
        model=adapted(tasks, head=HEAD, classes=classes),
        finetuning=FinetuneSettings(
            steps=81,
            batch_size=16,
            learning_rate=2e-3,
            rung_steps=(9, 27, 81),
            evaluation_batch_size=1000,
        ),
        posterior=PosteriorSettings(family="diagonal", examples=512, damping_examples=128),
        score=f"target:{TARGET}",
    )


if __name__ == "__main__":
    script(definition, name="groups", n_trials=60)
