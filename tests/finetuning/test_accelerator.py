"""The own training loop is of one process."""

from __future__ import annotations

import pytest

from optuna_merge.finetuning import make_accelerator


def test_a_launch_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    make_accelerator("no")  # a cluster's variable, but no launch
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"one of 2 processes .*om\.from_trainer"):
        make_accelerator("no")
