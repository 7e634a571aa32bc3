"""What of a working folder a study does not need any more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._base.files import remove
from optuna_merge.fitting import FinetuneFiles, Finetunes
from optuna_merge.search import baseline_weights, check_definition
from optuna_merge.trials import (
    BASELINE,
    DEFINITION,
    REPEAT,
    SCORE,
    Repeats,
    known_params,
    read_study,
    trial_weights,
)
from optuna_merge.workers._roles import is_promoted

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Garbage:
    """A file or folder that the study does not need.

    Attributes:
        path: The file or folder.
        folder: Of the finetune that it belongs to.
        size: Its bytes.
        what: "finetune" or "checkpoint".
        trials: Numbers of the trials that it was made for.
    """

    path: Path
    folder: Path
    size: int
    what: str
    trials: tuple[int, ...]


class Collector:
    """Finds and removes the finetunes and checkpoints that a study can't go on from.

    Of trials that have ended these are checkpoints of finetunes that were stopped at a rung, and
    with `keep_best` the models of finetunes that are neither among the best nor baselines. Weights
    that were finetuned with several seeds count with their mean, and keep the first model. Of a
    constrained study the best are those that violate least, then those of the best score; of a
    Pareto study the front is kept whole. What a worker holds the lock of is left alone. A removed
    finetune of a definition is trained again if it is wanted again; of a `FittedProgram` the
    metrics stay, so that it is not trained again, and its model doesn't come back.

        collector = Collector(study, fitted, keep_best=3)  # fitted: from_trainer, from_command
        study.optimize(om.Objective(fitted), callbacks=[lambda *_: collector.remove()])

    Args:
        study: The study; other studies of the same definition with the same folder are not asked.
        finetunes: Those of its definition: a `FittedProgram`, or `DefinedFinetunes`.
        keep_best: How many of the best finetunes keep their models; None: all.

    Raises:
        ValueError: `keep_best` is below 1, or the study was never prepared.
        DefinitionMismatchError: the study has another definition.
    """

    def __init__(
        self, study: optuna.Study, finetunes: Finetunes, *, keep_best: int | None = None
    ) -> None:
        check_keep_best(keep_best)
        check_definition(study, finetunes.parts)
        if DEFINITION not in study.user_attrs:
            raise ValueError(
                f"study {study.study_name!r} has no definition yet, so nothing is known of its "
                f"files; run optuna-merge optimize first"
            )
        self._study = study
        self._finetunes = finetunes
        self._keep_best = keep_best
        # A task alone is also its own run.
        baselines = baseline_weights(finetunes.names).values()
        self._protected = {finetunes.finetune_files(weights).folder for weights in baselines}

    def find(self) -> list[Garbage]:
        """What could be removed now, in the order of the trials."""
        made: dict[Path, list[FrozenTrial]] = {}
        there: dict[Path, FinetuneFiles] = {}
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            weights = trial_weights(known_params(trial), self._finetunes.names)
            if weights is not None:
                repeat = int(trial.user_attrs.get(REPEAT, 0))
                files = self._finetunes.finetune_files(weights, repeat=repeat)
                there[files.folder] = files
                made.setdefault(files.folder, []).append(trial)
        best = self._best(trials)
        return [
            Garbage(path, folder, _size(path), what, tuple(trial.number for trial in makers))
            for folder, makers in made.items()
            if folder not in self._protected and folder.is_dir()
            for path, what in _superfluous(there[folder], makers, best)
            if path.exists()
        ]

    def remove(self) -> list[Garbage]:
        """Remove it; return what was removed."""
        removed = []
        states = self._states()
        found = self.find()
        for folder in sorted({garbage.folder for garbage in found}):
            try:
                with FileLock(folder / "lock", timeout=0):
                    if (now := self._states()) != states:  # a trial may have begun here
                        states, found = now, self.find()
                    for garbage in found:
                        if garbage.folder == folder:
                            remove(garbage.path)
                            removed.append(garbage)
            except Timeout:
                _logger.info("left alone, a worker holds it: %s", folder)
        if removed:
            size = sum(garbage.size for garbage in removed)
            _logger.info("%d files that the study needs no more: %d bytes", len(removed), size)
        return removed

    def _states(self) -> list[TrialState]:
        return [trial.state for trial in self._study.get_trials(deepcopy=False)]

    def _best(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """Numbers of the trials whose models are kept."""
        truths = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if self._keep_best is None:
            return {trial.number for trial in truths}
        if not truths:
            return set()
        if len(self._study.directions) > 1:
            kept = sorted(truths, key=_violation)[: self._keep_best]
            return {trial.number for trial in (*self._study.best_trials, *kept)}
        findings = read_study(self._study)
        sign = findings.sign(SCORE)

        def rank(weighting: Repeats) -> tuple[float, float]:
            violation = max(_violation(trials[of.trial]) for of in weighting.finetunes)
            return violation, -sign * (weighting.mean(SCORE) or 0.0)

        # As the answer is: weights by the mean over their seeds, whose first finetune is exported.
        ranked = sorted(findings.weightings, key=rank)[: self._keep_best]
        return {weighting.first.trial for weighting in ranked}


def _superfluous(
    files: FinetuneFiles, makers: Sequence[FrozenTrial], best: set[int]
) -> list[tuple[Path, str]]:
    """What of a finetune that these trials made is needed no more, and what it is."""
    if not _have_ended(makers) or any(BASELINE in trial.user_attrs for trial in makers):
        return []
    checkpoints = [(path, "checkpoint") for path in files.checkpoints]
    if any(trial.number in best for trial in makers):
        return checkpoints
    return [(files.model, "finetune"), *checkpoints]


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def check_keep_best(keep_best: int | None) -> None:
    """Raise `ValueError` unless it is a number of finetunes, 1 or more, or None."""
    if keep_best is not None and keep_best < 1:
        raise ValueError(f"keep_best is {keep_best}, expected a number of finetunes, 1 or more")


def _have_ended(trials: Sequence[FrozenTrial]) -> bool:
    """Whether nobody goes on; a finetune that has failed may be about to be queued again."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    unfinished = any(not trial.state.is_finished() for trial in trials)
    finetunes = [t for t in trials if t.state != TrialState.PRUNED or is_promoted(t)]
    return not unfinished and any(trial.state in ended for trial in finetunes)


def _violation(trial: FrozenTrial) -> float:
    return sum(max(0.0, value) for value in trial.constraints.values())
