"""What is removed from a working folder, and above all what is not."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from helpers import files_below, raise_at, toy_definition
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from processes import PythonProcess
from typer.testing import CliRunner

import optuna_merge as om
from optuna_merge.cli import app
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.fitting import DefinedFinetunes, FinetuneFiles, FittedStudy
from optuna_merge.pruners import PromotionPruner
from optuna_merge.storages import create_storage
from optuna_merge.trials import fail_and_requeue, read_study
from optuna_merge.workers import Collector

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = """
import sys
sys.path.insert(0, {tests!r})
from helpers import toy_definition as definition
"""
MAIN = "from optuna_merge.cli import main; main()"


class PruneAtRung(PromotionPruner):
    """Stops the finetunes of some trials at their first rung, as a pruner of one's own may do."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 3 == 1 if trial.last_step else super().prune(study, trial)


def studied(folder: Path, n_trials: int, **changes: Any) -> tuple[FittedStudy, optuna.Study]:
    definition = toy_definition(**changes)
    fitted = om.fit(definition, folder, progress=False)
    study = om.open_study(
        "s",
        create_storage(f"sqlite:///{folder}/study.db"),
        definition.directions,
        sampler=om.PreviewSampler(definition.names, seed=0),
        pruner=PruneAtRung(fraction=1.0, warmup=0, seed=0),
    )
    om.prepare_study(study, fitted, second_seed=False)
    optimize(fitted, study, folder, n_trials)
    return fitted, study


def optimize(fitted: FittedStudy, study: optuna.Study, folder: Path, n_trials: int) -> None:
    om.run_trials(study, om.Objective(fitted, progress=False), workdir=folder, n_trials=n_trials)


def finetunes(folder: Path) -> set[str]:
    return {name for name in files_below(folder) if name.startswith("finetunes")}


def file_of(fitted: FittedStudy, trial: optuna.trial.FrozenTrial) -> Path:
    weights = {name: trial.user_attrs[f"weight_{name}"] for name in fitted.definition.names}
    return fitted.store.path(weights, fitted.definition.finetuning)


def test_what_goes_and_what_stays(tmp_path: Path) -> None:
    fitted, study = studied(tmp_path, 21)
    report = om.make_report(study, fitted)
    trials = study.get_trials()
    stopped = [t for t in trials if t.state == TrialState.PRUNED and t.last_step]
    truths = [t for t in trials if t.state == TrialState.COMPLETE]
    assert stopped and len(truths) > 5
    before = files_below(tmp_path)

    collector = Collector(study, DefinedFinetunes(fitted.definition, tmp_path))
    checkpoints = {file_of(fitted, t).with_name("checkpoint.safetensors") for t in stopped}
    assert {garbage.path for garbage in collector.find()} == checkpoints
    assert files_below(tmp_path) == before, "find only looks"
    removed = collector.remove()
    assert {garbage.path for garbage in removed} == checkpoints
    assert {garbage.what for garbage in removed} == {"checkpoint"}
    assert all(before[str(g.path.relative_to(tmp_path))] and g.size > 0 for g in removed)

    best = sorted((t for t in truths), key=lambda t: -t.value)[:2]
    kept = {file_of(fitted, t) for t in best}
    kept |= {file_of(fitted, t) for t in truths if "baseline" in t.user_attrs}
    Collector(study, DefinedFinetunes(fitted.definition, tmp_path), keep_best=2).remove()
    models = set((tmp_path / "finetunes").glob("*/model.safetensors"))
    assert models == kept
    untouched = {name: time for name, time in before.items() if "finetunes" not in name}
    assert untouched.items() <= files_below(tmp_path).items()

    # Nothing is missed: the fit is found, the report is the same, and the study goes on.
    again = om.fit(toy_definition(), tmp_path, progress=False)
    assert again.fingerprint == fitted.fingerprint
    assert all(run.reused for run in again.runs.values())
    assert om.make_report(study, again) == report
    optimize(again, study, tmp_path, 3)


class Stubs:
    """Finetunes of which nothing but the models' files is there."""

    names = ("red", "blue")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.parts: dict[str, Any] = {}

    def finetune_files(self, weights: Mapping[str, float], *, repeat: int = 0) -> FinetuneFiles:
        folder = self._folder / f"{weights['red']:.2f}-{repeat}"
        return FinetuneFiles(folder, folder / "model", ())


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_of_several_seeds_the_first_model_of_the_best_mean_stays(
    direction: str, sign: int, tmp_path: Path
) -> None:
    study = optuna.create_study(direction=direction)
    study.set_user_attr("optuna_merge_definition", "{}")
    study.set_user_attr("tasks", ["red", "blue"])
    finetunes = Stubs(tmp_path)
    for red, values in ((0.7, (0.70, 0.62)), (0.6, (0.69, 0.68)), (0.3, (0.5,))):
        for repeat, value in enumerate(values):
            study.add_trial(
                create_trial(
                    value=sign * value,
                    params={"w_red": red, "w_blue": 1 - red},
                    distributions=dict.fromkeys(("w_red", "w_blue"), FloatDistribution(0, 1)),
                    user_attrs={"repeat": repeat} if repeat else {},
                )
            )
            files = finetunes.finetune_files({"red": red}, repeat=repeat)
            files.folder.mkdir()
            files.model.write_text("a model")
    best = read_study(study).best
    assert best is not None and best.trial == 2
    removed = Collector(study, finetunes, keep_best=1).remove()
    kept = {path.parent.name for path in tmp_path.glob("*/model")}
    assert (len(removed), kept) == (4, {"0.60-0"})


