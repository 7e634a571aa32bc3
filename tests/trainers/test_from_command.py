"""A study of a command: truths, previews, kills, pruning, and every way that it can end."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
from safetensors.numpy import load_file, save_file

import optuna_merge as om
from optuna_merge.definition import GivenRun
from optuna_merge.exceptions import ProgramError
from optuna_merge.trainers import FittedProgram, WeightUnit
from optuna_merge.trainers._command import CommandProgram
from optuna_merge.trainers._program import Run
from optuna_merge.trainers._runs import Runs
from optuna_merge.trainers._template import Template

SCRIPT = f"{sys.executable} {Path(__file__).with_name('command_for_tests.py')}"
ARGUMENTS = "train {folder} {checkpoint} {weights} {seed} {steps}"
WEIGHTS = {"math": 0.4, "chat": 0.6}
SLEEPING = f"{sys.executable} -c 'import time; time.sleep(1000)' {{weights}}"


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    """A report that lets everything go on."""


def options(fault: str = "none", **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "train": f"{SCRIPT} {fault} {ARGUMENTS}",
        "evaluate": f"{SCRIPT} {fault} evaluate {{checkpoint}}",
        "steps": 30,
        "checkpoint": "model.safetensors",
    }
    return given | changes


def fitted(folder: Path, fault: str = "none", **changes: Any) -> FittedProgram:
    given = {"unit": "examples", "workdir": folder, "tasks": ["math", "chat"]}
    return om.from_command(**(options(fault) | given | changes))


def program(folder: Path, fault: str = "none", **changes: Any) -> CommandProgram:
    """The program alone, without task runs."""
    more = {
        "metric": "{task}", "unit": WeightUnit("examples"), "seed": 0, "time_limit": None,
        "grace": 5.0, "about": {}, "scratch": folder / "merged", "names": ("math", "chat"),
    }  # fmt: skip
    given = options(fault) | more | changes
    training = Template(given.pop("train"), given["names"], ("weights", "weight"))
    evaluation = Template(given.pop("evaluate"), given["names"], ("checkpoint",))
    return CommandProgram(training, evaluation, **given)


def run(folder: Path, weights: Mapping[str, float] = WEIGHTS) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(weights, weights, folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> FittedProgram:
    return fitted(tmp_path_factory.mktemp("bench"))


def test_all_weight_on_one_task_is_its_own_run_and_its_own_preview(bench: FittedProgram) -> None:
    for task in bench.names:
        weights = {other: float(other == task) for other in bench.names}
        truth = bench.finetune(weights, ignore)
        assert truth.reused
        assert bench.preview(weights).values == pytest.approx(truth.values)


def test_a_preview_is_the_evaluated_anchored_average(bench: FittedProgram) -> None:
    math, chat, uniform = (
        load_file(bench.folder(anchor) / "model.safetensors")["point"] for anchor in bench.anchors
    )
    share = 2 * (0.4 * 0.6) ** 0.5
    merged = 0.4 * math + 0.6 * chat + share * (uniform - (math + chat) / 2)
    expected = float(np.exp(-((merged - np.array([1.0, 0, 0])) ** 2).sum()))
    assert bench.preview(WEIGHTS).values["math"] == pytest.approx(expected)


def test_a_finetune_reports_its_rungs_and_is_found_again(bench: FittedProgram) -> None:
    found: dict[int, Mapping[str, float]] = {}
    first = bench.finetune(WEIGHTS, found.__setitem__)
    assert list(found) == [10, 20, 30]
    again = bench.finetune(WEIGHTS, ignore)
    assert again.reused and again.values == first.values == found[30]
    assert bench.finetune(WEIGHTS, ignore, repeat=1).values != first.values


def test_a_study_of_a_command(bench: FittedProgram) -> None:
    study = om.open_search(bench, "command", fraction=0.5, warmup=2, seed=0)
    study.optimize(om.Objective(bench, progress=False), n_trials=8)
    text = om.format_report(om.make_report(study, bench))
    assert "Best task weights: " in text
    assert re.search(r"^task runs +60 ", text, re.MULTILINE)


def test_weights_are_given_in_the_commands_unit(tmp_path: Path) -> None:
    unit = WeightUnit("examples", {"math": [30], "chat": [10]})
    fit = fitted(tmp_path, unit=unit)
    assert "math 30, chat 10" in fit.unit
    fit.finetune(WEIGHTS, ignore)
    given = json.loads((fit.folder(WEIGHTS) / "finished.json").read_text())["given"]
    assert given["math"] / given["chat"] == pytest.approx(0.4 / 0.6 / 3)
    assert fit.fingerprint != fitted(tmp_path).fingerprint


def test_what_writes_no_metrics_is_evaluated(tmp_path: Path) -> None:
    fit = fitted(tmp_path, "silent")
    found: dict[int, Mapping[str, float]] = {}
    fit.finetune(WEIGHTS, found.__setitem__)
    assert list(found) == [30]


def wait_for(path: Path, lines: int = 1) -> None:
    until = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


def test_a_command_outlives_the_kill_of_its_study_and_is_followed(tmp_path: Path) -> None:
    """Its study is killed, not the command: the next call doesn't start a second one beside it."""
    ours, calls = program(tmp_path, "slow"), tmp_path / "run" / "calls"
    wanted = run(tmp_path / "run")
    pid = os.fork()
    if pid == 0:
        try:
            ours.train(wanted, ignore)
        finally:
            os._exit(1)
    wait_for(calls)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    first = int(calls.read_text())
    os.kill(first, 0)  # it still runs

    found: dict[int, Mapping[str, float]] = {}

    def report(step: int, metrics: Mapping[str, float]) -> None:
        assert len(calls.read_text().splitlines()) == 1, "two trained at once"
        found[step] = metrics

    pid = os.fork()  # somebody who lets it go on in a while
    if pid == 0:
        time.sleep(0.5)
        (wanted.folder / "go").touch()
        os._exit(0)
    ours.train(wanted, report)
    os.waitpid(pid, 0)
    assert list(found) == [10, 20, 30]


