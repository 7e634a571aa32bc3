"""Which of a Trainer's checkpoints is the newest whole one."""

from __future__ import annotations

from pathlib import Path

import pytest

from optuna_merge.trainers._checkpoints import newest_checkpoint, remove_checkpoints


def test_checkpoints_that_a_kill_left_half_written_are_passed_over(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10, 12, 14):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2/trainer_state.json").write_text('{"global_step": 2}')
    (tmp_path / "checkpoint-10/trainer_state.json").write_text('{"global_step": 10}')
    (tmp_path / "checkpoint-12/trainer_state.json").write_text('{"global_st')
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == (10, tmp_path / "checkpoint-10")
    remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-best"]


def test_a_checkpoint_that_is_half_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    def save() -> None:
        (tmp_path / "checkpoint-2").mkdir()
        (tmp_path / "checkpoint-2/trainer_state.json").write_text('{"global_step": 2}')

    save()
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_checkpoints(tmp_path)
    assert list(tmp_path.rglob("trainer_state.json"))
    assert newest_checkpoint(tmp_path) is None
    save()
    remove_checkpoints(tmp_path)  # what the first one has left doesn't hinder it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoint-3x", "checkpoint-", "my-checkpoint-3"])
def test_other_folders_are_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "trainer_state.json").write_text('{"global_step": 3}')
    assert newest_checkpoint(tmp_path) is None
