"""Two processes that train together do what one does."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from _launched import (
    ALONE_FIRST,
    IVON,
    SHARDS_FIRST,
    WEIGHTS,
    all_finetunes,
    begin,
    bert_definition,
    bert_finetunes,
    definition,
    end,
)
from helpers import same, save_bert, toy_definition
from optuna.trial import TrialState

import optuna_merge as om
from optuna_merge._base.tensors import load_tensors
from optuna_merge.finetuning import FinetuneStore
from optuna_merge.fitting import finetune_store
from optuna_merge.storages import create_storage
from optuna_merge.trials import PROMOTED_FROM

LAUNCHED = Path(__file__).with_name("_launched.py")


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    workers = []
    for rank in ("0", "1"):  # what torchrun sets
        variables = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        workers.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", *arguments],
                env=os.environ | variables | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    codes = [worker.returncode for worker in workers]
    return subprocess.CompletedProcess(arguments, max(map(abs, codes)), "\n".join(outputs))


def check_runs(found: Path, expected: FinetuneStore, count: int) -> None:
    """The finished finetunes in the folder are those of one process."""
    files = sorted(expected.folder.glob("*/model.safetensors"))
    for path in files:
        whole = load_tensors(path)[0]
        other = load_tensors(found / path.relative_to(expected.folder.parent))[0]
        assert whole.keys() == other.keys()
        for name, tensor in whole.items():
            if not name.endswith("key.bias"):  # softmax ignores them: their gradients are noise
                torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)
    assert len(files) == count


def test_two_processes_do_what_one_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_bert(tmp_path / "bert", dropout=0.0)
    begin(definition(), tmp_path / "shards", ALONE_FIRST)
    done = launch(str(LAUNCHED), str(tmp_path))
    assert done.returncode == 0, done.stdout
    ranks = [load_tensors(tmp_path / f"rank-{rank}.safetensors")[0] for rank in (0, 1)]
    assert same(*ranks), "all processes have the same parameters"

    store = all_finetunes(definition(), tmp_path / "one")
    for folder in ("copies", "shards"):  # two task runs, uniform twice, interior, IVON
        check_runs(tmp_path / folder, store, 6)
    assert store.find(WEIGHTS, IVON) is not None
    assert not same(ranks[0], store.find(WEIGHTS, toy_definition().finetuning).parameters())
    bert = bert_finetunes(bert_definition(tmp_path), tmp_path / "bert-one")
    check_runs(tmp_path / "bert-shards", bert, 4)

    # Runs that one process has begun and two have ended in shards, and the other way round.
    with caplog.at_level(logging.INFO, logger="optuna_merge"):
        end(definition(), tmp_path / "shards", SHARDS_FIRST)
    assert "going on after step 3" in caplog.text
    assert done.stdout.count("going on after step 3") == 3, "copies, shards, ALONE_FIRST"
    for settings in (ALONE_FIRST, SHARDS_FIRST):
        end(definition(), tmp_path / "alone", settings)
        tensors = [
            finetune_store(definition(), tmp_path / folder).find(WEIGHTS, settings).parameters()
            for folder in ("shards", "alone")
        ]
        torch.testing.assert_close(*tensors, rtol=1e-4, atol=1e-6)

    study = optuna.load_study(
        study_name="s", storage=create_storage(f"sqlite:///{tmp_path}/study.db")
    )
    trials = study.get_trials()
    assert all(trial.state.is_finished() for trial in trials), "nothing promoted is left waiting"
    trials.sort(key=lambda trial: trial.datetime_complete)
    assert len(trials) >= 8, "one trial at a time for both processes"
    # Beyond its number the run has only finetuned what it had promoted.
    assert all(PROMOTED_FROM in trial.user_attrs for trial in trials[8:])
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) > 3
    assert TrialState.FAIL not in states


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}])
def test_the_command_line_is_launched(variables: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "definition.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(LAUNCHED.parent)!r})\n"
        "from helpers import toy_definition as definition\n"
    )
    main = "from optuna_merge.cli import main; main()"
    flags = ["--storage", f"sqlite:///{tmp_path}/study.db", "--workdir", str(tmp_path / "work")]
    done = launch("-c", main, "optimize", str(path), *flags, "--n-trials", "4", **variables)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Best task weights") == 1, "one process reports"
    how = "run in shards on" if variables else "are shared out among"
    assert f"finetunes {how} 2 processes" in done.stdout


def test_one_process_leads_alone() -> None:
    with om.process_group(toy_definition()) as leads:
        assert leads


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_launches_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with (
        pytest.raises(ValueError, match=r"data parallelism or in shards.*--multi_gpu"),
        om.process_group(toy_definition()),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP 1.*--fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing"),
    ],
)
def test_other_shards_are_refused(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=expected), om.process_group(toy_definition()):
        raise AssertionError


def test_settings_come_back_from_their_description() -> None:
    for settings in (
        IVON,
        om.FinetuneSettings(steps=4, rung_steps=(1, 4), max_grad_norm=float("inf")),
    ):
        assert om.FinetuneSettings.of(settings.describe()) == settings
