"""Files that are made again where they are damaged; curvature that must be finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from optuna_merge.exceptions import CorruptFileError, NotFiniteError
from optuna_merge.posteriors import Posterior

_logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")


def load_sound(path: Path, load: Callable[[Path], _Loaded]) -> _Loaded | None:
    """What the file holds; None if there is none or it is damaged, so that it is made again."""
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except CorruptFileError as error:
        _logger.warning("making it again: %s", error)
        return None


def check_curvature(task: str, undamped: Posterior) -> None:
    """See that the curvature of a task's own finetune is finite."""
    mean = undamped.mean_curvature()  # of squares: one that is not finite makes it so
    if not math.isfinite(mean):
        raise NotFiniteError(
            f"task {task!r}: the curvature at the end of its own finetune is {mean:g} in the "
            f"mean; expected a finite number. Is there a gradient without a value, as that of a "
            f"root or a norm at 0, or does the loss overflow? A lower learning rate may help, or "
            f"the isotropic family, which needs no curvature"
        )
