"""The film study with MiniLM's own last layers finetuned, in place of an adapter on top of it.

    python studies/film/last_layer.py --n-trials 40

A finetune takes several times as long; `sizes.py` shows that the target behaves alike.
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
from studies.film.data import TARGET, load_tasks
from studies.text.data import body_path

HEAD = "sentiment"  # one head of two classes, shared by all tasks


def definition(
    *, target: int = 150, layers: int = 1, steps: int = 54, rate: float = 5e-4
) -> StudyDefinition:
    """Find task weights for film reviews, of which there are few examples, on MiniLM-L6.

    Args:
        target: Training examples of film reviews.
        layers: How many of the last layers are trained and merged.
        steps: Of a finetune; a multiple of 9.
        rate: Peak learning rate of the layers.
    """
    cache = default_cache()
    body = str(body_path(cache))
    tasks = [
        text_task(name, splits, body, max_length=40, head=HEAD)
        for name, splits in load_tasks(cache, target=target).items()
    ]
    return StudyDefinition(
        tasks=tasks,
        model=from_transformers(body, tasks, trainable=LastLayers(layers)),
        finetuning=FinetuneSettings(
            steps=steps,
            batch_size=16,
            learning_rate=rate,
            head_learning_rate=1e-3,
            rung_steps=(steps // 9, steps // 3, steps),
            evaluation_batch_size=250,
        ),
        posterior=PosteriorSettings(family="diagonal", examples=512, damping_examples=128),
        score=f"target:{TARGET}",
    )


if __name__ == "__main__":
    script(definition, name="film-last-layer", n_trials=40)
