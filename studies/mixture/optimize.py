"""Six kinds of text, one small Llama: which mixture serves all of them?

    python studies/mixture/optimize.py --n-trials 40

The flags are those of every study: --study-name --storage --n-trials --timeout --workdir.
The study pretrains its body itself, on English text, and keeps it in the cache folder. `medium.py`
is the same study on a larger body.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from transformers import AutoTokenizer

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
from optuna_merge.cli import script
from optuna_merge.goals import Score
from optuna_merge.models import from_language_model
from studies.fetch import default_cache
from studies.mixture.body import BODIES, language_tasks, pretrained_body
from studies.mixture.data import TASKS, Splits, english_text, load_texts

EXAMPLES = {task: 32 if task == "italian" else 320 for task in TASKS}
"""Training windows by task."""

JUDGED = 24
"""Windows of validation data of each task, and of test data."""


def _excess(losses: Mapping[str, Any], alone: Mapping[str, float]) -> Any:
    return reduce(np.maximum, [losses[task] - alone[task] for task in losses])


WORST_EXCESS = Score("worst_excess", _excess, maximize=False)
"""By how much the task that loses most is worse than alone."""


def body_folder(body: str, texts: Mapping[str, Splits]) -> Path:
    """Where the pretrained body of a name in `BODIES` is; it is made if it isn't there."""
    cache = default_cache()
    trained_on = [splits["train"] for splits in texts.values()]
    return pretrained_body(cache, trained_on, english_text(cache), body)


def definition(*, body: str = "small") -> StudyDefinition:
    """Find task weights for six kinds of text on a small Llama.

    Args:
        body: Its name in `BODIES`; "small" has 1.1 million parameters.
    """
    texts = load_texts(default_cache())
    folder = body_folder(body, texts)
    tasks = language_tasks(texts, AutoTokenizer.from_pretrained(folder), EXAMPLES, JUDGED)
    return StudyDefinition(
        tasks=tasks,
        model=from_language_model(str(folder), tasks),
        finetuning=FinetuneSettings(
            steps=27,
            batch_size=4,
            learning_rate=BODIES[body].learning_rate,
            rung_steps=(3, 9, 27),
            evaluation_batch_size=48,
        ),
        posterior=PosteriorSettings(family="diagonal", examples=128, damping_examples=24),
        score=WORST_EXCESS,
    )


if __name__ == "__main__":
    script(definition, name="mixture", n_trials=40)
