"""The tasks of `digits` with a head of their own each, for `studies/families.py`.

python studies/families.py studies/digits/own_heads.py --families diagonal,diagonal+heads
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from optuna_merge import StudyDefinition
from optuna_merge.models import from_module
from studies.digits import optimize
from studies.fetch import default_cache


def definition() -> StudyDefinition:
    """The study `digits`, each head a copy of the pretrained one."""
    shared = optimize.definition()
    tasks = [replace(task, head=task.name) for task in shared.tasks]
    body, head = optimize.fresh_vit()
    optimize.pretrain(body, head, default_cache())
    heads = {task.name: copy.deepcopy(head) for task in tasks}
    return replace(shared, tasks=tasks, model=from_module(body, tasks, heads=heads))
