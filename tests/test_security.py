"""What is loaded is data and never code, names stay in their folders, passwords are not shown."""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import optuna
import pytest
import sqlalchemy
import torch
from helpers import PASSWORD, flip_byte, toy_definition
from safetensors.torch import save_file

import optuna_merge as om
from optuna_merge._base.tensors import load_tensors, save_tensors
from optuna_merge.artifacts import SharedFiles, _shared_files, open_artifact_store
from optuna_merge.commands import guarded
from optuna_merge.commands._flags import SearchFlags
from optuna_merge.commands._search import search
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.merging import merge_files
from optuna_merge.posteriors import load_checkpoint
from optuna_merge.search import open_study

PACKAGE = Path(om.__file__).parent
STUDIES = PACKAGE.parent / "studies"

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE_MODULES = {"dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
UNSAFE_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "yaml.load_all", "os.system", "os.popen", "pandas.read_pickle",
}  # fmt: skip
ANYWHERE = {"0.0.0.0", "::", ""}


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for folder in (PACKAGE, STUDIES):
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                yield path, node


def offences(path: Path, node: ast.AST) -> Iterator[str]:
    where = f"{path}:{getattr(node, 'lineno', 0)}"
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] in UNSAFE_MODULES:
                yield f"{where} imports {name}"
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "yaml"):
            yield f"{where} imports from {node.module}: say {node.module}.<name>"
    if not isinstance(node, ast.Call):
        return
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in RUNS_CODE | UNSAFE_CALLS:
        yield f"{where} calls {called}"
    if called == "torch.load" and given.get("weights_only") != "True":
        yield f"{where} calls torch.load without weights_only=True"
    for word in ("shell", "allow_pickle", "trust_remote_code"):
        if given.get(word, "False") != "False":
            yield f"{where} calls {called}({word}={given[word]})"
    if called.endswith(".extractall") and "filter" not in given:
        yield f"{where} calls {called} without a filter"
    for word in ("host", "address", "server_address"):
        if any(repr(name) in given.get(word, "") for name in ANYWHERE):
            yield f"{where} listens on all interfaces: {word}={given[word]}"


def test_no_code_is_loaded_and_nobody_listens_on_all_interfaces() -> None:
    found = [offence for path, node in sources() for offence in offences(path, node)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import dill", "from pickle import loads", "pickle.load(f)", "eval('1')",
        "torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(f)",
        "subprocess.run('ls', shell=True)", "numpy.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)", "archive.extractall(p)",
        "serve(host='0.0.0.0')", "serve(host='')",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert [offence for node in ast.walk(ast.parse(code)) for offence in offences(Path(), node)]


class Bomb:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_malicious_file_is_refused_and_not_run(name: str, kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weight": torch.ones(2), "bomb": Bomb(mark)}, path)
    for read in (load_tensors, load_checkpoint):
        with pytest.raises(CorruptFileError, match=name):
            read(path)  # type: ignore[operator]
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301 (it would have gone off)
    assert mark.exists()


def test_a_finetune_is_hashed_before_it_is_used(tmp_path: Path) -> None:
    fitted = om.fit(toy_definition(), tmp_path, progress=False)
    run = fitted.runs["red"]
    flip_byte(run.path)
    with pytest.raises(CorruptFileError, match="was altered"):
        run.parameters()
    # A file with a right hash of its own, but of other tensors, is not what the study was made of.
    tensors, metadata = load_tensors(fitted.runs["blue"].path)
    save_tensors({n: tensor + 1 for n, tensor in tensors.items()}, fitted.runs["blue"].path)
    alone = {"red": 0.0, "blue": 1.0}
    assert fitted.store.find(alone, fitted.definition.finetuning) is None
    save_tensors(
        {n: tensor + 1 for n, tensor in tensors.items()}, fitted.runs["blue"].path, metadata
    )
    assert om.fit(toy_definition(), tmp_path, progress=False).fingerprint != fitted.fingerprint


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../b"])
def test_shards_of_a_checkpoint_stay_in_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"weight": torch.ones(2)}, tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match="outside its folder"):
        load_checkpoint(folder)
    with pytest.raises(CorruptFileError, match="outside its folder"):
        merge_files([folder, folder], [0.5, 0.5], tmp_path / "merged")


@pytest.mark.parametrize("artifact", ["../secret", "/etc/passwd"])
def test_artifacts_stay_in_their_store(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shared_files, "_WAITS", ())
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "secret").write_text("secret")
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    study.set_user_attr("file:a", {"artifact": artifact, "sha256": "x"})
    store = open_artifact_store(str(tmp_path / "store"))
    with pytest.raises((ValueError, CorruptFileError)):
        SharedFiles(study, store, tmp_path / "work").pull()
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def spellings(password: str) -> set[str]:
    return {password, quote(password), quote_plus(password), quote(password, safe="")}


def all_text(url: str, folder: Path) -> str:
    """All that a study left: the rows of its database and the files of its working folder."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    )
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    text = []
    with engine.connect() as connection:
        for table in tables.tables.values():
            text += [str(row) for row in connection.execute(table.select())]
    engine.dispose()
    text += [path.read_text(errors="ignore") for path in folder.rglob("*") if path.is_file()]
    return "\n".join(text)


def test_the_password_of_the_storage_is_nowhere(
    postgres_database: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in logs with --debug, output, reports, files or the study; nor is that of a failure."""
    monkeypatch.setenv("SECRET_URL", postgres_database)

    def optimize() -> None:
        flags = SearchFlags(
            study_name="s",
            storage="env:SECRET_URL",
            workdir=tmp_path / "work",
            n_trials=12,
            seed=0,
            artifacts=str(tmp_path / "store"),
        )
        search(toy_definition(), flags)

    with caplog.at_level(logging.DEBUG):
        guarded(True, optimize)
    shown = capfd.readouterr()
    told = caplog.text

    def failing(trial: optuna.Trial) -> float:
        raise RuntimeError(f"can't reach {postgres_database}")

    study = open_study("other", om.create_storage("env:SECRET_URL"), ("maximize",))
    with pytest.raises(RuntimeError):  # the user's own words, but for what is written of them
        om.run_trials(study, failing, workdir=tmp_path / "work", n_trials=1)
    assert study.trials[0].user_attrs["failure"].startswith("RuntimeError: can't reach postgres")
    text = all_text(postgres_database, tmp_path) + told + shown.out + shown.err
    assert "Best task weights" in shown.out
    assert (tmp_path / "work" / "report-s.json").exists()
    assert not [spelling for spelling in spellings(PASSWORD) if spelling in text]


@pytest.mark.parametrize("value", [None, "", "env:OTHER"])
def test_a_storage_from_the_environment(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("URL_OF_STUDY", raising=False)
    if value is not None:
        monkeypatch.setenv("URL_OF_STUDY", value)
    with pytest.raises(ValueError, match="environment variable 'URL_OF_STUDY' holds no URL"):
        om.create_storage("env:URL_OF_STUDY")
    monkeypatch.setenv("URL_OF_STUDY", f"sqlite:///{tmp_path}/study.db")
    om.create_storage("env:URL_OF_STUDY")
    assert (tmp_path / "study.db").exists()
