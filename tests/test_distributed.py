"""Two processes that train together do what one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from _launched import IVON, WEIGHTS, all_finetunes
from helpers import same, toy_definition
from optuna.trial import TrialState

import optuna_merge as om
from optuna_merge._tensors import load_tensors
from optuna_merge.storages import create_storage

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


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    done = launch(str(LAUNCHED), str(tmp_path / "two"))
    assert done.returncode == 0, done.stdout
    ranks = [load_tensors(tmp_path / "two" / f"rank-{rank}.safetensors")[0] for rank in (0, 1)]
    assert same(*ranks), "all processes have the same parameters"

    store = all_finetunes(tmp_path / "one")
    compared = 0
    for path in sorted(store.folder.glob("*/model.safetensors")):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        expected, found = load_tensors(path)[0], load_tensors(other)[0]
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
        compared += 1
    assert compared == 5, "two task runs, uniform, interior, IVON"
    assert store.find(WEIGHTS, IVON) is not None
    assert not same(ranks[0], store.find(WEIGHTS, toy_definition().finetuning).parameters())

    study = optuna.load_study(
        study_name="s", storage=create_storage(f"sqlite:///{tmp_path}/two/study.db")
    )
    states = [trial.state for trial in study.get_trials()]
    assert len(states) == 8, "one trial at a time for both processes"
    assert states.count(TrialState.COMPLETE) > 3
    assert TrialState.FAIL not in states


@pytest.mark.slow
def test_the_command_line_is_launched(tmp_path: Path) -> None:
    path = tmp_path / "definition.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(LAUNCHED.parent)!r})\n"
        "from helpers import toy_definition as definition\n"
    )
    main = "from optuna_merge.cli import main; main()"
    flags = ["--storage", f"sqlite:///{tmp_path}/study.db", "--workdir", str(tmp_path / "work")]
    done = launch("-c", main, "optimize", str(path), *flags, "--n-trials", "4")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Best task weights") == 1, "one process reports"
    assert "shared out among 2 processes" in done.stdout


def test_one_process_leads_alone() -> None:
    with om.process_group(toy_definition()) as leads:
        assert leads


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_shards_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with (
        pytest.raises(ValueError, match=r"data parallelism only.*--multi_gpu"),
        om.process_group(toy_definition()),
    ):
        raise AssertionError


def test_settings_come_back_from_their_description() -> None:
    for settings in (
        IVON,
        om.FinetuneSettings(steps=4, rung_steps=(1, 4), max_grad_norm=float("inf")),
    ):
        assert om.FinetuneSettings.of(settings.describe()) == settings