def test_a_killed_command_goes_on_from_its_checkpoint(
    bench: FittedProgram, tmp_path: Path
) -> None:
    weights = {"math": 0.7, "chat": 0.3}
    expected: dict[int, Mapping[str, float]] = {}
    bench.finetune(weights, expected.__setitem__)
    wanted = run(tmp_path / "run", weights)

    def kill(step: int, metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program(tmp_path, "endless", steps=20).train(wanted, kill)
    lines = wanted.folder / "metrics.jsonl"
    with lines.open("a") as file:
        file.write('{"step": 30, "met')  # where it was killed
    found: dict[int, Mapping[str, float]] = {}
    program(tmp_path).train(wanted, found.__setitem__)
    assert found == expected
    assert all(json.loads(line) for line in lines.read_text().splitlines())


def test_a_kill_between_checkpoint_and_line_loses_no_rung(
    bench: FittedProgram, tmp_path: Path
) -> None:
    weights = {"math": 0.7, "chat": 0.3}
    expected: dict[int, Mapping[str, float]] = {}
    bench.finetune(weights, expected.__setitem__)
    wanted, found = run(tmp_path / "run", weights), dict[int, Mapping[str, float]]()
    with pytest.raises(ProgramError, match="SIGKILL"):
        program(tmp_path, "torn").train(wanted, found.__setitem__)
    assert list(found) == [10]
    assert load_file(wanted.folder / "state.safetensors")["step"] == 20
    found.clear()
    program(tmp_path, "torn").train(wanted, found.__setitem__)
    assert found == expected and list(found) == [10, 20, 30]


class Forgetful:
    """A program that is killed once, and then tells nothing of the checkpoint's step."""

    names, steps, unit = ("math", "chat"), 30, WeightUnit("examples")

    def describe(self) -> dict[str, str]:
        return {}

    def describe_task(self, task: str) -> str:
        return task

    def train(self, wanted: Run, report: Callable[[int, Mapping[str, float]], None]) -> None:
        killed = wanted.folder / "killed"
        for step in (10, 20, 30):
            if step < 20 or not killed.exists():
                report(step, dict.fromkeys(self.names, 0.5))
            if step == 10 and max(wanted.weights.values()) < 1 and not killed.exists():
                killed.touch()
                raise ProgramError("killed")
        report(30, dict.fromkeys(self.names, 0.5))


def test_a_rung_that_a_kill_has_lost_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs(cast(Any, Forgetful()), tmp_path, {})
    runs.run({"math": 1.0, "chat": 0.0})
    with pytest.raises(ProgramError, match="killed"):
        runs.run(WEIGHTS)
    assert "lacks" not in caplog.text
    assert list(runs.run(WEIGHTS).rungs) == [10, 30]
    assert "told no metrics after step 20, as other runs do" in caplog.text


def test_pruning_stops_the_command_and_all_that_it_started(tmp_path: Path) -> None:
    wanted = run(tmp_path / "run")

    def prune(step: int, metrics: Mapping[str, float]) -> None:
        if step == 20:
            raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        program(tmp_path, "child").train(wanted, prune)
    group = int((wanted.folder / "process").read_text())
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    with pytest.raises(optuna.TrialPruned):  # known from its lines: nothing is started
        program(tmp_path, "exit").train(wanted, prune)


def test_a_command_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    wanted = run(tmp_path / "run")
    with pytest.raises(ProgramError, match="was stopped after 2 seconds, its time limit"):
        program(tmp_path, "stubborn", time_limit=2, grace=0.3).train(wanted, ignore)
    group = int((wanted.folder / "process").read_text())
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


ENDS = {
    "exit": r"ended with exit code 3: .*\n.*log.txt:\n  out of memory, said the script",
    "killed": "was ended by SIGKILL",
    "nothing": r"has left no checkpoint in .*model\.safetensors",
    "bad-line": r"metrics\.jsonl, line 1: 'epoch 1: fine' is not of the form",
    "missing": r"line 1: no metric 'chat' of task 'chat'; there are \['math', 'maths'\]",
    "no-number": "the metric 'math' is '1'; expected a number",
}


@pytest.mark.parametrize("fault", ENDS)
def test_the_end_of_a_training_is_told(fault: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=ENDS[fault]):
        fitted(tmp_path, fault)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("evaluation-missing", "no metric 'chat' of task 'chat'"),
        ("evaluation-text", "last line of its output is 'all is well'; expected the metrics"),
    ],
)
def test_the_end_of_an_evaluation_is_told(fault: str, message: str, tmp_path: Path) -> None:
    fit = fitted(tmp_path, fault)
    with pytest.raises(ProgramError, match=message):
        fit.preview(WEIGHTS)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["lock"]


