"""What `test_ranks.py` launches in two processes: a study of a Trainer, or a finetune of it.

torchrun --nproc-per-node 2 launched_trainer.py FOLDER [--model llama] [--fails WAY] [--runs JSON]
    [--shards FULL_STATE_DICT|SHARDED_STATE_DICT|zero2]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from trainer_helpers import MakeTrainer, bert, classification_data, llama, pad, texts
from transformers import Trainer, TrainerCallback

import optuna_merge as om
from optuna_merge._base.tensors import content_hash
from optuna_merge.trainers import FittedProgram

WEIGHTS = {"math": 0.3, "math_hard": 0.7}
PRUNED = {"math": 0.8, "math_hard": 0.2}
WAYS = ("killed", "launcher_killed", "raises", "evaluates", "differs")
"""How a launch fails: rank 0 is killed, or with it what launched it; it raises an error; both have
evaluated before they train; the two have different data."""
RANK = int(os.environ.get("RANK", "0"))


def note(folder: Path, what: str, row: Any) -> None:
    """Append to the file of this process."""
    with (folder / f"{what}-{RANK}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def noted(folder: Path, what: str, rank: int) -> list[Any]:
    """What a process has noted."""
    path = folder / f"{what}-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


class Watched(Trainer):  # type: ignore[misc]
    """Notes the examples that this process trains on."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        run = Path(self.args.output_dir)
        row = [run.name, self.state.global_step, inputs["input_ids"].tolist()]
        note(run.parents[1], "seen", row)
        return super().training_step(model, inputs, *args, **kwargs)


class Sharded(Watched):
    """Trains in shards on CPUs, too, where accelerate leaves a Trainer's FSDP out."""

    __qualname__ = Watched.__qualname__  # it is the same study

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and not self.is_fsdp_enabled:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True


class Ends(TrainerCallback):  # type: ignore[misc]
    """Notes with which parameters, and after how many steps, a training has ended."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = Path(args.output_dir)
        parameters = dict(kwargs["model"].named_parameters())
        cut = [name for name, p in parameters.items() if isinstance(p, DTensor)]
        if cut:
            note(run.parents[1], "cut", [run.name, len(cut), len(parameters)])
            parameters = {name: p.full_tensor() for name, p in parameters.items()}
        found = content_hash(parameters, {})
        note(run.parents[1], "ends", [run.name, state.global_step, found])


class Fails(TrainerCallback):  # type: ignore[misc]
    """Kills this process, or raises an error, after step 3."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            if self.how == "launcher_killed":  # what it launched is left alone
                os.kill(os.getppid(), signal.SIGKILL)
            if self.how != "raises":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the disk burns")


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def fitted(
    folder: Path,
    model: str,
    *,
    size: int,
    fails: str | None = None,
    runs: Mapping[str, str] | None = None,
    shards: str | None = None,
) -> FittedProgram:
    """The same study, whether `size` micro-batches a step are in one process or in two."""
    if model == "bert":
        train, validation = classification_data("math", "math_hard")
        make, more = bert, {}
    else:
        train = validation = {"math": texts(2, 1), "math_hard": texts(8, 2)}
        make, more = llama, {"data_collator": pad}
    cut: dict[str, Any] = {}
    if shards == "zero2":
        sizes = ("train_batch_size", "train_micro_batch_size_per_gpu")
        auto = dict.fromkeys((*sizes, "gradient_accumulation_steps"), "auto")
        cut = {"deepspeed": {"zero_optimization": {"stage": 2}, **auto}}
    elif shards is not None:
        layer = {"bert": "BertLayer", "llama": "LlamaDecoderLayer"}[model]
        shape = {"state_dict_type": shards, "transformer_layer_cls_to_wrap": [layer]}
        cut = {"fsdp": True, "fsdp_config": shape}
    if fails == "differs":
        train = train | {"math": train["math"].select(range(20 + RANK))}
    callbacks: list[Any] = [Ends(), *([Fails(fails)] if fails in WAYS[:3] else [])]
    make_trainer = MakeTrainer(
        validation,
        lambda: without_dropout(make()),
        Sharded if shards else Watched,
        more | {"callbacks": callbacks},
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2 if model == "llama" else 10,
        gradient_accumulation_steps=size,
        **cut,
    )

    def make_and_evaluate(folder: str) -> Trainer:
        trainer = make_trainer(folder)
        trainer.evaluate(validation["math"])
        return trainer

    return om.from_trainer(
        make_and_evaluate if fails == "evaluates" else make_trainer,
        train,
        workdir=folder,
        posterior=om.PosteriorSettings(examples=9, damping=1e-3),
        runs=runs,
        progress=False,
    )


def prune(step: int, metrics: Mapping[str, float]) -> None:
    if step == 4:
        raise optuna.TrialPruned


def truth(bench: FittedProgram) -> dict[str, Any]:
    """Numbers of a finetune after each rung, and of a preview."""
    rungs: dict[int, Mapping[str, float]] = {}
    bench.finetune(WEIGHTS, rungs.__setitem__)
    return {"rungs": rungs, "preview": bench.preview(WEIGHTS).values}


def search(folder: Path, bench: FittedProgram) -> list[str]:
    """States of the trials of a short study, after a run that is pruned."""
    for _ in range(2):  # the second time nothing is trained
        try:
            bench.finetune(PRUNED, prune)
        except optuna.TrialPruned:
            note(folder, "pruned", bench.folder(PRUNED).name)
    study = om.open_search(
        bench, "two", f"sqlite:///{folder}/study.db", fraction=0.5, warmup=2, seed=0
    )
    om.run_trials(study, om.Objective(bench, progress=False), workdir=folder, n_trials=7)
    return [trial.state.name for trial in study.trials]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="bert")
    parser.add_argument("--runs", type=json.loads, default=None)
    parser.add_argument("--fails", choices=WAYS, default=None)
    parser.add_argument("--shards", default=None)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    fails = None if RANK and given.fails in WAYS[:3] else given.fails  # rank 0 fails alone
    bench = fitted(
        given.folder, given.model, size=1, fails=fails, runs=given.runs, shards=given.shards
    )
    result = truth(bench) | {"states": search(given.folder, bench)}
    (given.folder / f"result-{RANK}.json").write_text(json.dumps(result))
