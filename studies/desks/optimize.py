"""Four desks, one classifier of their posts: which task weights make the weakest desk strongest?

    python studies/desks/optimize.py

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from optuna_merge.cli import script

if TYPE_CHECKING:
    from optuna_merge import StudyDefinition

HEAD = "newsgroup"  # one head of 20 classes, shared by all tasks


def definition() -> StudyDefinition:
    """Find task weights for four groups of newsgroups with an adapter on MiniLM-L6."""
    # Imported here, so that the first line is seen before PyTorch is loaded.
    from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
    from studies.fetch import default_cache
    from studies.newsgroups.data import load_tasks
    from studies.sentences import adapted, sentence_tasks
    from studies.text.data import NEWSGROUPS

    cache, classes = default_cache(), len(NEWSGROUPS)
    splits = load_tasks(cache, train=800, validation=300, test=500)
    tasks = sentence_tasks(splits, cache, head=HEAD, classes=classes)
    return StudyDefinition(
        tasks=tasks,
        model=adapted(tasks, head=HEAD, classes=classes),
        finetuning=FinetuneSettings(
            steps=90,
            batch_size=16,
            learning_rate=2e-3,
            rung_steps=(10, 30, 90),
            evaluation_batch_size=1000,
        ),
        posterior=PosteriorSettings(family="diagonal", examples=512, damping_examples=128),
        score="worst",
    )


if __name__ == "__main__":
    script(definition, name="desks", n_trials=28)
