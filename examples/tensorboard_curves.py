"""Learning curves of all finetunes, task runs and truths, in TensorBoard.

    python examples/tensorboard_curves.py          # keeps nothing
    python examples/tensorboard_curves.py curves   # then: tensorboard --logdir curves

A watcher follows every finetune within its `with` block. Derive your own from `Watcher`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tiny import run
from tiny.points import point_study

from optuna_merge.finetuning import TensorBoard, watched_by


def main() -> None:
    """One folder of curves per task weights: loss in training, losses and metrics at the rungs."""
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(sys.argv[1] if len(sys.argv) > 1 else folder)
        with watched_by(TensorBoard(curves, every=5)):
            run(point_study(), n_trials=10)
        print("\nCurves:", *sorted(path.name for path in curves.iterdir()), sep="\n  ")


if __name__ == "__main__":
    main()
