"""The three-task causal study: how short it is, and what it has like any other."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import optuna
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "causal_trainer.py"


def test_the_study_is_at_most_25_lines() -> None:
    (search,) = (
        node
        for node in ast.parse(EXAMPLE.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "search"
    )
    first, last = search.body[1], search.body[-1]  # without the docstring
    assert last.end_lineno is not None
    lines = EXAMPLE.read_text().splitlines()[first.lineno - 1 : last.end_lineno]
    assert sum(bool(line.strip()) for line in lines) <= 25


def test_it_has_baselines_costs_a_page_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    example = runpy.run_path(str(EXAMPLE))
    body = example["tiny_body"]("llama", tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    example["search"](body, str(work), 1)
    runs = sorted(path.stat().st_mtime_ns for path in work.glob("program-runs/*/model"))
    example["search"](body, str(work), 3)
    text = capsys.readouterr().out
    for part in ("uniform", "repeat", "rise", "fall", "task runs", "Spent: "):
        assert part in text, part
    assert "Best task weights" in (work / "report.html").read_text()
    study = optuna.load_study(study_name="sources", storage=f"sqlite:///{work}/study.db")
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 4
    again = sorted(path.stat().st_mtime_ns for path in work.glob("program-runs/*/model"))
    assert runs and set(runs) <= set(again), "what was finetuned is not finetuned again"
