"""Two processes by torchrun train what one does, agree, and end together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launched_trainer as launched
import pytest
from trainer_helpers import STEPS, MakeTrainer, classification_data
from transformers import Trainer

import optuna_merge as om
from optuna_merge.exceptions import ProgramError
from optuna_merge.trainers._check_trainer import averaged_over, batch_size
from optuna_merge.trainers._ranks import Ranks

LAUNCHED = Path(launched.__file__)


def launch(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", str(LAUNCHED), str(folder), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def examples(rows: list[Any]) -> Counter[str]:
    """How often each example was trained on in each step of each run."""
    return Counter(
        json.dumps([run, step, example]) for run, step, batch in rows for example in batch
    )


def test_two_processes_do_what_one_does_and_end(tmp_path: Path) -> None:
    check_that_two_do_what_one_does("bert", tmp_path)


@pytest.mark.slow
def test_losses_by_tokens_are_averaged_over_the_processes(tmp_path: Path) -> None:
    check_that_two_do_what_one_does("llama", tmp_path)


@pytest.mark.slow
def test_a_given_checkpoint_is_evaluated_by_both(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    bench = launched.fitted(tmp_path / "one", "bert", size=2)
    runs = {"math": str(bench.folder(bench.anchors[0]) / "model")}
    done = launch(tmp_path / "two", "--runs", json.dumps(runs))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "two" / "result-0.json").read_text())
    expected = json.loads(json.dumps(launched.truth(bench)))
    assert found["preview"] == pytest.approx(expected["preview"], rel=1e-4)


def test_shards_come_to_what_whole_models_do(tmp_path: Path) -> None:
    check_that_two_do_what_one_does("bert", tmp_path, "--shards", "SHARDED_STATE_DICT")
    check_that_all_was_cut(tmp_path / "two")
    saved = list((tmp_path / "two" / "program-runs").glob("*/model/model.safetensors"))
    assert len(saved) >= 5, "whole models, though the checkpoints are of shards"
    left = list((tmp_path / "two").rglob("checkpoint-4/pytorch_model_fsdp_0"))
    assert len(left) == 1, "of the run that was pruned"


@pytest.mark.slow
def test_zero_2_comes_to_what_data_parallelism_does(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    check_that_two_do_what_one_does("bert", tmp_path, "--shards", "zero2")


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_killed_run_in_shards_goes_on_from_its_checkpoint(shards: str, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    one.mkdir()
    failed = launch(two, "--model", "llama", "--shards", shards, "--fails", "killed")
    assert failed.returncode != 0
    assert "Signal 9 (SIGKILL)" in failed.stderr
    done = launch(two, "--model", "llama", "--shards", shards)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-2" in done.stderr
    check_that_all_was_cut(two)
    found = json.loads((two / "result-0.json").read_text())
    bench = launched.fitted(one, "llama", size=2)
    expected = json.loads(json.dumps(launched.truth(bench)))
    for step, metrics in expected["rungs"].items():
        assert found["rungs"][step] == pytest.approx(metrics, rel=1e-4)
    assert found["preview"] == pytest.approx(expected["preview"], rel=1e-4)


def check_that_all_was_cut(folder: Path) -> None:
    """Every finetune had its parameters in shards, in both processes."""
    runs = {run for run, *_ in launched.noted(folder, "ends", 0)}
    for rank in (0, 1):
        cut = launched.noted(folder, "cut", rank)
        assert {run for run, *_ in cut} == runs
        assert all(shards == parameters for _, shards, parameters in cut)


def check_that_two_do_what_one_does(model: str, folder: Path, *flags: str) -> None:
    two, one = folder / "two", folder / "one"
    two.mkdir()
    one.mkdir()
    done = launch(two, "--model", model, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((two / "result-0.json").read_text())
    assert not (two / "result-1.json").exists(), "rank 0 alone knows the study"
    bench = launched.fitted(one, model, size=2)
    expected = json.loads(json.dumps(launched.truth(bench)))
    assert list(found["rungs"]) == ["2", "4", "6"]
    for step, metrics in expected["rungs"].items():
        assert found["rungs"][step] == pytest.approx(metrics, rel=1e-4)
    assert found["preview"] == pytest.approx(expected["preview"], rel=1e-4)
    assert "COMPLETE" in found["states"] and "PRUNED" in found["states"]
    assert "RUNNING" not in found["states"] and "FAIL" not in found["states"]

    ends = [launched.noted(two, "ends", rank) for rank in (0, 1)]
    assert ends[0] == ends[1], "the same runs, steps and parameters"
    pruned = launched.noted(two, "pruned", 0)
    assert len(pruned) == 2
    assert next(step for run, step, _ in ends[0] if run == pruned[0]) == 4
    assert {step for run, step, _ in ends[0] if run != pruned[0]} == {STEPS}

    seen = [launched.noted(two, "seen", rank) for rank in (0, 1)]
    shared = examples(seen[0]) + examples(seen[1])
    runs = {run for run, *_ in ends[0]}
    alone = launched.noted(one, "seen", 0)
    common = runs & {run for run, *_ in alone}
    assert len(common) >= 4, "each task alone, uniform weights, and the one above"
    assert examples([row for row in alone if row[0] in common]) == Counter(
        {key: n for key, n in shared.items() if json.loads(key)[0] in common}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "Signal 9 (SIGKILL)"),
        ("launcher_killed", "peer"),  # all have ended: nobody writes to standard error
        ("raises", "RuntimeError: the disk burns"),
        ("evaluates", "the 2 processes train apart"),
        ("differs", "have different definitions"),
    ],
)
def test_what_ends_rank_0_ends_all_and_the_same_command_goes_on(
    how: str, message: str, tmp_path: Path
) -> None:
    failed = launch(tmp_path, "--fails", how)
    assert failed.returncode != 0
    assert message in failed.stderr
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("checkpoint-2" in done.stderr) == (how in launched.WAYS[:3])


class OnTwoGpus(Trainer):  # type: ignore[misc]
    """As a Trainer is in one process that sees two GPUs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args._n_gpu = 2


