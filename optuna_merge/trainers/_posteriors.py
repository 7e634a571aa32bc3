"""The tasks' posteriors from their own runs: averages, or weighted by curvature."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from torch import Tensor

from optuna_merge._base.files import sha256_text, short_hash
from optuna_merge._base.tensors import content_hash, load_tensors, save_tensors
from optuna_merge.fitting import Damping, Losses, check_curvature, noted_damping
from optuna_merge.merging import merge
from optuna_merge.posteriors import (
    DiagonalGaussian,
    Gaussian,
    IsotropicGaussian,
    PosteriorSettings,
)
from optuna_merge.previews import anchor_share
from optuna_merge.trainers._adapters import has_products, merge_products
from optuna_merge.trainers._program import ANCHOR, Previews, factors

FAMILIES = ("isotropic", "diagonal")
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluated:
    """A model's numbers on validation data.

    Attributes:
        metrics: The study's metric, by task.
        losses: The loss, by task; empty where it isn't told.
    """

    metrics: Mapping[str, float]
    losses: Mapping[str, float]


class Resident(Protocol):
    """A model in memory that takes any parameters."""

    def describe_curvature(self, task: str, settings: PosteriorSettings) -> Sequence[Any]:
        """What the curvature of one task depends on besides its parameters, as JSON values."""

    def describe_losses(self) -> Any:
        """What the losses of a merge depend on besides its parameters, as JSON values."""

    def parameters(self, folder: Path) -> Mapping[str, Tensor]:
        """The trained parameters of a task's own run, by name."""

    def evaluate(self, parameters: Mapping[str, Tensor], limit: int | None = None) -> Evaluated:
        """The numbers with these parameters, on at most so many examples of each task."""

    def squared_gradients(
        self, task: str, parameters: Mapping[str, Tensor], settings: PosteriorSettings
    ) -> Mapping[str, Tensor]:
        """The diagonal of the curvature of a task's averaged loss at the parameters."""


def settled(posterior: PosteriorSettings | None, names: Sequence[str]) -> PosteriorSettings:
    """The settings for parameters of these names; None: diagonal where that can be."""
    products = has_products(names)
    if posterior is None:
        return PosteriorSettings(family="isotropic" if products else "diagonal")
    if posterior.family not in FAMILIES or posterior.components != 1:
        raise ValueError(
            f"posterior {posterior.label!r} is not made from a program's task runs; expected the "
            f"family {' or '.join(FAMILIES)}, of one component"
        )
    if posterior.estimator != "squared_gradients":
        raise ValueError(
            f"estimator={posterior.estimator!r} is of the own training loop; expected "
            f"'squared_gradients'"
        )
    if products and posterior.family != "isotropic":
        raise ValueError(
            f"posterior {posterior.label!r}, but both factors of LoRA adapters are trained, whose "
            f"product has no curvature here; take family='isotropic', which averages the updates "
            f"B A, or train B alone: model.requires_grad_(False), and then for its factors B "
            f"parameter.requires_grad_(True)"
        )
    return posterior


