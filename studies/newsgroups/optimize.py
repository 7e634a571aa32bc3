"""20 Newsgroups in four groups with one head: which task weights serve all groups?

    python studies/newsgroups/optimize.py --n-trials 40

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
from optuna_merge.cli import script
from optuna_merge.models import LastLayers, from_transformers
from optuna_merge.tasks import text_task
from studies.fetch import default_cache
from studies.newsgroups.data import load_tasks
from studies.text.data import body_path

HEAD = "newsgroup"  # one head of 20 classes, shared by all tasks


def definition() -> StudyDefinition:
    """Find task weights for four groups of newsgroups on MiniLM-L6's last layer."""
    cache = default_cache()
    body = str(body_path(cache))
    tasks = [
        text_task(name, splits, body, max_length=40, head=HEAD)
        for name, splits in load_tasks(cache).items()
    ]
    return StudyDefinition(
        tasks=tasks,
        model=from_transformers(body, tasks, trainable=LastLayers(1)),
        finetuning=FinetuneSettings(
            steps=60, batch_size=16, learning_rate=5e-4, head_learning_rate=2e-3
        ),
        posterior=PosteriorSettings(family="diagonal", examples=512, damping_examples=128),
        score="worst_relative",
    )


if __name__ == "__main__":
    script(definition, name="newsgroups", n_trials=40)
