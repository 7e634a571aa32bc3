"""Finetune with Lightning, or any training code in Python: write a class of a few methods.

    python examples/lightning_program.py

You need lightning. Each rung is one call of `fit`, and a killed finetune continues from the last
rung.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from tiny.lightning_net import TASKS, TRAIN, VALIDATION, Net
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, DataLoader, WeightedRandomSampler

import optuna_merge as om
from optuna_merge import trainers

RUNGS = (20, 40)


class LightningProgram:
    """Samples the tasks' examples by their weights; previews are averages of the task runs."""

    names, steps, unit = TASKS, RUNGS[-1], trainers.WeightUnit("examples")

    def describe(self) -> Mapping[str, Any]:
        return {"program": "Adam, 2e-2, batches of 16", "rungs": RUNGS}

    def describe_task(self, task: str) -> Any:
        return [task, len(TRAIN[task])]

    def train(self, run: trainers.Run, report: Any) -> None:
        rows = [run.converted[task] / len(of) for task, of in TRAIN.items() for _ in of]
        for before, rung in zip((0, *RUNGS), RUNGS):
            path = run.folder / f"{rung}.ckpt"
            if not path.exists():
                seed = Generator().manual_seed(1000 * run.repeat + rung)
                sampler = WeightedRandomSampler(rows, 16 * (rung - before), generator=seed)
                loader = DataLoader(ConcatDataset(TRAIN.values()), 16, sampler=sampler)
                quiet = {"logger": False, "enable_progress_bar": False, "barebones": True}
                trainer = lightning.Trainer(max_steps=rung, **quiet)
                trainer.fit(
                    Net(), loader, ckpt_path=run.folder / f"{before}.ckpt" if before else None
                )
                trainer.save_checkpoint(path)
            report(rung, self.evaluate(self.parameters(run.folder, rung)).metrics)

    def parameters(self, folder: Path, rung: int = RUNGS[-1]) -> Mapping[str, Tensor]:
        return torch.load(folder / f"{rung}.ckpt", weights_only=True)["state_dict"]

    def evaluate(self, parameters: Mapping[str, Tensor], limit: int | None = None) -> Any:
        net, found = Net(), {}
        net.load_state_dict(dict(parameters))
        for task, of in VALIDATION.items():
            found[task] = float((net.net(of.tensors[0]).argmax(1) == of.tensors[1]).float().mean())
        return trainers.Evaluated(found, losses={})

    def previews(self, runs: Any, anchor: Path | None, folder: Path) -> trainers.Previews:
        averages = om.PosteriorSettings(family="isotropic")
        return trainers.make_previews(self, runs, anchor, averages, folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workdir:
        wanted = trainers.Wanted("worst", constraints=(), greater_is_better=True)
        fitted = trainers.fit_program(LightningProgram(), wanted, workdir, progress=False)
        study = om.open_search(fitted, "lightning", fraction=0.5, warmup=4, seed=0)
        study.optimize(om.Objective(fitted, progress=False), n_trials=10)
        print(om.format_report(om.make_report(study, fitted)))
