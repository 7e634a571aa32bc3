"""Which model of a study is exported, and the folder that appears all at once or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError

from optuna_merge._base.files import whole_folder, write_json
from optuna_merge._base.turns import models_turn
from optuna_merge.exporting._card import Export, ExportedModel, Metrics, model_card
from optuna_merge.exporting._formats import PEFT, TRANSFORMERS, save_part, take_apart
from optuna_merge.exporting._source import find_source
from optuna_merge.search import check_prepared
from optuna_merge.tasks import Evaluation
from optuna_merge.trials import (
    REPEAT,
    WEIGHT,
    canonical_weights,
    of_task,
    read_study,
    weight_tasks,
)

if TYPE_CHECKING:
    from optuna_merge.fitting import FittedStudy

DESCRIPTION = "optuna_merge.json"
"""The file that says what an export is; by it, exports are told from other folders."""


@models_turn()
def export_model(
    fitted: FittedStudy,
    folder: str | os.PathLike[str],
    *,
    study: optuna.Study | None = None,
    trial: int | None = None,
    weights: Mapping[str, float] | None = None,
    processor: Any = None,
    overwrite: bool = False,
) -> Export:
    """Write one model of a study into a folder that loads without this package.

    By default this is the finetune of the study's best trial; with `trial` it is that trial's
    finetune, with `weights` the merge at these weights. The format depends on the model:
    transformers (`from_pretrained`), a peft adapter with its head, timm
    (`timm.create_model("local-dir:...")`), or for any other module the safetensors of the body's
    and the heads' `state_dict`. If tasks have heads of their own, there is a folder for each task;
    if they share a head, there is one model. A tokenizer lies beside each model. `README.md` is a
    model card, and `optuna_merge.json` holds the same for programs.

    Args:
        fitted: The fitted study.
        folder: The folder to create. It appears complete, or not at all.
        study: The study, for the best trial or `trial`.
        trial: Number of a trial that was finetuned to its end.
        weights: Task weight by name; tasks that are left out have none.
        processor: A tokenizer or image processor to put beside the models; default: that of the
            pretrained body, where it has one.
        overwrite: Whether to replace the folder, if it is an earlier export.

    Raises:
        DefinitionMismatchError: the study is not of this fit.
        FileExistsError: something is at `folder`, and `overwrite` is not given or it is no export.
        ValueError: neither a study nor weights, or both; unknown tasks; a trial that wasn't
            finetuned, or whose finetune isn't in this working folder.
        OSError: the folder can't be written.
    """
    folder = Path(folder)
    check_free(folder, overwrite=overwrite)
    if (study is None) == (weights is None):
        raise ValueError("give either a study, whose model is to be exported, or weights=")
    if weights is not None:
        chosen = _merge(fitted, weights)
    else:
        assert study is not None
        check_prepared(study, fitted)
        found = _best(study) if trial is None else _trial(study, trial)
        chosen = _finetune(fitted, study, found)
    chosen.load()
    served = [task for task in fitted.tasks if task.name not in chosen.without]
    source = find_source(fitted.model)
    models = []
    with _new_folder(folder) as root:
        for part in take_apart(fitted.model, served):
            fitted.model.prepare(part.tasks[0])
            written, place = save_part(part, fitted.model, root)
            for beside in source.processors() if processor is None else (processor,):
                beside.save_pretrained(place)
            models.append(
                ExportedModel(
                    folder=str(place.relative_to(root)),
                    format=written,
                    loader=part.loader if written in (TRANSFORMERS, PEFT) else None,
                    head=part.head,
                    outputs=part.tasks[0].num_outputs,
                    tasks=tuple(task.name for task in part.tasks),
                    label_names=part.label_names,
                )
            )
        export = Export(
            folder=folder,
            kind=chosen.kind,
            trial=chosen.trial,
            study=None if study is None else study.study_name,
            weights=chosen.weights,
            metrics=chosen.metrics,
            costs=fitted.costs | chosen.costs,
            models=tuple(models),
            without=chosen.without,
            fingerprint=fitted.fingerprint,
        )
        card = model_card(export, fitted.definition, source)
        (root / "README.md").write_text(card, encoding="utf-8")
        write_json(root / DESCRIPTION, export.as_json())
    return export


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise `FileExistsError` unless an export may be written there."""
    if not folder.exists() and not folder.is_symlink():
        return
    is_export = (folder / DESCRIPTION).is_file()
    if folder.is_dir() and (not any(folder.iterdir()) or (overwrite and is_export)):
        return
    what = "is an earlier export" if is_export else "is there already, and no export"
    advice = "replace it with --force (overwrite=True)" if is_export else "take another folder"
    raise FileExistsError(f"{folder} {what}; {advice}")