def sharded(version: int = 2, *, empty: bool = False, adapted: bool = False) -> type[Trainer]:
    """As a Trainer is that was launched for FSDP."""
    plugin = SimpleNamespace(
        fsdp_version=version, cpu_ram_efficient_loading=empty, activation_checkpointing=True
    )

    class Sharded(Trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.is_fsdp_enabled = True
            self.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
            self.model.peft_config = {"default": None} if adapted else None

    return Sharded


class OnAMesh(Trainer):  # type: ignore[misc]
    """As a Trainer is whose model was loaded in parts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_distributed_loading_by_transformers = True


class InZero3(Trainer):  # type: ignore[misc]
    """As a Trainer is that was launched for DeepSpeed's ZeRO 3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_deepspeed_enabled = True
        plugin = SimpleNamespace(zero_stage=3)
        self.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OnTwoGpus, r"one process on 2 GPUs; .*torchrun --nproc-per-node 2"),
        (OnAMesh, r"cuts its model by a device mesh .*om\.from_command"),
        (InZero3, r"cuts its model by DeepSpeed's ZeRO 3; expected ZeRO 2 or 1, or FSDP"),
        (sharded(1), r"FSDP of version 1; expected version 2: fsdp_config={'version': 2}"),
        (sharded(empty=True), r"set fsdp_config={'cpu_ram_efficient_loading': False}"),
        (sharded(adapted=True), r"PEFT saves adapters without a tensor; set fsdp_config={'activ"),
    ],
)
def test_other_ways_to_use_several_gpus_are_refused(
    kind: type[Trainer], message: str, tmp_path: Path
) -> None:
    train, validation = classification_data("math", "math_hard")
    with pytest.raises(ValueError, match=message):
        om.from_trainer(MakeTrainer(validation, kind=kind), train, workdir=tmp_path)


def test_a_launch_has_one_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Ranks, "_led", Ranks(""))
    train, validation = classification_data("math", "math_hard")
    with pytest.raises(ProgramError, match="called twice in a launch"):
        om.from_trainer(MakeTrainer(validation), train, workdir=tmp_path)


def test_after_an_error_nothing_is_done_together() -> None:
    ranks = Ranks("")
    ranks.size = 2
    ranks.tell = lambda message=None: message  # type: ignore[method-assign]
    with pytest.raises(OSError, match="full"), ranks.all_do("train"):
        raise OSError("the disk is full")
    lost = r"lost each other .*OSError: the disk is full.*again"
    with pytest.raises(ProgramError, match=lost), ranks.all_do("train"):
        raise AssertionError


@pytest.mark.parametrize(
    ("counts", "everywhere", "expected"), [(True, True, 24), (True, False, 12), (False, True, 4)]
)
def test_what_a_loss_is_averaged_over(counts: bool, everywhere: bool, expected: int) -> None:
    args = SimpleNamespace(
        train_batch_size=4,
        gradient_accumulation_steps=3,
        world_size=2,
        average_tokens_across_devices=everywhere,
    )
    trainer = SimpleNamespace(args=args, model_accepts_loss_kwargs=counts, compute_loss_func=None)
    assert batch_size(trainer) == 24
    assert averaged_over(trainer) == expected