def test_an_evaluation_has_a_time_limit(tmp_path: Path) -> None:
    fit = fitted(tmp_path, evaluate=SLEEPING + " {checkpoint}", time_limit=3, grace=1)
    with pytest.raises(ProgramError, match="stopped after 3 seconds"):
        fit.preview(WEIGHTS)


def test_a_run_without_its_last_step_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="can't be started"):
        fitted(tmp_path, train="no-such-command {weights}")


BAD: dict[str, dict[str, Any]] = {
    "has none of the placeholders {weights}, {weight}": {"train": "sh train.sh"},
    "has none of the placeholders {checkpoint}": {"evaluate": "sh evaluate.sh"},
    "no task is called so; expected one of math, chat": {"train": "t {weight:maths}"},
    "but none of chat": {"train": "t {weight:math}"},
    "the command is empty": {"train": ""},
    "tasks is empty": {"tasks": []},
    "task names must differ": {"tasks": ["math", "math"]},
    "steps must be at least 1": {"steps": 0},
    "unit 'rows' is not known": {"unit": "rows"},
    "is one for all tasks": {"metric": "accuracy"},
    "must be a name in the run's folder": {"checkpoint": "../model"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_before_anything_is_started(message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        fitted(tmp_path, **BAD[message])
    assert list(tmp_path.iterdir()) == []


def test_given_checkpoints_are_task_runs(bench: FittedProgram, tmp_path: Path) -> None:
    runs = {t: bench.folder(w) / "model.safetensors" for t, w in zip(bench.names, bench.anchors)}
    given = fitted(tmp_path, runs=runs, anchor="none", train=SLEEPING)
    assert given.costs["task_run_steps"] == given.costs["task_run_seconds"] == 0
    assert given.alone == pytest.approx(bench.alone)
    assert given.parts["runs"].keys() == {"math", "chat"}
    averaged = given.preview(WEIGHTS).values
    assert averaged != pytest.approx(bench.preview(WEIGHTS).values), "that one is corrected"
    assert len(given.anchors) == 2
    again = fitted(tmp_path, runs=runs, anchor="none", train=SLEEPING)
    assert again.fingerprint == given.fingerprint


def test_given_checkpoints_that_do_not_fit_are_told(bench: FittedProgram, tmp_path: Path) -> None:
    path = bench.folder(bench.anchors[0]) / "model.safetensors"
    save_file({"point": np.zeros(4)}, tmp_path / "wide.safetensors")
    save_file({"point": np.zeros(3, np.float32)}, tmp_path / "single.safetensors")
    save_file({"places": np.zeros(3)}, tmp_path / "named.safetensors")
    (tmp_path / "folder").mkdir()
    for other, error, told in (
        (
            "wide.safetensors",
            ValueError,
            r"'point' is F64 \(4,\), but F64 \(3,\) in that of task 'math'",
        ),
        ("single.safetensors", ValueError, "'point' is F32 .* and saved in one dtype"),
        (
            "named.safetensors",
            ValueError,
            "'point' is missing, but .* are they finetuned from one",
        ),
        ("folder", FileNotFoundError, r"has no model.safetensors"),
        ("nowhere", FileNotFoundError, "task 'chat': there is no checkpoint"),
    ):
        with pytest.raises(error, match=told):
            fitted(tmp_path / "work", runs={"math": path, "chat": tmp_path / other})
    with pytest.raises(ValueError, match="no task is called 'maths'; did you mean 'math'"):
        fitted(tmp_path / "work", runs={"maths": path})
    with pytest.raises(ValueError, match="averages, which need none; leave it out"):
        fitted(tmp_path / "work", runs={"math": GivenRun(path, "optimizer")})
    with pytest.raises(ValueError, match="is a file, but the command's checkpoints are called"):
        fitted(tmp_path / "work", runs={"math": path}, checkpoint="model")