def test_what_is_wanted_or_held_stays(tmp_path: Path) -> None:
    fitted, study = studied(tmp_path, 13)
    collector = Collector(study, DefinedFinetunes(fitted.definition, tmp_path), keep_best=1)
    garbage = collector.find()
    assert len(garbage) > 2
    held, wanted, failed, *others = sorted({g.path.parent for g in garbage})
    by_folder = {g.path.parent: study.trials[g.trials[0]] for g in garbage}
    # One is asked for again, one is running again (its worker died: a clone waits).
    study.enqueue_trial(by_folder[wanted].params)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=by_folder[failed].params,
            distributions=by_folder[failed].distributions,
        )
    )
    assert fail_and_requeue(study, len(study.trials) - 1)
    before = files_below(tmp_path)
    with FileLock(held / "lock"):
        removed = {g.path.parent for g in collector.remove()}
    assert removed == set(others)
    for folder in (held, wanted, failed):
        there = {n for n in before if folder.name in n}
        assert there and there <= files_below(tmp_path).keys()
    assert {g.path.parent for g in collector.remove()} == {held}


def test_the_checkpoint_of_a_finetune_that_failed_stays(tmp_path: Path) -> None:
    """Though its preview, a trial of the same weights, has ended."""
    fitted, study = studied(tmp_path, 3)
    objective = om.Objective(fitted, progress=False)

    def lost(trial: optuna.Trial) -> float | tuple[float, ...]:
        if "promoted_from" not in trial.user_attrs:
            return objective(trial)
        with pytest.raises(KeyboardInterrupt):
            weights = {name: trial.user_attrs[f"weight_{name}"] for name in fitted.names}
            fitted.finetune(weights, raise_at(3))
        return math.nan

    study.optimize(lost, n_trials=2)
    preview, copy = study.trials[3:]
    assert (preview.state, copy.state) == (TrialState.PRUNED, TrialState.FAIL)
    checkpoint = file_of(fitted, copy).with_name("checkpoint.safetensors")
    assert checkpoint.exists()
    Collector(study, DefinedFinetunes(fitted.definition, tmp_path)).remove()
    assert checkpoint.exists()


def test_a_front_is_kept_whole(tmp_path: Path) -> None:
    fitted, study = studied(tmp_path, 8, score="pareto")
    Collector(study, DefinedFinetunes(fitted.definition, tmp_path), keep_best=1).remove()
    assert all(file_of(fitted, trial).exists() for trial in study.best_trials)


def test_another_definition_is_refused(tmp_path: Path) -> None:
    fitted, study = studied(tmp_path, 1)
    with pytest.raises(DefinitionMismatchError):
        Collector(study, DefinedFinetunes(toy_definition(score="worst"), tmp_path))
    with pytest.raises(ValueError, match="keep_best is 0"):
        Collector(study, DefinedFinetunes(fitted.definition, tmp_path), keep_best=0)
    fresh = optuna.create_study()
    with pytest.raises(ValueError, match="has no definition yet"):
        Collector(fresh, DefinedFinetunes(fitted.definition, tmp_path))


def test_while_another_process_runs(tmp_path: Path) -> None:
    """Collecting all the time does no harm to a study that runs, and bounds what it keeps."""
    path = tmp_path / "definition.py"
    path.write_text(DEFINITION.format(tests=str(ROOT / "tests")))
    storage, work = f"sqlite:///{tmp_path}/study.db", tmp_path / "work"
    flags = ["--storage", storage, "--workdir", str(work)]
    more = ["--n-trials", "16", "--fraction", "1", "--seed", "0", "--keep-best", "1"]
    more += ["--no-second-seed", "--keep-going"]
    worker = PythonProcess("-c", MAIN, "optimize", path, *flags, *more)
    definition = toy_definition()
    looks = 0
    try:
        while worker.poll() is None:
            try:
                study = optuna.load_study(
                    study_name="optuna_merge", storage=create_storage(storage)
                )
                collector = Collector(study, DefinedFinetunes(definition, work), keep_best=1)
            except (KeyError, ValueError):  # not begun yet
                continue
            collector.remove()
            looks += 1
            time.sleep(0.2)
    finally:
        output = worker.communicate(timeout=60)
    assert worker.returncode == 0, output
    assert looks > 1
    truths = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(truths) > 5
    assert TrialState.FAIL not in {trial.state for trial in study.get_trials()}
    models = list((work / "finetunes").glob("*/model.safetensors"))
    assert len(models) <= 4, "three baselines and the best"
    fitted = om.fit(definition, work, progress=False)
    assert all(run.reused for run in fitted.runs.values())
    assert file_of(fitted, study.best_trial).exists()

    runner = CliRunner()
    left = finetunes(work)
    result = runner.invoke(app, ["gc", str(path), *flags, "--keep-best", "1", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "0 files, 0 bytes could be removed" in result.output
    assert finetunes(work) == left
