"""What a study by a program needs no more is removed, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
from helpers import files_below
from optuna.trial import FrozenTrial, TrialState
from trainer_helpers import MakeTrainer, classification_data

import optuna_merge as om
from optuna_merge.pruners import PromotionPruner
from optuna_merge.trainers import FittedProgram
from optuna_merge.workers import Collector

TRAIN, VALIDATION = classification_data("math", "math_hard")


class PruneAtRung(PromotionPruner):
    """Stops the finetunes of some trials at their first rung, as a pruner of one's own may do."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return trial.number % 3 == 1 if trial.last_step else super().prune(study, trial)


def fitted(folder: Path) -> FittedProgram:
    averaging = om.PosteriorSettings(family="isotropic")
    make = MakeTrainer(VALIDATION)
    return om.from_trainer(make, TRAIN, workdir=folder, posterior=averaging, progress=False)


def folder_of(fit: FittedProgram, trial: FrozenTrial) -> Path:
    return fit.folder({task: trial.user_attrs[f"weight_{task}"] for task in fit.names})


def test_of_a_trainers_runs(tmp_path: Path) -> None:
    fit = fitted(tmp_path)
    study = om.open_study(
        "s",
        om.create_storage(f"sqlite:///{tmp_path}/study.db"),
        fit.goal.directions,
        sampler=om.PreviewSampler(fit.names, seed=0),
        pruner=PruneAtRung(fraction=1.0, warmup=0, seed=0),
    )
    om.prepare_study(study, fit, second_seed=False)
    study.optimize(om.Objective(fit, progress=False), n_trials=14)
    trials = study.get_trials()
    truths = [t for t in trials if t.state == TrialState.COMPLETE]
    stopped = [t for t in trials if t.state == TrialState.PRUNED and t.last_step]
    promoted = [t for t in truths if "baseline" not in t.user_attrs]
    assert stopped and len(promoted) > 1
    before = files_below(tmp_path)

    # One of them checkpoints alone, ended at its first rung; the others are whole.
    removed = Collector(study, fit).remove()
    assert {g.path for g in removed} == {folder_of(fit, t) / "checkpoint-2" for t in stopped}
    assert all(g.what == "checkpoint" and g.size > 1000 for g in removed)

    removed = Collector(study, fit, keep_best=1).remove()
    best = min(truths, key=lambda t: t.value)
    gone = {folder_of(fit, t) / "model" for t in promoted if t.number != best.number}
    assert {g.path for g in removed} == gone and gone
    assert not any(path.exists() for path in gone)
    for trial in truths:
        if trial in (best,) or "baseline" in trial.user_attrs:
            assert (folder_of(fit, trial) / "model" / "model.safetensors").exists()
    names = {name.rpartition("/")[2] for name in before.keys() - files_below(tmp_path).keys()}
    assert "finished.json" not in names and "metrics.jsonl" not in names

    # The study goes on, and finds the numbers of what is gone.
    again = fitted(tmp_path)
    assert again.fingerprint == fit.fingerprint
    weights = {task: promoted[0].user_attrs[f"weight_{task}"] for task in fit.names}
    assert again.finetune(weights, lambda step, metrics: None).reused


def test_a_commands_model_is_its_checkpoint(tmp_path: Path) -> None:
    script = f"{sys.executable} {Path(__file__).with_name('command_for_tests.py')} none"
    fit = om.from_command(
        f"{script} train {{folder}} {{checkpoint}} {{weights}} {{seed}} {{steps}}",
        ["math", "chat"],
        evaluate=f"{script} evaluate {{checkpoint}}",
        steps=30,
        unit="examples",
        checkpoint="model.safetensors",
        workdir=tmp_path,
    )
    weights = {"math": 0.25, "chat": 0.75}
    fit.finetune(weights, lambda step, metrics: None)
    (fit.folder(weights) / "checkpoint-20").mkdir()  # as a Trainer leaves it
    files = fit.finetune_files(weights)
    assert files.model.is_file() and files.folder == fit.folder(weights)
    assert [path.name for path in files.checkpoints] == ["checkpoint-20"]
    other = fit.finetune_files(weights, repeat=1)
    assert other.folder != files.folder and not other.model.exists()