def make_previews(
    program: Resident,
    runs: Mapping[str, Path],
    anchor: Path | None,
    settings: PosteriorSettings,
    folder: Path,
) -> Previews:
    """Make the previews of a program from its task runs; posteriors in the folder are reused.

    Args:
        program: Evaluates, and takes curvature.
        runs: Folder of each task's own run.
        anchor: Folder of the finetune at uniform weights, which corrects merges; or None.
        settings: The family, examples, damping, seed.
        folder: Where curvature and the choice of damping are kept.

    Raises:
        ValueError: there are no losses to choose a damping by.
        NotFiniteError: a curvature, or the loss of all merges, is NaN or infinite.
    """
    means = {task: dict(program.parameters(run)) for task, run in runs.items()}
    hashes = {task: content_hash(mean, {}) for task, mean in means.items()}
    truth = None if anchor is None else dict(program.parameters(anchor))
    known = None if truth is None else content_hash(truth, {})
    if settings.family == "isotropic":
        merged = _averages(means, truth)
        metrics = _evaluated(program, merged)
        return Previews(metrics, {"family": "isotropic"}, hashes, known, merged=merged)
    undamped: dict[str, DiagonalGaussian] = {}
    seconds = 0.0
    for task, mean in means.items():
        made_of = [hashes[task], *program.describe_curvature(task, settings)]
        path = folder / f"curvature-{task}-{short_hash(made_of)}.safetensors"
        squares, about = _curvature(program, task, mean, settings, path)
        seconds += float(about["seconds"])
        undamped[task] = DiagonalGaussian(mean, squares)
        # Without what is noted of it: the seconds differ where it is made again.
        hashes[task] = sha256_text(hashes[task] + content_hash(squares, {}))
    made_from = [sorted(hashes.items()), program.describe_losses()]
    damping = _damping(program, undamped, settings, folder, made_from)
    damped = {task: each.damped(damping.value) for task, each in undamped.items()}
    merged = _merges(damped, truth)
    metrics, seconds = _evaluated(program, merged), seconds + damping.seconds
    return Previews(metrics, asdict(settings), hashes, known, damping, seconds, merged)


Merge = Callable[[Mapping[str, float]], State]


def _evaluated(
    program: Resident, merged: Merge
) -> Callable[[Mapping[str, float]], Mapping[str, float]]:
    return lambda weights: program.evaluate(merged(weights)).metrics


def _averages(means: Mapping[str, State], truth: State | None) -> Merge:
    """Means of the parameters; of LoRA adapters of which both factors were trained, of updates."""
    states = dict(means) if truth is None else {**means, ANCHOR: truth}
    products = has_products(list(next(iter(means.values()))))
    gaussians = {name: IsotropicGaussian(dict(state)) for name, state in states.items()}

    def merged(weights: Mapping[str, float]) -> State:
        each = factors(weights, anchored=truth is not None)
        if products:
            return merge_products(list(states.values()), [each[name] for name in states])
        return merge(gaussians, each)

    return merged


def _merges(posteriors: Mapping[str, Gaussian], truth: State | None) -> Merge:
    """Modes of the merged posteriors, with a share of what the one at uniform weights misses."""
    missing: dict[str, Tensor] = {}
    if truth is not None:
        uniform = merge(dict(posteriors), dict.fromkeys(posteriors, 1 / len(posteriors)))
        missing = {name: tensor - uniform[name] for name, tensor in truth.items()}

    def merged(weights: Mapping[str, float]) -> State:
        found = merge(dict(posteriors), weights)
        share = anchor_share(weights.values())
        for name, tensor in missing.items():
            found[name].add_(tensor, alpha=share)
        return found

    return merged


def _curvature(
    program: Resident, task: str, mean: State, settings: PosteriorSettings, path: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The curvature at a task's own run, made or found, and what is noted of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            started = time.perf_counter()
            found = dict(program.squared_gradients(task, mean, settings))
            spent = {"seconds": repr(time.perf_counter() - started)}
            check_curvature(task, DiagonalGaussian(dict(mean), found))
            save_tensors(found, path, spent)
        return load_tensors(path)


def _damping(
    program: Resident,
    undamped: Mapping[str, DiagonalGaussian],
    settings: PosteriorSettings,
    folder: Path,
    made_from: Any,
) -> Damping:
    if settings.damping is not None:
        return Damping(settings.damping, {}, 0.0)
    path = folder / f"damping-{short_hash([made_from, settings.damping_examples])}.json"

    def losses(delta: float) -> Losses:
        posteriors = {task: each.damped(delta) for task, each in undamped.items()}

        def at(weights: Mapping[str, float]) -> Mapping[str, float]:
            merged = merge(posteriors, weights)
            found = program.evaluate(merged, settings.damping_examples).losses
            if not found:
                raise ValueError(
                    "the Trainer tells no losses on validation data to choose the damping by; "
                    "give PosteriorSettings(damping=...), or family='isotropic'"
                )
            return found

        return at

    with FileLock(path.with_suffix(".lock")):
        return noted_damping(path, undamped, losses)
