"""Exit codes, JSON, and what users get wrong: a message, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from typer.testing import CliRunner

from optuna_merge.cli import app

TESTS = Path(__file__).resolve().parents[1]

DEFINITION = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers import toy_definition

def definition():
    return toy_definition()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(DEFINITION)
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def fails(*arguments: str, code: int = 1) -> str:
    """Runs a command that must fail with that exit code; gives what it told."""
    found, out, err = run(*arguments)
    assert found == code, (out, err)
    assert "Traceback" not in err
    assert not out.strip()
    return err


def test_json_is_all_that_is_printed(folder: Path) -> None:
    code, out, _ = run("fit", "toy.py", "--json")
    assert code == 0
    fitted = json.loads(out)
    assert list(fitted["tasks"]) == ["red", "blue"]
    assert fitted["tasks"]["red"]["metrics"].keys() == {"accuracy"}
    assert Path(fitted["tasks"]["red"]["file"]).is_file()
    assert fitted["costs"]["task_run_steps"] == 14
    code, out, _ = run("optimize", "toy.py", "--n-trials", "4", "--seed", "0", "--json")
    assert code == 0
    assert json.loads(out)["best"]["weights"].keys() == {"red", "blue"}
    assert json.loads(out)["fingerprint"] == fitted["fingerprint"]
    code, again, _ = run("report", "toy.py", "--json")
    assert code == 0
    assert json.loads(again) == json.loads(out)
    code, out, _ = run("export", "toy.py", "--out", "best", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(Path("best/optuna_merge.json").read_text())


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
    ("text", "told"),
    [
        ("", "user.py: no function definition() -> StudyDefinition in it"),
        ("def definition():\n    return", "user.py: definition() gave NoneType"),
        ("def definition(:\n", "user.py:1: SyntaxError: "),
        ("import nosuchpackage\n", "user.py:1: ModuleNotFoundError: No module named"),
        ("def definition():\n\n    return nosuch\n", "user.py:3: NameError: name 'nosuch'"),
        (
            "def definition():\n    return open('nosuch.csv')\n",
            "user.py:2: [Errno 2] No such file or directory: 'nosuch.csv'",
        ),
        (
            "import optuna_merge as om\ndef definition():\n"
            "    return om.FinetuneSettings(steps=-1)\n",
            "user.py:3: steps must be at least 1, got -1",
        ),
    ],
)
def test_errors_in_a_python_definition_name_the_line(folder: Path, text: str, told: str) -> None:
    Path("user.py").write_text(text)
    assert told in fails("fit", "user.py")
    assert not Path("workdir").exists()


def test_debug_keeps_the_traceback(folder: Path) -> None:
    Path("user.py").write_text("def definition():\n    return nosuch\n")
    with pytest.raises(ValueError, match="NameError") as error:
        run("fit", "user.py", "--debug")
    assert isinstance(error.value.__cause__, NameError)


def test_commands_that_read_make_nothing(folder: Path) -> None:
    """A wrong name must not make a study, a database or a fit."""
    assert "no file nosuch.yaml" in fails("fit", "nosuch.yaml")
    for command in (("report", "toy.py"), ("export", "toy.py", "--out", "x"), ("diagnose",)):
        assert "no database optuna_merge.db; give that of the study" in fails(*command)
    assert sorted(path.name for path in folder.iterdir()) == ["toy.py"]
    assert run("optimize", "toy.py", "--n-trials", "1")[0] == 0
    for command in (("report", "toy.py"), ("export", "toy.py", "--out", "x"), ("diagnose",)):
        told = fails(*command, "--study-name", "typo")
        assert "no study 'typo' in this storage; there are: optuna_merge" in told
    for command in (("report", "toy.py"), ("export", "toy.py", "--out", "x")):
        told = fails(*command, "--workdir", "elsewhere")
        assert "nothing was fitted in the working folder elsewhere" in told
    assert not Path("elsewhere").exists()
    assert not Path("x").exists()


def test_folders_that_can_not_be_written(folder: Path) -> None:
    assert run("optimize", "toy.py", "--n-trials", "1")[0] == 0
    told = fails("export", "toy.py", "--out", "/proc/best", "--weights", "red=1")
    assert "can't write /proc/best" in told
    assert "can't write /proc/study.yaml" in fails("init", "/proc/study.yaml")
    assert "can't write in the working folder /proc/w" in fails(
        "fit", "toy.py", "--workdir", "/proc/w"
    )


@pytest.mark.parametrize(
    ("storage", "told"),
    [
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


def test_a_sigint_in_the_middle_ends_with_130(folder: Path) -> None:
    Path("slow.py").write_text(
        DEFINITION.replace("return toy_definition()", "import os, signal, threading\n"
        # Shells let jobs in the background ignore it, and children inherit that.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    from helpers import toy_settings\n"
        "    return toy_definition(finetuning=toy_settings(steps=10**6, num_rungs=1))")
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from optuna_merge.cli import main; main()", "fit", "slow.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        timeout=300,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["--version"]])
def test_help_imports_next_to_nothing(arguments: list[str]) -> None:
    code = (
        f"import sys, optuna_merge.cli as cli; sys.argv = ['optuna-merge', *{arguments}]\n"
        "try:\n    cli.main()\nfinally:\n    print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = done.stdout[done.stdout.index("MODULES") :].split()
    slow = {"optuna", "torch", "transformers", "sqlalchemy", "numpy", "yaml", "scipy"}
    assert slow & set(modules) == set()
