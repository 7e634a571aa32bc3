"""A program of one's own: what is made once, what it must report, whose uniform weights fail."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import optuna_merge as om
from optuna_merge.definition import GivenRun
from optuna_merge.exceptions import NotFiniteError, ProgramError
from optuna_merge.fitting import Report
from optuna_merge.trainers import FittedProgram, Previews, Run, Wanted, WeightUnit, fit_program


class Counting:
    """A program whose metric of a task is its weight, and that counts what it is asked for.

    Args:
        rungs: Steps that it reports.
        broken: Weights of the first task at which its metrics are NaN.
    """

    names = ("red", "blue")
    unit = WeightUnit("examples", {"red": [1], "blue": [3]})
    steps = 4

    def __init__(self, rungs: tuple[int, ...] = (2, 4), broken: float = -1.0) -> None:
        self.rungs, self.broken = rungs, broken
        self.runs: list[Run] = []

    def describe(self) -> Mapping[str, Any]:
        return {"program": "counting"}

    def describe_task(self, task: str) -> Any:
        return task

    def train(self, run: Run, report: Report) -> None:
        self.runs.append(run)
        is_broken = abs(run.weights["red"] - self.broken) < 1e-9
        for step in self.rungs:
            report(step, {t: math.nan if is_broken else w for t, w in run.weights.items()})

    def adopt(self, run: Run, path: Path) -> Mapping[str, float]:
        return {task: weight * float(path.read_text()) for task, weight in run.weights.items()}

    def previews(self, runs: Mapping[str, Path], anchor: Path | None, folder: Path) -> Previews:
        known = None if anchor is None else anchor.name
        hashes = {task: run.name for task, run in runs.items()}
        return Previews(lambda weights: dict(weights), {"family": "isotropic"}, hashes, known)


def fitted(folder: Path, program: Counting | None = None, **options: Any) -> FittedProgram:
    given: dict[str, Any] = {"score": "mean", "constraints": (), "greater_is_better": True}
    return fit_program(program or Counting(), Wanted(**(given | options)), folder)


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    """A report that lets everything go on."""


def test_each_run_is_made_once_in_a_folder_of_its_own(tmp_path: Path) -> None:
    program = Counting()
    fit = fitted(tmp_path, program)
    assert [run.weights["red"] for run in program.runs] == pytest.approx([1.0, 0.0, 0.5])
    again = Counting()
    assert fitted(tmp_path, again).fingerprint == fit.fingerprint
    assert again.runs == []
    weights = {"red": 0.25, "blue": 0.75}
    fit.finetune(weights, ignore)
    fit.finetune(weights, ignore, repeat=1)
    fit.finetune(weights, ignore)
    assert len({run.folder for run in program.runs}) == len(program.runs) == 5
    assert program.runs[-1].repeat == 1


def test_runs_of_other_lengths_are_other_runs(tmp_path: Path) -> None:
    fit = fitted(tmp_path)
    longer = Counting(rungs=(4, 8))
    longer.steps = 8
    found = fitted(tmp_path, longer)
    assert len(longer.runs) == 3
    assert found.fingerprint != fit.fingerprint
    assert found.costs["task_run_steps"] == 16


def test_label_tokens_of_other_names_are_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    program = Counting()
    program.unit = WeightUnit("examples", {"red": [1], "blues": [3]})
    with pytest.raises(ValueError, match=r"known of \['blues', 'red'\], but not of task 'blue'"):
        fitted(tmp_path, program)
    assert program.runs == []


def test_the_program_is_given_its_own_unit(tmp_path: Path) -> None:
    program = Counting()
    fitted(tmp_path, program)
    assert program.runs[-1].converted == pytest.approx({"red": 0.75, "blue": 0.25})
    note = json.loads((program.runs[-1].folder / "finished.json").read_text())
    assert note["given"] == program.runs[-1].converted
    assert "red 1, blue 3" in note["unit"]


def test_a_report_ends_a_run_which_is_not_finished_then(tmp_path: Path) -> None:
    program = Counting()
    fit = fitted(tmp_path, program)
    weights = {"red": 0.25, "blue": 0.75}

    def end(step: int, metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit.finetune(weights, end)
    assert not fit.finetune(weights, ignore).reused
    assert fit.finetune(weights, ignore).reused
    assert len(program.runs) == 5


def test_metrics_after_the_last_step_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"after its last step 4 \(the last was after step 2\)"):
        fitted(tmp_path, Counting(rungs=(2,)))
    with pytest.raises(ProgramError, match="there was none"):
        fitted(tmp_path, Counting(rungs=()))


def test_a_task_run_whose_metric_is_not_finite_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="task 'red': the metric of the run of task 'red'"):
        fitted(tmp_path, Counting(broken=1.0))


def test_uniform_weights_that_fail_correct_nothing(tmp_path: Path, caplog: Any) -> None:
    fit = fitted(tmp_path, Counting(broken=0.5))
    assert len(fit.anchors) == 2
    assert "merges stay as they are" in caplog.text
    assert "anchor" not in fit.parts
    with pytest.raises(NotFiniteError):
        fit.finetune(om.fitting.uniform_weights(fit.names), ignore)


def test_a_program_may_take_given_runs(tmp_path: Path) -> None:
    path = tmp_path / "red.safetensors"
    path.write_text("3")
    program = Counting()
    wanted = Wanted("mean", (), True)
    fit = fit_program(program, wanted, tmp_path / "work", given={"red": GivenRun(path)})
    assert fit.alone == {"red": 3.0, "blue": 1.0}
    assert [run.weights["red"] for run in program.runs] == pytest.approx([0.0, 0.5])
    assert json.loads((fit.runs["red"].folder / "finished.json").read_text())["seconds"] == 0

    class Other:
        """A program without `adopt`."""

        def __getattr__(self, name: str) -> Any:
            if name == "adopt":
                raise AttributeError
            return getattr(program, name)

    with pytest.raises(TypeError, match="Other takes no given runs: it has no method adopt"):
        fit_program(Other(), wanted, tmp_path / "work", given={"red": GivenRun(path)})  # type: ignore[arg-type]


def test_one_task_has_no_anchor(tmp_path: Path) -> None:
    program = Counting()
    program.names = ("red",)  # type: ignore[assignment]
    fit = fitted(tmp_path, program)
    assert fit.anchors == ({"red": 1.0},)
    assert len(program.runs) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "median"}, "score must be one of"),
        ({"constraints": [om.Constraint("green", at_least=1)]}, "green"),
    ],
)
def test_goals_that_do_not_fit_are_refused_at_once(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    program = Counting()
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, program, **options)
    assert program.runs == []


def test_goals_in_words_of_a_definition(tmp_path: Path) -> None:
    fit = fitted(tmp_path, score=min_of, constraints=0.5)
    assert fit.goal.name == "min_of"
    assert fit.parts["constraints"] == ["red_of_alone_0.5", "blue_of_alone_0.5"]
    assert fitted(tmp_path, score="pareto").goal.is_pareto


def min_of(metrics: Mapping[str, float]) -> float:
    """A score of one's own."""
    return min(metrics.values())


def test_metrics_that_are_the_wrong_way_round_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(tmp_path / "right")
    assert "wrong way round" not in caplog.text
    fitted(tmp_path / "wrong", greater_is_better=False)
    assert "every task's own run is worse at its task" in caplog.text


def test_a_score_without_a_name_is_called_as_its_type(tmp_path: Path) -> None:
    score = functools.partial(lambda factor, metrics: factor * sum(metrics.values()), 2.0)
    assert fitted(tmp_path, score=score).parts["score"] == "partial"
