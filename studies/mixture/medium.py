"""The mixture study on a Llama of 5.9 million parameters.

    python studies/mixture/medium.py --n-trials 40

To pretrain it takes twenty minutes of one core, once; an interrupted pretraining goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from optuna_merge import StudyDefinition
from optuna_merge.cli import script
from studies.mixture import optimize


def definition() -> StudyDefinition:
    """Find task weights for six kinds of text on the larger body."""
    return optimize.definition(body="medium")


if __name__ == "__main__":
    script(definition, name="mixture-medium", n_trials=40)
