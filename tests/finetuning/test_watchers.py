"""Watchers of finetunes: what they are told, and the curves that TensorBoard is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import raise_at, toy_model, toy_settings, toy_tasks
from torch import Tensor

from optuna_merge.finetuning import RunInfo, TensorBoard, Watcher, finetune, watched_by
from optuna_merge.tasks import Evaluation

WEIGHTS = {"red": 0.25, "blue": 0.75}


class Diary(Watcher):
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def started(self, run: RunInfo) -> None:
        self.lines.append(("started", dict(run.weights), run.steps, run.done))

    def stepped(self, step: int, loss: Tensor) -> None:
        self.lines.append((step, loss.item()))

    def evaluated(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        self.lines.append(("evaluated", step, list(evaluations)))

    def ended(self) -> None:
        self.lines.append("ended")


def train(**options: Any) -> Any:
    tasks = toy_tasks()
    return finetune(toy_model(tasks), tasks, WEIGHTS, toy_settings(), **options)


def test_watchers_are_told_in_order_and_only_within(tmp_path: Path) -> None:
    diary = Diary()
    with watched_by(diary):
        train()
    train()
    assert diary.lines[0] == ("started", WEIGHTS, 7, 0)
    assert [line[0] for line in diary.lines[1:-1]] == [
        *(1, 2, 3, "evaluated", 4, 5, "evaluated", 6, 7, "evaluated")
    ]
    assert all(line[1] > 0 for line in diary.lines[1:-1])
    assert diary.lines[-1] == "ended"
    assert diary.lines.count("ended") == 1


def test_a_run_that_goes_on_starts_where_it_was_broken_off(tmp_path: Path) -> None:
    diary, checkpoint = Diary(), {"checkpoint": tmp_path / "c.safetensors", "key": "k"}
    with watched_by(diary):
        with pytest.raises(KeyboardInterrupt):
            train(on_rung=raise_at(3), **checkpoint)
        assert diary.lines[-1] == "ended"
        train(**checkpoint)
    assert [line for line in diary.lines if line[0] == "started"] == [
        ("started", WEIGHTS, 7, 0),
        ("started", WEIGHTS, 7, 3),
    ]


def test_a_title_asks_for_a_bar_unless_one_is_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(progress="finetune 3")
    assert "finetune 3" in capsys.readouterr().err
    diary = Diary()
    diary.shows_progress = True
    with watched_by(diary):
        train(progress="finetune 4")
    assert capsys.readouterr().err == ""


def test_watching_changes_no_number() -> None:
    with watched_by(Diary()):
        watched = train()
    assert watched.evaluations == train().evaluations


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with watched_by(TensorBoard(tmp_path, every=2)):
        result = train()
    found = EventAccumulator(str(tmp_path / "red=0.25,blue=0.75"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [2, 4, 6]
    assert [event.step for event in found.Scalars("red/accuracy")] == [3, 5, 7]
    last = found.Scalars("blue/loss")[-1].value
    assert last == pytest.approx(result.evaluations["blue"].loss.value)
