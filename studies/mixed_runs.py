"""Task runs made in other ways, and merges of them at the wanted task weights.

A run at the task weights r_t = (1 - E) e_t + E / T ends near the minimum of sum_s r_ts L_s. So its
precision is that mean of the tasks' curvatures, all taken there; and the merge at the task weights
w gives the runs the weights v with sum_t v_t r_t = w, v_t = (w_t - E / T) / (1 - E). Near a corner
some are negative: they are made zero and the others sum to 1, or taken as they are, which only
averaging (isotropic) can. What a run left of the heads' gradients is mapped alike; heads must be
shared by the tasks. The damping is chosen as in a study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import FittedStudy
from optuna_merge.fitting._curvature import estimate
from optuna_merge.fitting._damping import candidates, choose, trial_weightings
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import FAMILIES, DiagonalGaussian, Posterior
from optuna_merge.previews import Anchor, Previewer, PreviewSettings
from optuna_merge.previews._heads import HeadSolver, _loss, _values

Array = npt.NDArray[np.float64]

ALONE, CONSTANT, SHARE, SHORT = "alone", "constant rate", "share ", "steps 1/"
RECIPES = (
    ALONE,
    f"{SHARE}0.1",
    f"{SHARE}0.3",
    f"{SHORT}3",
    CONSTANT,
    f"{SHORT}3 + {CONSTANT}",
    f"{SHARE}0.1 + {SHORT}3 + {CONSTANT}",
)


@dataclass(frozen=True)
class Recipe:
    """How the runs are made.

    Attributes:
        share: Of all tasks' data in each run.
        shorter: A finetune's steps by those of a run.
        constant: Whether the learning rate stays.
    """

    share: float = 0.0
    shorter: int = 1
    constant: bool = False

    @classmethod
    def of(cls, text: str) -> Recipe:
        """From the words of `shares.py`.

        Raises:
            ValueError: other words.
        """
        recipe = cls()
        for part in text.split(" + "):
            if part.startswith(SHARE):
                recipe = replace(recipe, share=float(part.removeprefix(SHARE)))
            elif part.startswith(SHORT):
                recipe = replace(recipe, shorter=int(part.removeprefix(SHORT)))
            elif part == CONSTANT:
                recipe = replace(recipe, constant=True)
            elif part != ALONE:
                raise ValueError(f"a recipe is one of {', '.join(RECIPES)}, got {text!r}")
        return recipe

    def settings(self, finetuning: FinetuneSettings) -> FinetuneSettings:
        """Those of a run."""
        steps = max(1, finetuning.steps // self.shorter)
        decay = "constant" if self.constant else finetuning.decay
        return replace(finetuning, steps=steps, decay=decay, rung_steps=(steps,))

    def mixing(self, count: int) -> Array:
        """Each run's task weights, a row a run."""
        return (1 - self.share) * np.eye(count) + self.share / count


def run_weights(weights: Sequence[float], mixing: Array, *, beyond: bool = False) -> list[float]:
    """The weights of the runs that are these task weights in all.

    Args:
        weights: Of the tasks, on the simplex.
        mixing: Each run's task weights, a row a run.
        beyond: Leave negative ones as they are.
    """
    found = np.linalg.solve(mixing.T, np.array(weights, dtype=float))
    if not beyond:
        found = np.maximum(found, 0.0)
    return list((found / found.sum()).tolist())


class MixedHeads(HeadSolver):
    """Heads solved again where a run's loss is a mixture of the tasks'."""

    def __init__(self, solver: HeadSolver, mixing: Array) -> None:
        self.__dict__.update(solver.__dict__)
        self._mixing = mixing

    def prepare(self) -> None:
        """What the runs left of their mixtures' gradients, as what tasks alone would have left."""
        if self._left:
            return
        rows = []
        for run, shares in zip(self._tasks, self._mixing):
            self._model.load(self._states[run.name], source=f"the run of task {run.name!r}")
            rows.append(self._gradient(shares))
        inverse = torch.from_numpy(np.linalg.inv(self._mixing))
        stacked = [torch.stack(parts) for parts in zip(*rows)]
        mapped = [torch.tensordot(inverse, part, dims=1) for part in stacked]
        self._left = {task.name: [m[i] for m in mapped] for i, task in enumerate(self._tasks)}

    def _gradient(self, shares: Array) -> list[Tensor]:
        total: list[Tensor] = []
        for task, share in zip(self._tasks, shares.tolist()):
            values = _values(self._layers[task.name])
            for value in values:
                value.requires_grad_(True)
            loss = share * _loss(task, self._see(task), values)
            found = torch.autograd.grad(loss, values)
            total = [a + b for a, b in zip(total, found)] if total else list(found)
        return total


class MixedPreviewer(Previewer):
    """Previews of runs that were trained on mixtures of the tasks."""

    mixing: Array
    beyond: bool = False

    def mixed(self, mixing: Array, *, beyond: bool) -> MixedPreviewer:
        """This previewer, for such runs."""
        self.mixing, self.beyond = mixing, beyond
        alone = np.array_equal(mixing, np.eye(len(mixing)))
        if self._solver is not None and not alone:
            self._solver = MixedHeads(self._solver, mixing)
        return self

    def _merge(self, weights: Sequence[float]) -> None:
        super()._merge(run_weights(weights, self.mixing, beyond=self.beyond))


