"""Every example runs as a user would start it, without a network."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDS = {
    "image_folders.py": "timm",
    "lightning_program.py": "lightning",
    "lm_eval_harness.py": "lm_eval",
    "lora_language_model.py": "peft",
    "mlflow_tracking.py": "mlflow",
    "tensorboard_curves.py": "tensorboard",
    "trl_chat.py": "trl",
    "wandb_tracking.py": "wandb",
}
PRINTS = {"pareto_front.py": "Pareto front of the truths, "}


RUN_ELSEWHERE = {"causal_trainer.py", "configured_trainers.py"}  # in tests of their own
SCRIPTS = [path for path in sorted(EXAMPLES.glob("*.py")) if path.name not in RUN_ELSEWHERE]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_example_prints_the_table(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if script.name in NEEDS:
        pytest.importorskip(NEEDS[script.name])
        pytest.importorskip("optuna_integration") if "tracking" in script.name else None
    # In this process: importing torch again for each would take most of the time.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [str(script)])
    verbosity = optuna.logging.get_verbosity()
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        optuna.logging.set_verbosity(verbosity)
    assert PRINTS.get(script.name, "Best task weights: ") in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"


@pytest.mark.slow
def test_an_example_needs_nothing_of_the_tests(tmp_path: Path) -> None:
    script = EXAMPLES / "ask_and_tell.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Best task weights: " in done.stdout


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert len(lines) <= 85
    assert script.read_text().startswith('"""')
    assert f"python examples/{script.name}" in script.read_text()
