"""Commands that read make nothing, whatever they are given."""

from __future__ import annotations

from pathlib import Path

from commands.command_line import fails, prints

READING = (
    ("report", "toy.py"),
    ("report",),
    ("export", "toy.py", "--out", "x"),
    ("diagnose",),
    ("gc", "toy.py"),
)


def test_commands_that_read_make_nothing(folder: Path) -> None:
    """A wrong name must not make a study, a database or a fit."""
    assert "no file nosuch.yaml" in fails("fit", "nosuch.yaml")
    for command in READING:
        assert "no database optuna_merge.db; give that of the study" in fails(*command)
    assert sorted(path.name for path in folder.iterdir()) == ["toy.py"]
    prints("optimize", "toy.py", "--n-trials", "1")
    for command in READING:
        told = fails(*command, "--study-name", "typo")
        assert "no study 'typo' in this storage; there are: optuna_merge" in told
    for command in (("report", "toy.py"), ("export", "toy.py", "--out", "x")):
        told = fails(*command, "--workdir", "elsewhere")
        assert "nothing was fitted in the working folder elsewhere" in told
    assert not Path("elsewhere").exists()
    assert not Path("x").exists()
