"""What a preview at given task weights promises, and the search for the best such weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor
from torch.nn.functional import softplus

from optuna_merge.goals import total_violation
from optuna_merge.surrogate._aim import Aim
from optuna_merge.surrogate._score import ScoreModel
from optuna_merge.surrogate._threads import single_thread
from optuna_merge.surrogate._truth import TruthModel
from optuna_merge.trials import Series

Array = npt.NDArray[np.float64]

Constraints = Callable[[Array], Array]
"""Metrics `... x T` to constraint values `... x C`, feasible where all are 0 or less."""


class Acquisition(Protocol):
    """A function that is maximised over the simplex.

    Attributes:
        anchors: Points already seen, `n x T`.
        truth_weights: Those of them whose truth is known, `m x T`.
    """

    anchors: Array
    truth_weights: Array

    def __call__(self, weights: Array) -> Array:
        """Promise of each row of `q x T`; larger is better."""

    def merit(self, weights: Array) -> Array:
        """Expected quality of each row: the best anchors are searched around."""


class Improvement(Acquisition, Protocol):
    """The expected improvement of a truth: what a finetune promises."""

    def after_previews(self, weights: Array) -> Array:
        """Its logarithm after previews that may come at these weights.

        Returns:
            `k x q`: k equally likely previews at each row of `q x T`; a preview moves the expected
            truth and takes its part of the uncertainty away. All up to one constant.
        """

    def level(self, weights: Array) -> float:
        """Its logarithm if a truth at these weights, `1 x T`, were expected to equal the best.

        Up to the same constant: what a finetune brings by its uncertainty alone, after a preview.
        """


_N_PREVIEWS = 8  # that may come at one point
_N_TRUTHS = 32  # draws of the truth after each of them


@functools.cache
def _previews_to_come(n_metrics: int) -> Array:
    """Standard normal and symmetric, `_N_PREVIEWS x n_metrics`."""
    half = qmc.Sobol(n_metrics, seed=1).random(_N_PREVIEWS // 2)
    draws = ndtri(np.clip(half, 1e-6, 1 - 1e-6))
    if n_metrics == 1:  # the middles of equally likely parts
        draws = ndtri((np.arange(_N_PREVIEWS // 2)[:, None] + 0.5) / _N_PREVIEWS)
    return np.asarray(np.concatenate([draws, -draws]))


def log_expected_improvement(mean: Tensor, variance: Tensor, best: Tensor) -> Tensor:
    """log E max(f - best, 0) for normal f, also of underflows (arXiv 2310.20708, eq. 9)."""
    std = variance.sqrt()
    u = (mean - best) / std
    near = u.clamp_min(-1.0)
    log_density = -0.5 * math.log(2 * math.pi)
    direct = (
        torch.exp(-0.5 * near.square() + log_density) + near * torch.special.ndtr(near)
    ).log()
    far = u.clamp_max(-1.0)
    # 1 - |u| Phi(u) / phi(u); beyond -1e3 its first term 1 / u^2 is all that float64 can show.
    ratio = torch.special.erfcx(-far / math.sqrt(2)) * far.abs() * math.sqrt(math.pi / 2)
    tail = torch.where(far > -1e3, (1 - ratio).clamp_min(1e-16).log(), -2 * far.abs().log())
    return torch.where(u > -1.0, direct, -0.5 * far.square() + log_density + tail) + std.log()


def _incumbents(model: TruthModel | ScoreModel, coming: Array | None) -> Array:
    seen = model.truth_weights if len(model.truth_weights) else model.anchors
    return seen if coming is None else np.concatenate([seen, coming])


class TruthImprovement:
    """Log expected improvement of the truth, averaged over the members of its model.

    The value to improve on is each member's posterior mean at the best truth so far; before there
    is any truth, at the best preview.

    Args:
        model: Posterior of the truth.
        coming: `k x T` weights whose truths are under way: they are to be improved on too.
    """

    def __init__(self, model: TruthModel, coming: Array | None = None) -> None:
        self._model = model
        self.anchors, self.truth_weights = model.anchors, model.truth_weights
        seen = _incumbents(model, coming)
        with single_thread(), torch.no_grad():
            self._best = model.means(seen).amax(1, keepdim=True)

    def __call__(self, weights: Array) -> Array:
        with single_thread(), torch.no_grad():
            mean, variance = self._model.members(weights)
            each = log_expected_improvement(mean, variance, self._best)
            return torch.logsumexp(each + self._model.log_weights[:, None], 0).numpy()

    def merit(self, weights: Array) -> Array:
        """Expected quality of each row of `q x T`."""
        with single_thread(), torch.no_grad():
            return (self._model.log_weights.exp() @ self._model.means(weights)).numpy()

    def after_previews(self, weights: Array) -> Array:
        """See `Improvement`; the mixture of members is taken for one Gaussian."""
        model = self._model
        found, moved, left = model.lookahead(weights)
        mean, unit = torch.as_tensor(model.standardise(found)), model.scale
        variance = torch.as_tensor(np.square(left / unit))
        steps = torch.as_tensor(_previews_to_come(1) * (moved / unit))
        best = (model.log_weights.exp() @ self._best)[0]
        return log_expected_improvement(mean + steps, variance.expand_as(steps), best).numpy()

    def level(self, weights: Array) -> float:
        """See `Improvement`."""
        left = float(self._model.lookahead(weights)[2][0]) / self._model.scale
        return math.log(left) - 0.5 * math.log(2 * math.pi)


class Feasibility:
    """How surely the tasks' true metrics satisfy constraints, draw by draw.

    A draw counts by a steep sigmoid of its constraint values, so that also where no draw is
    feasible the logarithm tells which way is better (as in BoTorch). Its unit is the spread of the
    values of constraints at some `metrics`, `n x T`.
    """

    def __init__(self, constraints: Constraints, metrics: Array) -> None:
        self._constraints = constraints
        self._width = np.maximum(1e-3 * np.std(constraints(metrics), axis=0), 1e-12)

    def violation(self, metrics: Array) -> Array:
        """How far metrics `... x T` are beyond the bounds together; 0 is feasible."""
        return total_violation(self._constraints(metrics) / self._width)

    def log_weights(self, metrics: Array) -> Array:
        """Log weight of each draw `... x T`: about 0 where feasible, else very negative."""
        values = self._constraints(metrics) / self._width
        return np.asarray(-np.logaddexp(0.0, values).sum(axis=-1))


def _softplus(gain: Array) -> Array:
    """Log of a softplus: draws without improvement still tell which way is up."""
    known = torch.as_tensor(gain)  # whose functions are faster
    with single_thread():
        return torch.where(known > -30.0, softplus(known.clamp_min(-30.0)).log(), known).numpy()


class ScoreImprovement:
    """Expected improvement of a score of the tasks' true metrics, over Monte Carlo draws.

    With constraints it is the expected improvement over the best feasible truth by draws that are
    feasible themselves; while no truth so far is thought to be feasible, the probability to be.

    Args:
        model: Posterior of the score.
        sign: 1 when the score is maximised, -1 when it is minimised.
        coming: As in `TruthImprovement`.
        constraints: From the tasks' metrics to constraint values; None for none.
    """

    def __init__(
        self,
        model: ScoreModel,
        sign: float,
        coming: Array | None = None,
        constraints: Constraints | None = None,
    ) -> None:
        self._model, self._sign = model, sign
        self.anchors, self.truth_weights = model.anchors, model.truth_weights
        metrics = model.means(self.anchors)
        self._width = max(1e-3 * float(np.std(sign * model.score(metrics))), 1e-12)
        self._feasibility = None if constraints is None else Feasibility(constraints, metrics)
        seen = model.means(_incumbents(model, coming))
        quality = sign * model.score(seen)
        if self._feasibility is not None:
            quality = quality[self._feasibility.violation(seen) <= 0]
        self._best = float(quality.max()) if len(quality) else None

    def __call__(self, weights: Array) -> Array:
        return self._log_gain(self._model.metric_draws(weights))

    def after_previews(self, weights: Array) -> Array:
        """See `Improvement`."""
        mean, moved, left = self._model.lookahead(weights)
        noise = left * self._model.standard_draws[:_N_TRUTHS, None, :]
        steps = _previews_to_come(mean.shape[-1])
        return np.stack([self._log_gain(mean + moved * step + noise) for step in steps])

    def level(self, weights: Array) -> float:
        """See `Improvement`; constraints are left out of account."""
        if self._best is None:
            return -math.inf
        mean, _, left = self._model.lookahead(weights)
        scores = self._model.score(mean + left * self._model.standard_draws[:_N_TRUTHS, None, :])
        return float(np.logaddexp.reduce(_softplus((scores - scores.mean()) / self._width))[0])

    def _log_gain(self, metrics: Array) -> Array:
        """Log of the sum over draws `n x q x T`."""
        soft = np.zeros(metrics.shape[:-1])
        if self._best is not None:
            gain = (self._sign * self._model.score(metrics) - self._best) / self._width
            soft = _softplus(gain)
        if self._feasibility is not None:
            soft = soft + self._feasibility.log_weights(metrics)
        with single_thread():
            return torch.logsumexp(torch.as_tensor(soft), 0).numpy()

    def merit(self, weights: Array) -> Array:
        """Expected quality of each row of `q x T`."""
        metrics = self._model.means(weights)
        quality = self._sign * self._model.score(metrics)
        if self._feasibility is None:
            return quality
        violation = self._feasibility.violation(metrics)
        return np.where(violation > 0, quality.min() - 1.0 - violation, quality)


class FrontImprovement:
    """Expected hypervolume improvement of the front of truths (BoTorch's box decomposition).

    The front is that of the truths thought to be feasible, and draws, `n x m`, count as far as
    they are feasible. Larger is better in the models, at most 4. The volume is measured from the
    reference point of the objectives, in their own units, or else from one inferred from the
    front.
    """

    def __init__(
        self,
        models: Sequence[TruthModel],
        draws: Array,
        reference: Array | None = None,
        coming: Array | None = None,
        constraints: Constraints | None = None,
    ) -> None:
        from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
        from botorch.utils.multi_objective.hypervolume import infer_reference_point
        from botorch.utils.multi_objective.pareto import is_non_dominated

        self._models = tuple(models)
        self.anchors, self.truth_weights = models[0].anchors, models[0].truth_weights
        self._draws = torch.as_tensor(draws)
        self._feasibility = None
        with single_thread(), torch.no_grad():
            front = self._moments(_incumbents(models[0], coming))[0]
            if constraints is not None:
                at_anchors = self._metrics(self._moments(self.anchors)[0])
                self._feasibility = Feasibility(constraints, at_anchors)
                front = front[self._feasibility.violation(self._metrics(front)) <= 0]
            self._nothing_feasible = not len(front)
            if self._nothing_feasible:
                return
            front = front[is_non_dominated(front)]
            if reference is None:
                point = infer_reference_point(front)
            else:
                corner = [float(m.standardise(r)) for m, r in zip(models, reference)]
                point = torch.tensor(corner, dtype=torch.float64)
            boxes = FastNondominatedPartitioning(point, Y=front).get_hypercell_bounds()
            self._low, self._high = boxes[0], boxes[1]

    def _metrics(self, objectives: Tensor) -> Array:
        """Objectives in their own units, `... x m`."""
        columns = zip(self._models, objectives.unbind(-1))
        return np.stack([model.unstandardise(of.numpy()) for model, of in columns], axis=-1)

    def _moments(self, weights: Array) -> tuple[Tensor, Tensor]:
        means, variances = zip(*(model.moments(weights) for model in self._models))
        return torch.stack(means, -1), torch.stack(variances, -1)

    def __call__(self, weights: Array) -> Array:
        with single_thread(), torch.no_grad():
            mean, variance = self._moments(weights)
            return self._gains(mean, variance.sqrt())

    def after_previews(self, weights: Array) -> Array:
        """See `Improvement`."""
        models = self._models
        each = [model.lookahead(weights) for model in models]
        mean = np.stack([m.standardise(found) for m, (found, _, _) in zip(models, each)], -1)
        moved = np.stack([moved / m.scale for m, (_, moved, _) in zip(models, each)], -1)
        left = np.stack([left / m.scale for m, (_, _, left) in zip(models, each)], -1)
        with single_thread(), torch.no_grad():
            std = torch.as_tensor(left)
            gains = [
                self._gains(torch.as_tensor(mean + moved * step), std)
                for step in _previews_to_come(len(models))
            ]
        found = np.stack(gains)
        return found if self._nothing_feasible else np.log(np.maximum(found, 1e-300))

    def level(self, weights: Array) -> float:
        """See `Improvement`: not known of volumes."""
        return -math.inf

    def _gains(self, mean: Tensor, std: Tensor) -> Array:
        each = [self._gain(mean[i : i + 64], std[i : i + 64]) for i in range(0, len(mean), 64)]
        return np.concatenate(each)

    def _gain(self, mean: Tensor, std: Tensor) -> Array:
        y = mean + std * self._draws[:, None, :]
        feasible = np.zeros(y.shape[:-1])
        if self._feasibility is not None:
            feasible = self._feasibility.log_weights(self._metrics(y))
        if self._nothing_feasible:
            return np.asarray(np.logaddexp.reduce(feasible, axis=0))
        sides = torch.minimum(y[..., None, :], self._high) - self._low
        volume = sides.clamp_min(0.0).prod(-1).sum(-1).numpy() * np.exp(feasible)
        # where no draw improves the front, the larger uncertainty wins
        return np.asarray(volume.mean(0) + 1e-12 * std.sum(-1).numpy())

    def merit(self, weights: Array) -> Array:
        """Expected quality of each row of `q x T`."""
        return self(weights)


MAX_FRONT = 4
"""Objectives whose hypervolume is improved; the boxes of more take too long."""


def front_improvement(
    models: Sequence[TruthModel],
    signs: Sequence[float],
    rng: np.random.Generator,
    *,
    reference: Array | None = None,
    coming: Array | None = None,
    constraints: Constraints | None = None,
) -> FrontImprovement | ScoreImprovement:
    """What improves a front: its hypervolume; of more than `MAX_FRONT` objectives a random score.

    Args:
        models: One per objective.
        signs: For each, 1 when it is maximised, -1 when it is minimised.
        rng: Of the draws, or of the preference of the Chebyshev scalarisation.
        reference: As in `FrontImprovement`.
        coming: Weights whose truths are under way.
        constraints: From the objectives to constraint values.
    """
    if len(models) <= MAX_FRONT:
        draws = rng.standard_normal((64, len(models)))
        return FrontImprovement(models, draws, reference, coming, constraints)
    seen = np.stack([m.predict(models[0].anchors)[0] for m in models], axis=-1) * signs
    preference = rng.dirichlet(np.ones(len(signs)))
    scalarise = chebyshev(preference, seen.min(axis=0), seen.max(axis=0))
    model = ScoreModel(models, lambda objectives: scalarise(objectives * signs))
    return ScoreImprovement(model, 1.0, coming, constraints)


def chebyshev(preference: Array, low: Array, high: Array) -> Callable[[Array], Array]:
    """Augmented Chebyshev scalarisation of what is maximised (ParEGO, Knowles 2006)."""
    width = np.where(high > low, high - low, 1.0)

    def scalarise(objectives: Array) -> Array:
        scaled = preference * (objectives - low) / width
        return np.asarray(scaled.min(axis=-1) + 0.05 * scaled.sum(axis=-1))

    return scalarise


def model_of(
    aim: Aim, values: Sequence[Series], metrics: Sequence[Series]
) -> ScoreModel | TruthModel:
    """The posterior of the single objective: by its score of the `metrics`, if there are any."""
    if not metrics:
        return TruthModel.fit(values[0])
    assert aim.score is not None
    return ScoreModel([TruthModel.fit(metric) for metric in metrics], aim.score)


def improvement(
    aim: Aim,
    values: Sequence[Series],
    metrics: Sequence[Series],
    rng: np.random.Generator,
    *,
    coming: Array | None = None,
    sided: bool = False,
) -> Improvement:
    """What a finetune promises.

    Args:
        aim: What the study looks for.
        values: Each objective's previews and truths.
        metrics: Each task's, for a score of them; or none.
        rng: Of what is drawn.
        coming: Weights whose truths are under way.
        sided: By a model that trusts the previews, or by one that doesn't, as is drawn.
    """
    if len(values) > 1:
        return front_improvement(
            [TruthModel.fit(value) for value in values],
            aim.signs,
            rng,
            reference=aim.reference,
            coming=coming,
            constraints=aim.constraints,
        )
    model = model_of(aim, values, metrics)
    if isinstance(model, ScoreModel):
        return ScoreImprovement(model, aim.signs[0], coming, aim.constraints)
    if sided:
        model = model.siding(with_preview=rng.random() < model.trust)
    return TruthImprovement(model, coming)