@dataclass(frozen=True)
class _Choice:
    kind: str
    trial: int | None
    weights: dict[str, float]
    metrics: Metrics
    costs: dict[str, float]
    without: tuple[str, ...]
    load: Callable[[], None]


def _merge(fitted: FittedStudy, weights: Mapping[str, float]) -> _Choice:
    names = fitted.definition.names
    if unknown := [name for name in weights if name not in names]:
        raise ValueError(
            f"weights of {unknown[0]!r}, but the study's tasks are {', '.join(names)}"
        )
    numbers = canonical_weights([weights.get(name, 0.0) for name in names], names)
    chosen = dict(zip(names, numbers))
    preview = fitted.previewer(chosen)
    metrics = {n: {"validation": _values(e)} for n, e in preview.evaluations.items()}
    return _Choice("merge", None, chosen, metrics, {}, (), lambda: fitted.previewer.load(chosen))


def _finetune(fitted: FittedStudy, study: optuna.Study, trial: FrozenTrial) -> _Choice:
    definition = fitted.definition
    weights = {name: trial.user_attrs[of_task(WEIGHT, name)] for name in definition.names}
    repeat = int(trial.user_attrs.get(REPEAT, 0))
    run = fitted.store.find(weights, definition.finetuning.repeated(repeat))
    if run is None:
        raise ValueError(
            f"the finetune of trial {trial.number} is not in this working folder; give the one "
            f"that it was made in, or export the merge at its weights: "
            f"{','.join(f'{name}={weight:.4g}' for name, weight in weights.items())}"
        )
    metrics = {name: {"validation": _values(e)} for name, e in run.evaluations.items()}
    tested = fitted.store.test_path(run)  # the report's
    if tested.exists():
        for name, value in json.loads(tested.read_text()).items():
            metrics[name]["test"] = {next(iter(metrics[name]["validation"])): value}
    trained = set(run.parameters())
    without = tuple(
        name for name in definition.names if not trained.issuperset(fitted.model.own_names(name))
    )

    def load() -> None:
        fitted.model.reset()
        fitted.model.load(run.parameters(), source=str(run.path))

    costs = {"finetune_steps": run.steps, "finetune_seconds": run.seconds}
    for name in without:
        del metrics[name]
    return _Choice("finetune", trial.number, weights, metrics, costs, without, load)


def _values(evaluation: Evaluation) -> dict[str, float | None]:
    found = {name: measured.value for name, measured in evaluation.metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _best(study: optuna.Study) -> FrozenTrial:
    if len(study.directions) > 1:
        front = ", ".join(str(t.number) for t in study.best_trials) or "none yet"
        raise ValueError(
            f"a Pareto study has no single best trial; choose one of its front with --trial "
            f"(trial=): {front}"
        )
    best = read_study(study).best if weight_tasks(study.get_trials(deepcopy=False)) else None
    if best is None:
        raise ValueError(
            f"study {study.study_name!r} has no best trial: none was finetuned to its end, or "
            f"none satisfies the constraints; choose one with --trial (trial=), or a merge with "
            f"--weights (weights=)"
        )
    return _trial(study, best.trial)


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise ValueError(f"no trial {number}: the study's are 0 to {len(trials) - 1}")
    if trials[number].state != TrialState.COMPLETE:
        done = [str(t.number) for t in trials if t.state == TrialState.COMPLETE]
        raise ValueError(
            f"trial {number} was not finetuned to its end (it is {trials[number].state.name}); "
            f"those that were: {', '.join(done) or 'none'}. The merge at its weights, without "
            f"training, is exported with --weights (weights=)"
        )
    return trials[number]


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    try:
        with whole_folder(folder) as root:
            yield root
    except SafetensorError as error:
        raise OSError(0, f"can't write {folder}: {error}; is the disk full?") from error
