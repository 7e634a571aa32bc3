"""Film reviews with few examples, helped by three other domains: how much weight has each?

    python studies/film/optimize.py --n-trials 40

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
from optuna_merge.cli import script
from studies.fetch import default_cache
from studies.film.data import TARGET, load_tasks
from studies.sentences import adapted, sentence_tasks

HEAD = "sentiment"  # one head of two classes, shared by all tasks


def definition(*, target: int = 150, steps: int = 81, rate: float = 1e-3) -> StudyDefinition:
    """Find task weights for film reviews, of which there are few, with an adapter on MiniLM-L6.

    Args:
        target: Training examples of film reviews.
        steps: Of a finetune; a multiple of 9.
        rate: Peak learning rate.
    """
    cache = default_cache()
    tasks = sentence_tasks(load_tasks(cache, target=target), cache, head=HEAD, classes=2)
    return StudyDefinition(
        tasks=tasks,
        model=adapted(tasks, head=HEAD, classes=2),
        finetuning=FinetuneSettings(
            steps=steps,
            batch_size=16,
            learning_rate=rate,
            rung_steps=(steps // 9, steps // 3, steps),
            evaluation_batch_size=1000,
        ),
        posterior=PosteriorSettings(family="diagonal", examples=512, damping_examples=128),
        score=f"target:{TARGET}",
    )


if __name__ == "__main__":
    script(definition, name="film", n_trials=40)
