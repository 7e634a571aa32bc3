"""Three text tasks on one MiniLM body: which task weights give the best multitask model?

    python studies/text/optimize.py --n-trials 28

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


def definition() -> StudyDefinition:
    """Find task weights for movie sentiment, tweet author and newsgroup topic on MiniLM-L6."""
    # Imported here, so that the first line is seen before PyTorch is loaded.
    from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
    from optuna_merge.models import LastLayers, from_transformers
    from optuna_merge.tasks import text_task
    from studies.fetch import default_cache
    from studies.text.data import body_path, load_tasks

    cache = default_cache()
    body = str(body_path(cache))
    tasks = [
        text_task(name, splits, body, max_length=40)
        for name, splits in load_tasks(cache, train=2000, validation=400, test=600).items()
    ]
    return StudyDefinition(
        tasks=tasks,
        model=from_transformers(body, tasks, trainable=LastLayers(2)),
        finetuning=FinetuneSettings(
            steps=100, batch_size=16, learning_rate=2e-4, head_learning_rate=1e-3, num_rungs=3
        ),
        posterior=PosteriorSettings(family="diagonal", examples=512, damping_examples=128),
        score="mean",
    )


if __name__ == "__main__":
    script(definition, name="text", n_trials=28)
