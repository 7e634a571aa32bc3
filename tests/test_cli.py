"""The command line, and that importing the package and asking for help is cheap."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from helpers import save_bert, toy_definition
from language_helpers import TOKENIZER
from typer.testing import CliRunner

from optuna_merge import __version__
from optuna_merge.cli import app, script

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "botorch", "datasets", "timm", "accelerate")

DEFINITION = """
import sys
sys.path.insert(0, {tests!r})
from helpers import toy_definition

def definition():
    return toy_definition({arguments})
"""


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    return written(tmp_path, "")


def written(folder: Path, arguments: str) -> Path:
    path = folder / "definition.py"
    path.write_text(DEFINITION.format(tests=str(ROOT / "tests"), arguments=arguments))
    return path


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def optimize(definition: Path, *more: str) -> tuple[int, str]:
    folder = definition.parent
    storage = () if "--storage" in more else ("--storage", f"sqlite:///{folder}/study.db")
    workdir = () if "--workdir" in more else ("--workdir", str(folder / "work"))
    return invoke("optimize", str(definition), *storage, *workdir, *more)


@pytest.mark.parametrize(
    "code",
    [
        "import optuna_merge",
        "import optuna_merge.samplers, optuna_merge.pruners, optuna_merge.storages",
        "import optuna_merge.cli as cli; sys.argv = ['optuna-merge', '--help']; cli.main()",
        "import optuna_merge.cli as cli; sys.argv = ['x', 'optimize', '--help']; cli.main()",
    ],
)
def test_heavy_packages_are_not_imported(code: str) -> None:
    watched = f"""
