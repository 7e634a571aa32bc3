"""An export in an environment where there is transformers and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_export import EVEN, Jobs, bert, bert_tasks

from optuna_merge.fitting import fit

SCRIPT = Path(__file__).with_name("plain_loading.py")


@pytest.mark.slow
def test_transformers_alone_loads_it(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "transformers", "torch"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"pip can't install transformers here: {done.stderr[-500:]}")
    jobs = Jobs(tmp_path)
    fitted = fit(bert(tmp_path, bert_tasks()), tmp_path / "work", progress=False)
    jobs.add("out", fitted, weights=EVEN)
    listed, results = tmp_path / "jobs.json", tmp_path / "results.json"
    listed.write_text(json.dumps(jobs.jobs))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(SCRIPT), str(listed), str(results)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    expected = [value for _, _, value in jobs.expected]
    assert json.loads(results.read_text()) == pytest.approx(expected, abs=1e-4)
