"""What of a working folder a study does not need any more."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_merge._optuna import known_params
from optuna_merge.definition import StudyDefinition
from optuna_merge.finetuning import Start
from optuna_merge.fitting import finetune_store, merges_key
from optuna_merge.study import BASELINE, DEFINITION, baseline_weights, check_definition
from optuna_merge.weights import trial_weights

_logger = logging.getLogger(__name__)

_MODEL, _CHECKPOINT = "model.safetensors", "checkpoint.safetensors"


@dataclass(frozen=True)
class Garbage:
    """A file that the study does not need.

    Attributes:
        path: The file.
        size: Its bytes.
        what: "finetune", "checkpoint" or "refinement".
        trials: Numbers of the trials that it was made for.
    """

    path: Path
    size: int
    what: str
    trials: tuple[int, ...]


class Collector:
    """Finds and removes the finetunes and checkpoints that a study can't go on from.

    Removed are, of trials that have ended:

    - checkpoints of finetunes that were stopped at a rung,
    - refined previews, once all rungs of their refinement are reported in the study, and
    - with `keep_best`, the models of finetunes that are neither among the best nor baselines.

    Kept is all else: task runs, posteriors, the refinements that the learning rate was chosen by,
    checkpoints of refinements that may be promoted further, all that belongs to waiting, running
    or failed trials, and what no trial of this study has made. Of a constrained study the best are
    those that violate least, then those of the best score; of a Pareto study the front is kept
    whole. What a worker holds the lock of is left alone, and what was removed and is wanted again
    is trained again.

    Args:
        study: The study; other studies of the same definition with the same folder are not asked.
        definition: Its definition.
        workdir: The working folder.
        keep_best: How many of the best finetunes keep their models; None: all.

    Raises:
        ValueError: `keep_best` is below 1, or the study was never prepared.
        DefinitionMismatchError: the study has another definition.
    """

    def __init__(
        self,
        study: optuna.Study,
        definition: StudyDefinition,
        workdir: Path,
        *,
        keep_best: int | None = None,
    ) -> None:
        check_keep_best(keep_best)
        check_definition(study, definition.describe())
        stored = study.user_attrs.get(DEFINITION)
        if stored is None:
            raise ValueError(
                f"study {study.study_name!r} has no definition yet, so nothing is known of its "
                f"files; run optuna-merge optimize first"
            )
        parts = json.loads(stored)
        self._study = study
        self._names = definition.names
        self._keep_best = keep_best
        self._store = finetune_store(definition, workdir)
        self._finetuning = definition.finetuning
        merge = Start(merges_key(parts), dict)
        self._start = merge if definition.start == "merged" else None
        self._merge = merge
        self._steps = definition.refinement_steps
        self._refining = None
        self._protected: set[Path] = set()
        baselines = baseline_weights(self._names).values()
        for weights in baselines:  # a task alone is also its own run
            self._protected |= {
                self._store.path(weights, self._finetuning, start) for start in (None, self._start)
            }
        if definition.refinement is not None:
            training = definition.refinement.training
            self._refining = training(self._finetuning, parts["refinement_rate"])
            for rate in definition.refinement.learning_rates:
                settings = training(self._finetuning, rate)
                self._protected |= {self._store.path(w, settings, merge) for w in baselines}

    def find(self) -> list[Garbage]:
        """What could be removed now, in the order of the trials."""
        made: dict[Path, tuple[str, list[FrozenTrial]]] = {}
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            for what, path in self._paths(trial):
                made.setdefault(path, (what, []))[1].append(trial)
        best = self._best(trials)
        found: list[Garbage] = []
        for path, (what, makers) in made.items():
            if path in self._protected or not path.parent.is_dir():
                continue
            superfluous = {
                "finetune": self._superfluous_of_finetune,
                "refinement": self._superfluous_of_refinement,
            }[what](makers, best)
            numbers = tuple(trial.number for trial in makers)
            for name in superfluous:
                file = path.with_name(name)
                if file.is_file():
                    kind = "checkpoint" if name == _CHECKPOINT else what
                    found.append(Garbage(file, file.stat().st_size, kind, numbers))
        return found

    def remove(self) -> list[Garbage]:
        """Remove it; return what was removed."""
        removed = []
        states = self._states()
        found = self.find()
        for folder in sorted({garbage.path.parent for garbage in found}):
            try:
                with FileLock(folder / "lock", timeout=0):
                    if (now := self._states()) != states:  # a trial may have begun here
                        states, found = now, self.find()
                    for garbage in found:
                        if garbage.path.parent == folder:
                            garbage.path.unlink(missing_ok=True)
                            removed.append(garbage)
            except Timeout:
                _logger.info("left alone, a worker holds it: %s", folder)
        if removed:
            size = sum(garbage.size for garbage in removed)
            _logger.info("%d files that the study needs no more: %d bytes", len(removed), size)
        return removed

    def _states(self) -> list[TrialState]:
        return [trial.state for trial in self._study.get_trials(deepcopy=False)]

    def _paths(self, trial: FrozenTrial) -> Iterable[tuple[str, Path]]:
        weights = trial_weights(known_params(trial), self._names)
        if weights is None:
            return
        yield "finetune", self._store.path(weights, self._finetuning, self._start)
        if self._refining is not None:
            yield "refinement", self._store.path(weights, self._refining, self._merge)

    def _best(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """Numbers of the trials whose models are kept."""
        truths = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if self._keep_best is None:
            return {trial.number for trial in truths}
        is_pareto = len(self._study.directions) > 1
        front = self._study.best_trials if is_pareto and truths else []

        def rank(trial: FrozenTrial) -> tuple[float, float]:
            if is_pareto:
                return _violation(trial), 0.0
            sign = -1.0 if self._study.direction == StudyDirection.MAXIMIZE else 1.0
            return _violation(trial), sign * (trial.value or 0.0)

        kept = sorted(truths, key=rank)[: self._keep_best]
        return {trial.number for trial in (*front, *kept)}

    @staticmethod
    def _superfluous_of_finetune(makers: Sequence[FrozenTrial], best: set[int]) -> list[str]:
        if not _have_ended(makers) or any(BASELINE in trial.user_attrs for trial in makers):
            return []
        if any(trial.number in best for trial in makers):
            return [_CHECKPOINT]
        return [_MODEL, _CHECKPOINT]

    def _superfluous_of_refinement(
        self, makers: Sequence[FrozenTrial], best: set[int]
    ) -> list[str]:
        known = {step for trial in makers for step in trial.intermediate_values}
        if not _have_ended(makers) or not known.issuperset(self._steps):
            return []
        return [_MODEL, _CHECKPOINT]


def check_keep_best(keep_best: int | None) -> None:
    """Raise `ValueError` unless it is a number of finetunes, 1 or more, or None."""
    if keep_best is not None and keep_best < 1:
        raise ValueError(f"keep_best is {keep_best}, expected a number of finetunes, 1 or more")


def _have_ended(trials: Sequence[FrozenTrial]) -> bool:
    """Whether nobody goes on; a trial that has failed may be about to be queued again."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    unfinished = any(not trial.state.is_finished() for trial in trials)
    return not unfinished and any(trial.state in ended for trial in trials)


def _violation(trial: FrozenTrial) -> float:
    return sum(max(0.0, value) for value in trial.constraints.values())
