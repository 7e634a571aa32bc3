"""Any error of any command, or of a study's script, is one message and an exit code."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import optuna
import pyarrow.parquet
import pytest
import safetensors.torch
import sqlalchemy
import torch
import yaml
from helpers import toy_definition

from commands.command_line import STORAGE, fails, run
from optuna_merge.cli import script
from optuna_merge.exceptions import TrainingDivergedError


def _bug() -> None:
    raise AssertionError("a bug")


def _silent_bug() -> None:
    raise AssertionError


def _recursion() -> None:
    _recursion()


def _sizes() -> None:
    torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())


def _damaged_tensors() -> None:
    safetensors.torch.load(b"\x08" + b"\0" * 20)


def _twice_the_same_study() -> None:
    storage = optuna.storages.InMemoryStorage()
    for _ in range(2):
        optuna.create_study(study_name="s", storage=storage)


def _no_table() -> None:
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 'secret value' FROM trials"))


def _no_module() -> None:
    import nosuchpackage  # noqa: F401


def _too_much_memory() -> None:
    torch.empty(2**60)


def _diverged() -> None:
    raise TrainingDivergedError("the loss became NaN at step 3")


def _password() -> None:
    raise RuntimeError("no answer from postgresql://me:hunter2@host/db")


ERRORS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "bug": (_bug, ["error: AssertionError: a bug (--debug shows"]),
    "silent bug": (_silent_bug, ["error: AssertionError (--debug shows"]),
    "look-up": (lambda: {}["red"], ["error: KeyError: 'red' (--debug"]),
    "wrong call": (lambda: len(3), ["error: TypeError: object of type 'int'", "--debug"]),  # type: ignore[arg-type]
    "recursion": (_recursion, ["error: RecursionError: maximum", "--debug"]),
    "encoding": (lambda: b"\xe9".decode(), ["error: UnicodeDecodeError: ", "--debug"]),
    "json": (lambda: json.loads("{"), ["error: JSONDecodeError: ", "--debug"]),
    "yaml": (lambda: yaml.safe_load("a: ["), ["error: ParserError: ", "--debug"]),
    "zip": (lambda: zipfile.ZipFile(io.BytesIO(b"no")), ["error: BadZipFile: ", "--debug"]),
    "parquet": (
        lambda: pyarrow.parquet.read_table(io.BytesIO(b"no")),
        ["error: ArrowInvalid: ", "--debug"],
    ),
    "sizes": (_sizes, ["error: RuntimeError: ", "size mismatch for weight", "--debug"]),
    "tensors": (_damaged_tensors, ["error: SafetensorError: ", "--debug"]),
    "study": (_twice_the_same_study, ["error: DuplicatedStudyError: ", "'s'", "--debug"]),
    "table": (_no_table, ["database answered OperationalError: no such table: trials", "--debug"]),
    "module": (_no_module, ["the package 'nosuchpackage' is not installed"]),
    "memory": (_too_much_memory, ["error: out of memory (", "smaller finetuning.batch_size"]),
    "diverged": (_diverged, ["error: the loss became NaN at step 3\n"]),
    "password": (_password, ["error: RuntimeError: no answer", "me:***@host", "--debug"]),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_one_message(
    folder: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising, parts = ERRORS[kind]
    monkeypatch.setattr("optuna_merge.commands._fitted.fit", lambda *_, **__: raising())
    for command in (("fit", "toy.py"), ("optimize", "toy.py")):
        _told_once(fails(*command), parts)
    monkeypatch.setattr(sys, "argv", ["optimize.py", "--storage", "sqlite://"])
    with pytest.raises(SystemExit) as ended:
        script(toy_definition, name="toys", n_trials=1)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert not said.out
    _told_once(said.err, parts)


def _told_once(text: str, parts: list[str]) -> None:
    assert text.count("error: ") == 1, text
    for part in parts:
        assert part in text
    for never in ("Traceback", "hunter2", "secret value"):
        assert never not in text


def test_debug_shows_where_an_error_comes_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_merge.commands._fitted.fit", lambda *_, **__: _bug())
    with pytest.raises(AssertionError, match="a bug") as error:
        run("fit", "toy.py", "--debug")
    assert error.traceback[-1].name == "_bug"


def test_usage_errors_end_with_two(folder: Path) -> None:
    assert "nosuch" in fails("nosuch", code=2)
    assert "--n-trial" in fails("optimize", "toy.py", "--n-trial", "3", code=2)
    assert "--n-trials" in fails("optimize", "toy.py", "--n-trials", "many", code=2)
    assert "--out" in fails("export", "toy.py", code=2)
    assert "definition" in fails("fit", code=2)


def test_interrupts_end_with_130(folder: Path) -> None:
    Path("stop.py").write_text("raise KeyboardInterrupt")
    assert "the same command goes on from here" in fails("fit", "stop.py", code=130)


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("postgresql+psycopg://me:hunter2@127.0.0.1:1/db", "127.0.0.1"),
        ("mysql://me:hunter2@127.0.0.1:1/db", "127.0.0.1"),
        ("postgresql://me:hunter2@nosuchhost.invalid/db", "nosuchhost.invalid"),
        ("redis://me:hunter2@localhost", "unknown scheme"),
        ("me:hunter2@localhost", "can't read the storage URL"),
    ],
)
def test_databases_out_of_reach(folder: Path, storage: str, told: str) -> None:
    for command in (("optimize", "toy.py"), ("diagnose",)):
        text = fails(*command, "--storage", storage)
        assert told in text
        assert "hunter2" not in text


def test_a_wrong_password(folder: Path, postgres_database: str) -> None:
    url = sqlalchemy.make_url(postgres_database).set(password="hunter2")
    text = fails("optimize", "toy.py", "--storage", url.render_as_string(hide_password=False))
    assert "password" in text
    assert "hunter2" not in text
    assert not Path("workdir/finetunes").exists()


COMMANDS = (
    ("fit", "toy.py", "--artifacts", "shared"),
    ("optimize", "toy.py"),
    ("report",),
    ("report", "toy.py"),
    ("diagnose",),
    ("export", "toy.py", "--out", "best"),
    ("gc", "toy.py"),
)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("v2.6.0.a", "`optuna storage upgrade --storage sqlite:///optuna_merge.db`"),
        ("v99.0.0.a", "another version of Optuna than the 5.0.0 installed here"),
    ],
)
def test_databases_of_other_versions_of_optuna(folder: Path, version: str, told: str) -> None:
    optuna.create_study(study_name="optuna_merge", storage=STORAGE)
    with sqlite3.connect("optuna_merge.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()
    for command in COMMANDS:
        text = fails(*command)
        assert told.replace("5.0.0", optuna.__version__) in text
        assert text.count("error: ") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_lost_a_table(folder: Path, command: tuple[str, ...]) -> None:
    from optuna_merge.storages import create_storage

    study = optuna.create_study(
        study_name="optuna_merge",
        storage=create_storage(STORAGE),
        direction="maximize",
    )
    study.add_trial(optuna.create_trial(value=1.0))
    Path("workdir/finetunes").mkdir(parents=True)
    with sqlite3.connect("optuna_merge.db") as connection:
        # A view of the name, so that opening does not make the table again.
        for name in ("studies", "trials"):
            connection.execute(f"DROP TABLE {name}")
            connection.execute(f"CREATE VIEW {name} AS SELECT 1 AS other")
    connection.close()
    text = fails(*command)
    assert text.count("error: ") == 1
    assert re.search("database answered OperationalError: (no such column|cannot modify)", text)
    assert "SELECT" not in text