@dataclass(frozen=True)
class Runs:
    """The runs of one recipe and seed."""

    fitted: FittedStudy
    recipe: Recipe
    states: Mapping[str, Mapping[str, Tensor]]
    made: dict[str, dict[str, Posterior]] = field(default_factory=dict)

    @property
    def mixing(self) -> Array:
        return self.recipe.mixing(len(self.states))

    @classmethod
    def make(cls, fitted: FittedStudy, recipe: Recipe) -> Runs:
        """Train what is not in the working folder.

        Raises:
            ValueError: shares, and a task has a head of its own.
        """
        own = [name for name in fitted.names if fitted.model.own_names(name)]
        if recipe.share and own:
            raise ValueError(
                f"runs on shares of all data need heads that all tasks share, but {own[0]!r} has "
                f"one of its own; use a study like film"
            )
        settings = recipe.settings(fitted.definition.finetuning)
        states = {}
        for name, row in zip(fitted.names, recipe.mixing(len(fitted.names)).tolist()):
            weights = dict(zip(fitted.names, row))
            run = fitted.store.run(fitted.model, fitted.tasks, weights, settings)
            states[name] = run.parameters()
        return cls(fitted, recipe, states)

    def posteriors(self, family: str) -> dict[str, Posterior]:
        """Those of a family, made once."""
        if family not in self.made:
            undamped = self.undamped(family)
            self.made[family] = undamped if family == "isotropic" else self.damped(undamped)
        return self.made[family]

    def undamped(self, family: str) -> dict[str, Posterior]:
        """The posteriors without damping; of the diagonal the curvature of each run's mixture."""
        shared = self.fitted.model.shared_names()
        means = {t: {name: state[name] for name in shared} for t, state in self.states.items()}
        if family == "isotropic":
            return {t: FAMILIES[family].made(mean) for t, mean in means.items()}
        return {
            run: self._curvature(run, dict(zip(self.states, row)), means[run])
            for run, row in zip(self.states, self.mixing.tolist())
        }

    def _curvature(
        self, run: str, shares: Mapping[str, float], mean: dict[str, Tensor]
    ) -> DiagonalGaussian:
        curvature = FAMILIES["diagonal"].curvature
        assert curvature is not None, "the diagonal has one"
        settings = self.fitted.definition.posterior
        total = {name: torch.zeros_like(tensor) for name, tensor in mean.items()}
        for task in self.fitted.tasks:
            if not shares[task.name]:
                continue
            found = estimate(curvature, self.fitted.model, task, self.states[run], settings)
            assert isinstance(found, DiagonalGaussian)
            for name, precision in found.precision.items():
                total[name] += shares[task.name] * precision
        return DiagonalGaussian(mean, total)

    def previewer(self, posteriors: Mapping[str, Posterior], **more: object) -> MixedPreviewer:
        """A previewer of these posteriors."""
        model: MultitaskModel = self.fitted.model
        heads = {t: {n: self.states[t][n] for n in model.own_names(t)} for t in self.states}
        size = self.fitted.definition.finetuning.evaluation_batch_size
        made = MixedPreviewer(
            model,
            self.fitted.tasks,
            posteriors,
            heads,
            batch_size=size,
            **more,  # type: ignore[arg-type]
        )
        return made.mixed(self.mixing, beyond=False)

    def damped(self, undamped: Mapping[str, Posterior]) -> dict[str, Posterior]:
        """With the damping of the smallest loss on validation data, heads merged."""
        limit = self.fitted.definition.posterior.damping_examples

        def weighted_loss(delta: float) -> float:
            posteriors = {t: p.damped(delta) for t, p in undamped.items()}
            previewer = self.previewer(posteriors, limit=limit)
            total = 0.0
            for weights in trial_weightings(self.fitted.names):
                found = previewer(weights).evaluations
                total += sum(w * found[t].loss.value for t, w in weights.items())
            return total if np.isfinite(total) else np.inf

        value, _ = choose(candidates(undamped), weighted_loss)
        return {t: p.damped(value) for t, p in undamped.items()}


def previews(
    runs: Runs,
    family: str,
    settings: PreviewSettings,
    anchor: Anchor | None,
    weightings: Array,
    *,
    beyond: bool,
) -> Array:
    """Metrics of the previews at the weights, `n x T`."""
    posteriors = runs.posteriors(family)
    settings = replace(settings, anchor="none")  # that of the settings is another recipe's
    previewer = runs.previewer(posteriors, settings=settings, states=runs.states, anchor=anchor)
    previewer.beyond = beyond
    names = runs.fitted.names
    rows = []
    for weights in weightings.tolist():
        made = previewer(dict(zip(names, weights)))
        rows.append([made.evaluations[task].metric.value for task in names])
    return np.array(rows)
