"""Two data-parallel processes, a GPU each, do what one process does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _two_gpus import WEIGHTS, definition, finetuned

from optuna_merge.fitting import finetune_store

pytestmark = pytest.mark.gpu

LAUNCHED = Path(__file__).with_name("_two_gpus.py")


def test_two_processes_do_what_one_does(two_devices: torch.device, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    workers = []
    for rank in ("0", "1"):  # what torchrun sets
        variables = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        if two_devices.type == "cpu":
            variables |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-W", "ignore", str(LAUNCHED), str(tmp_path / "two")]
        workers.append(
            subprocess.Popen(
                command,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    if two_devices.type == "cuda":
        assert {f"device cuda:{rank}" in outputs[rank] for rank in (0, 1)} == {True}
    one = finetuned(definition(), tmp_path / "one")
    store = finetune_store(definition(), tmp_path / "two")
    found = store.find(WEIGHTS, one.definition.finetuning)
    expected = one.store.find(WEIGHTS, one.definition.finetuning)
    assert found is not None and expected is not None
    for name, tensor in expected.parameters().items():
        torch.testing.assert_close(found.parameters()[name], tensor, rtol=1e-3, atol=1e-5)
