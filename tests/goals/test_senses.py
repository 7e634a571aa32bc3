from __future__ import annotations

import pytest

from optuna_merge.goals import doubtful_sense, is_to_be_maximised


@pytest.mark.parametrize(
    "metric", ["eval_{task}_loss", "{task}_loss", "loss/{task}", "eval_{task}_wer", "{task}-RMSE"]
)
def test_losses_and_errors_are_to_be_minimised(metric: str) -> None:
    assert not is_to_be_maximised(metric)
    assert is_to_be_maximised(metric, True)


@pytest.mark.parametrize(
    "metric", ["{task}", "eval_{task}_accuracy", "answer_{task}", "loss_free_{task}_f1"]
)
def test_other_metrics_are_to_be_maximised(metric: str) -> None:
    assert is_to_be_maximised(metric)
    assert not is_to_be_maximised(metric, False)


def test_task_runs_that_are_the_worst_at_their_own_tasks_are_doubted() -> None:
    losses = {
        "red": {"red": 0.2, "blue": 0.9, "green": 1.1},
        "blue": {"red": 0.7, "blue": 0.3, "green": 1.2},
        "green": {"red": 0.8, "blue": 0.8, "green": 0.4},
    }
    assert doubtful_sense(losses, dict.fromkeys(losses, False)) is None
    told = doubtful_sense(losses, dict.fromkeys(losses, True))
    assert told is not None
    assert "maximised: if that is the wrong way round, say greater_is_better" in told


def test_one_task_run_that_is_no_worse_ends_the_doubt() -> None:
    runs = {"red": {"red": 0.2, "blue": 0.9}, "blue": {"red": 0.2, "blue": 0.3}}
    assert doubtful_sense(runs, {"red": True, "blue": True}) is None
    assert doubtful_sense({"red": {"red": 0.1}}, {"red": True}) is None
    both = doubtful_sense(
        {"red": {"red": 0.9, "blue": 0.9}, "blue": {"red": 0.2, "blue": 0.3}},
        {"red": False, "blue": True},
    )
    assert both is not None and "minimised and maximised" in both
