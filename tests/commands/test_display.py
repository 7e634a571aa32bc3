"""What is seen of a study that runs, in a terminal and without one."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import toy_definition
from rich.console import Console
from rich.progress import Progress

import optuna_merge as om
from optuna_merge.commands._display import StepBar, Tally, fit_shown, shown
from optuna_merge.finetuning import RunInfo


def study_of(workdir: Path) -> tuple[optuna.Study, om.Objective]:
    definition = toy_definition()
    fitted = om.fit(definition, workdir, progress=False)
    pruner = om.PromotionPruner(fraction=0.5, score=fitted.goal.scores, seed=0)
    study = om.open_study("s", om.create_storage(None), definition.directions, pruner=pruner)
    om.prepare_study(study, fitted, second_seed=False)
    return study, om.Objective(fitted)


def run(study: optuna.Study, objective: Any, after_trial: Any, n_trials: int = 6) -> None:
    study.optimize(objective, n_trials, callbacks=[lambda _, trial: after_trial(trial)])


def test_a_terminal_gets_live_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study, objective = study_of(tmp_path)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    with shown(study, 6, console=console) as after_trial:
        run(study, objective, after_trial)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "6/6" in text
    done = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    assert f"{done} finetunes ({done - 3} promoted), best {study.best_value:.4f}" in text
    assert "it/s" not in text, "tqdm's bar as well"


@pytest.mark.parametrize("keep", [False, True])
def test_a_finetune_has_a_row_while_it_trains(keep: bool) -> None:
    progress = Progress()
    bar = StepBar(progress, keep=keep)
    bar.started(RunInfo("finetune 3", {"red": 1.0}, steps=7, done=2))
    (row,) = progress.tasks
    assert (row.description, row.total, row.completed) == ("finetune 3", 7, 2)
    bar.stepped(3, torch.full((), 0.25))
    assert progress.tasks[0].completed == 3
    assert progress.tasks[0].fields["loss"] == "loss 0.2500"
    bar.ended()
    assert len(progress.tasks) == keep


def test_a_fit_in_a_terminal_has_a_row_a_task(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    with fit_shown(console):
        om.fit(toy_definition(), tmp_path)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for task in ("red", "blue"):
        assert re.search(rf"task {task} +\S+ 7/7 +loss \d\.\d{{4}} +0:00:00", text)
    assert "it/s" not in text, "tqdm's bar as well"


def test_a_fit_without_a_terminal_logs_a_line_a_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    with caplog.at_level(logging.INFO), fit_shown(Console(file=screen, force_terminal=False)):
        om.fit(toy_definition(), tmp_path, progress=False)
    lines = [r.getMessage() for r in caplog.records if " alone: " in r.getMessage()]
    assert [line.split(" alone")[0] for line in lines] == ["task red", "task blue"]
    begun = [r.getMessage() for r in caplog.records if r.getMessage().startswith("finetuning at")]
    assert begun[0] == "finetuning at red 1.000: 7 steps"
    assert len(begun) == 3, "two tasks and uniform weights"
    assert "choosing the damping" in caplog.text
    assert screen.getvalue() == ""
    assert capfd.readouterr().out == ""


def test_without_a_terminal_lines_are_few(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study, objective = study_of(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=False)
    verbosity = optuna.logging.get_verbosity()
    caplog.clear()
    with caplog.at_level(logging.INFO), shown(study, 6, console=console) as after_trial:
        run(study, objective, after_trial)
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("_display")]
    done = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    assert len(lines) == done
    assert re.fullmatch(
        r"1 of 6 trials: 1 previews \([\d.]+/s\), 1 finetunes \(0 promoted\), "
        r"best 0\.\d{4} \(trial 0\), about \d+ s left",
        lines[0],
    )
    assert not [r for r in caplog.records if r.name.startswith("optuna.")]
    assert optuna.logging.get_verbosity() == verbosity


def test_time_left() -> None:
    study = optuna.create_study()
    now = 0.0
    tally = Tally(study, 100, clock=lambda: now)
    assert tally.time_left() == ""
    pruned = optuna.create_trial(state=optuna.trial.TrialState.PRUNED)
    for _ in range(10):
        tally.add(pruned)
    now = 5.0
    assert tally.time_left() == "about 45 s left"
    now = 60.0
    assert tally.time_left() == "about 9 min left"
    assert tally.summary() == "0 previews, 0 finetunes (0 promoted)"
    for _ in range(91):  # the last promotion's finetune may be one more than was asked for
        tally.add(pruned)
    assert tally.time_left() == ""
    assert Tally(study, None).time_left() == ""


def test_a_promoted_copy_is_no_second_preview() -> None:
    tally = Tally(optuna.create_study(), None)
    attrs = {"preview_seconds": 0.5}
    tally.add(
        optuna.create_trial(
            state=optuna.trial.TrialState.PRUNED,
            intermediate_values={0: 1.0},
            user_attrs=attrs,
        )
    )
    tally.add(
        optuna.create_trial(
            value=1.0, intermediate_values={0: 1.0}, user_attrs=attrs | {"promoted_from": 0}
        )
    )
    assert tally.summary() == "1 previews (2.0/s), 1 finetunes (1 promoted)"
