"""A Trainer in two processes, a GPU each, does what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

TRAINERS = Path(__file__).resolve().parents[1] / "trainers"
ALONE = """
import json, sys
from pathlib import Path
import launched_trainer as launched
found = launched.truth(launched.fitted(Path(sys.argv[1]), "bert", size=2))
Path(sys.argv[1], "result-0.json").write_text(json.dumps(found))
"""
"""One process takes twice the micro-batches."""


def result(folder: Path, command: list[str], **environment: str) -> dict[str, object]:
    folder.mkdir()
    path = os.pathsep.join([str(TRAINERS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command, str(folder)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads((folder / "result-0.json").read_text())
    return found


def test_two_processes_do_what_one_does(two_devices: torch.device, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = result(tmp_path / "two", [*torchrun, str(TRAINERS / "launched_trainer.py")])
    one = result(tmp_path / "one", ["-c", ALONE], CUDA_VISIBLE_DEVICES="0")
    for step, metrics in one["rungs"].items():  # type: ignore[attr-defined]
        assert two["rungs"][step] == pytest.approx(metrics, rel=1e-3)  # type: ignore[index]
    assert two["preview"] == pytest.approx(one["preview"], rel=1e-3)
    ends = [(tmp_path / "two" / f"ends-{rank}.jsonl").read_text() for rank in (0, 1)]
    assert ends[0] == ends[1], "the same runs, steps and parameters"