import sys, atexit
@atexit.register
def tell():
    print("HEAVY", [name for name in {HEAVY} if name in sys.modules])
{code}
"""
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout


def test_version_and_help() -> None:
    assert invoke("--version") == (0, f"{__version__}\n")
    for command in ("fit", "optimize", "report", "export"):
        code, text = invoke(command, "--help")
        assert code == 0
        assert f"optuna-merge {command} studies/" in text


def test_fit_optimize_report(definition: Path) -> None:
    work = definition.parent / "work"
    code, text = invoke("fit", str(definition), "--workdir", str(work))
    assert code == 0
    assert re.search(r"red: 0\.\d+ alone, 7 steps", text)
    code, text = optimize(definition, "--n-trials", "6", "--seed", "0")
    assert code == 0, text
    assert "Best task weights: red" in text
    report = work / "report-optuna_merge.json"
    assert report.is_file()
    study = optuna.load_study(
        study_name="optuna_merge", storage=f"sqlite:///{definition.parent}/study.db"
    )
    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert any("preview-truth" in key for key in attrs), "the dashboard's plot"
    report.unlink()
    storage = ("--storage", f"sqlite:///{definition.parent}/study.db")
    code, again = invoke("report", str(definition), *storage, "--workdir", str(work))
    assert code == 0
    assert again[again.index("Study ") :] == text[text.index("Study ") :]
    assert report.is_file()
    assert "Best task weights" in report.with_suffix(".html").read_text()


def test_a_script_prints_nothing_but_json_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["optimize.py", "--json", "--n-trials", "4", "--seed", "0"])
    with pytest.raises(SystemExit) as ended:
        script(toy_definition, name="toys", n_trials=50)
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "workdir" / "toys" / "report-toys.json").read_text())
    assert found["study"] == "toys"


def test_the_report_of_a_study_alone_as_a_page_and_as_tables(definition: Path) -> None:
    folder = definition.parent
    assert optimize(definition, "--n-trials", "5")[0] == 0
    storage = ("--storage", f"sqlite:///{folder}/study.db")
    to = ("--html", str(folder / "page.html"), "--csv", str(folder / "tables"))
    code, text = invoke("report", *storage, *to)
    assert code == 0, text
    assert f"As a page: {folder}/page.html" in text
    assert "uniform weights" in (folder / "page.html").read_text()
    assert (folder / "tables" / "weightings.csv").read_text().count("\n") == 1 + 5
    code, text = invoke("report", *storage, *to, "--study-name", "missing")
    assert code == 1
    assert "no study 'missing'" in text


def test_a_pareto_study_with_constraints_and_a_budget(tmp_path: Path) -> None:
    path = written(tmp_path, "score='pareto', constraints=0.5")
    flags = ("--fraction", "1", "--max-steps", "14", "--seed", "0", "--n-trials", "18")
    code, text = optimize(path, *flags)
    assert code == 0, text
    assert "Pareto front of the truths" in text
    assert "2 promoted, 3 baselines" in text
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.load_study(study_name="optuna_merge", storage=storage)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert any("front" in key for key in attrs), "the dashboard's plot"
    code, again = invoke(
        "report", str(path), "--storage", storage, "--workdir", str(tmp_path / "work")
    )
    assert code == 0
    assert again[again.index("Study ") :] == text[text.index("Study ") :]
    code, text = invoke("diagnose", "--storage", storage)
    assert code == 0, text
    assert "red" in text


def test_diagnose_reads_nothing_but_the_study(definition: Path) -> None:
    storage = ("--storage", f"sqlite:///{definition.parent}/study.db")
    code, _ = optimize(definition, "--n-trials", "8", "--fraction", "1", "--seed", "0")
    assert code == 0
    definition.unlink()
    code, text = invoke("diagnose", *storage)
    assert code == 0, text
    assert re.search(r"^blue +\d+ ", text, re.MULTILINE)
    code, text = invoke("diagnose", *storage, "--json")
    assert code == 0, text
    found = json.loads(text[text.index("{") :])
    assert list(found["tasks"]) == ["red", "blue"]
    assert found["score"]["count"] == 1  # uniform weights; the other baselines are corners
    assert found["score"]["verdict"] == "too few truths"
    code, text = invoke("diagnose", *storage, "--study-name", "missing")
    assert code == 1
    assert "no study 'missing' in this storage; there are: optuna_merge" in text


def test_a_study_made_by_optunas_command_line_is_used(definition: Path) -> None:
    storage = f"sqlite:///{definition.parent}/study.db"
    made = subprocess.run(
        [
            str(Path(sys.executable).with_name("optuna")), "create-study", "--study-name", "mine",
            "--storage", storage, "--direction", "maximize",
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    code, text = optimize(definition, "--study-name", "mine", "--n-trials", "4")
    assert code == 0, text
    assert len(optuna.load_study(study_name="mine", storage=storage).trials) >= 4


def test_another_direction_is_refused(definition: Path) -> None:
    storage = f"sqlite:///{definition.parent}/study.db"
    optuna.create_study(study_name="mine", storage=storage, direction="minimize")
    code, text = optimize(definition, "--study-name", "mine")
    assert code == 1
    assert "has direction minimize" in text
    assert "--direction maximize" in text
    assert not (definition.parent / "work" / "finetunes").exists(), "nothing was trained before"


def test_another_definition_is_refused_and_named(definition: Path) -> None:
    assert optimize(definition, "--n-trials", "1")[0] == 0
    changed = written(definition.parent, "finetuning=helpers_settings")
    text = changed.read_text().replace(
        "from helpers import toy_definition",
        "from helpers import toy_definition, toy_settings\nhelpers_settings=toy_settings(steps=5)",
    )
    changed.write_text(text)
    code, text = optimize(changed, "--n-trials", "1")
    assert code == 1
    assert "finetuning.steps (7 → 5)" in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--storage", "nosuch://somewhere/db"), "nosuch"),
        (("--storage", "sqlite:////nosuch/folder/x.db"), "/nosuch/folder"),
        (("--fraction", "1.5"), "fraction"),
        (("--n-trials", "-3"), "n_trials"),
        (("--max-steps", "-3"), "max_steps is -3, expected 0 or more"),
        (("--max-seconds", "-0.5"), "max_seconds"),
        (("--max-promotions", "-1"), "max_promotions"),
    ],
)
def test_bad_flags_end_with_a_message(definition: Path, flags: tuple[str, ...], told: str) -> None:
    code, text = optimize(definition, *flags)
    assert code == 1
    assert "error: " in text
    assert told in text
    assert "Traceback" not in text


def test_an_unreachable_database_shows_no_password(definition: Path) -> None:
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/db"
    code, text = optimize(definition, "--storage", url)
    assert code == 1
    assert "127.0.0.1" in text
    assert "hunter2" not in text


def test_a_workdir_that_is_a_file_is_refused(definition: Path) -> None:
    blocked = definition.parent / "blocked"
    blocked.write_text("")
    code, text = optimize(definition, "--workdir", str(blocked))
    assert code == 1
    assert str(blocked) in text
    assert "--workdir" in text


def test_a_workdir_without_write_access_is_refused(definition: Path) -> None:
    code, text = optimize(definition, "--workdir", "/proc/work")  # not even root may write there
    assert code == 1
    assert "can't write in the working folder /proc/work" in text


def test_a_definition_file_without_definition_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    code, text = invoke("fit", str(path), "--workdir", str(tmp_path / "work"))
    assert code == 1
    assert "no function definition()" in text


def test_previews_can_be_raced(definition: Path) -> None:
    code, text = optimize(definition, "--n-trials", "5", "--race")
    assert code == 0
    assert "Previews 5" in text


def test_races_of_metrics_that_are_no_means_end_with_a_message(tmp_path: Path) -> None:
    definition = written(tmp_path, "tasks=scored_tasks()")
    text = definition.read_text().replace(
        "from helpers import toy_definition",
        "from helpers import toy_definition, toy_task\n"
        "from optuna_merge.tasks import macro_f1\n"
        "def scored_tasks():\n"
        "    return tuple(toy_task(n, metrics=(macro_f1,)) for n in ('red', 'blue'))",
    )
    definition.write_text(text)
    code, text = optimize(definition, "--race")
    assert code == 1
    assert "macro_f1" in text
    assert "leave out --race" in text


@pytest.mark.parametrize("setting", ["constraints=0.9", "score='pareto'"])
def test_races_where_the_score_does_not_decide_are_refused_before_the_fit(
    tmp_path: Path, setting: str
) -> None:
    code, text = optimize(written(tmp_path, setting), "--race")
    assert code == 1
    assert "constraints or of several objectives; leave out --race" in text
    assert not list(tmp_path.rglob("finetunes"))


def test_export(definition: Path) -> None:
    folder = definition.parent
    storage = ("--storage", f"sqlite:///{folder}/study.db")
    where = (*storage, "--workdir", str(folder / "work"), "--out", str(folder / "out"))
    assert optimize(definition, "--n-trials", "4", "--seed", "0")[0] == 0
    code, text = invoke("export", str(definition), *where)
    assert code == 0, text
    assert re.search(r"out: the finetune of trial \d at red 0\.\d+, blue 0\.\d+", text)
    assert "  .: red, for plain" in text
    code, text = invoke("export", str(definition), *where, "--weights", "red=.2,blue=.6")
    assert code == 1
    assert "out is an earlier export; replace it with --force" in text
    flags = ("--weights", "red=.2,blue=.6", "--force", "--json")
    code, text = invoke("export", str(definition), *where, *flags)
    assert code == 0, text
    found = json.loads(text[text.index("{") :])
    assert found["weights"] == pytest.approx({"red": 0.25, "blue": 0.75})
    assert found == json.loads((folder / "out" / "optuna_merge.json").read_text())
    for wrong, told in (
        (("--weights", "red=a"), "can't read 'red=a' in --weights"),
        (("--weights", "green=1"), "weights of 'green', but the study's tasks are red, blue"),
        (("--weights", "red=1", "--trial", "1"), "not both"),
        (("--trial", "77"), "no trial 77: the study's are 0 to"),
        (("--study-name", "other"), "no study 'other'"),
        (("--workdir", str(folder / "elsewhere")), "nothing was fitted in the working folder"),
    ):
        code, text = invoke("export", str(definition), *where, "--force", *wrong)
        assert code == 1, (wrong, text)
        assert told in text
        assert "Traceback" not in text


def test_init_and_a_yaml_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("init")[0] == 0
    code, text = invoke("init")
    assert code == 1
    assert "study.yaml is there already; take another name, or --force" in text
    assert invoke("init", "--force")[0] == 0
    code, text = invoke("init", "study.py")
    assert code == 1
    assert "ends with .yaml or .yml" in text
    code, text = invoke("fit", "study.yaml")
    assert code == 1
    assert "study.yaml:15:10: task 'topic', train data: no file" in text

    save_bert(tmp_path / "bert", layers=2)
    TOKENIZER.save_pretrained(tmp_path / "bert")
    rows = [f"w{i % 6} w{i % 5},{i % 2},{'abc'[i % 3]}" for i in range(60)]
    Path("data.csv").write_text("\n".join(["text,parity,letter", *rows, ""]))
    Path("study.yaml").write_text(
        "model: {kind: text, name: bert}\n"
        "data: {train: data.csv, validation: 0.3}\n"
        "tasks: [{name: parity, label: parity}, {name: letter, label: letter}]\n"
        "finetuning: {steps: 4, batch_size: 8}\n"
        "posterior: {family: isotropic}\n"
    )
    assert invoke("fit", "study.yaml")[0] == 0
    code, text = invoke("optimize", "study.yaml", "--n-trials", "4", "--seed", "0")
    assert code == 0, text
    assert "Best task weights: parity" in text
    assert invoke("report", "study.yaml")[0] == 0
    code, text = invoke("export", "study.yaml", "--out", "best", "--weights", "letter=1")
    assert code == 0, text
    config = json.loads(Path("best/letter/config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
