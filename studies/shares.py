"""Do other task runs make better previews? A share of all data in each, fewer steps, no decay.

    python studies/shares.py studies/film/optimize.py studies/film/results

Reads truth.csv of the folder (see `families.py`), makes the runs of each recipe with seeds that no
truth has, previews all interior weights of the table, and writes shares.csv (the previews) and
shares.md (the table) beside it. Recipes, the first of which is the package's:

    alone           each task's run is on this task alone, as a finetune is
    share E         task t's run is a finetune at the weights r_t = (1 - E) e_t + E / T
    steps 1/N       a run has one N-th of a finetune's steps
    constant rate   its learning rate does not fall to zero

and joined by " + " several of them. A run at r_t ends near the minimum of sum_s r_ts L_s. So its
precision is that mean of the tasks' curvatures, all taken there; and the merge at the task weights
w gives the runs the weights v with sum_t v_t r_t = w, v_t = (w_t - E / T) / (1 - E). Near a corner
some are negative: "clipped" makes them zero and the others sum to 1; "beyond" takes them as they
are, which only averaging (isotropic) can. What a run left of the heads' gradients is mapped alike.

The damping is chosen as in a study. Anchored previews are corrected by the finetune at uniform
weights of the runs' seed. Columns as in `anchors.py`, means over the seeds of the runs; the cost
is of the T runs, in finetunes: steps, and examples that these read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor

from optuna_merge.commands import Debug, Definition, guarded, load_definition
from optuna_merge.definition import StudyDefinition
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.fitting import FittedStudy
from optuna_merge.fitting._curvature import estimate
from optuna_merge.fitting._damping import candidates, choose, trial_weightings
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import FAMILIES, DiagonalGaussian, Posterior
from optuna_merge.previews import Anchor, Previewer, PreviewSettings
from optuna_merge.previews._heads import HeadSolver, _loss, _values
from optuna_merge.trials import uniform_weights
from studies.anchors import SEED, Truths
from studies.families import fit_family
from studies.preview_quality import spearman, write_csv
from studies.simple_rules import beyond_own_weight

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
CLIPPED, BEYOND = "clipped", "beyond"


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
        """From the words of the module's docstring.

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
    seconds: float

    @property
    def mixing(self) -> Array:
        return self.recipe.mixing(len(self.states))

    @classmethod
    def make(cls, fitted: FittedStudy, recipe: Recipe) -> Runs:
        """Train what is not in the working folder."""
        settings = recipe.settings(fitted.definition.finetuning)
        states, seconds = {}, 0.0
        for name, row in zip(fitted.names, recipe.mixing(len(fitted.names)).tolist()):
            weights = dict(zip(fitted.names, row))
            run = fitted.store.run(fitted.model, fitted.tasks, weights, settings)
            states[name], seconds = run.parameters(), seconds + run.seconds
        return cls(fitted, recipe, states, seconds)

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
            # A head of the task's own has not been in another task's run of share zero.
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
    undamped = runs.undamped(family)
    posteriors = undamped if family == "isotropic" else runs.damped(undamped)
    settings = replace(settings, anchor="none")  # that of the settings is another recipe's
    previewer = runs.previewer(posteriors, settings=settings, states=runs.states, anchor=anchor)
    previewer.beyond = beyond
    names = runs.fitted.names
    rows = []
    for weights in weightings.tolist():
        made = previewer(dict(zip(names, weights)))
        rows.append([made.evaluations[task].metric.value for task in names])
    return np.array(rows)


def uniform_truth(fitted: FittedStudy) -> dict[str, Tensor]:
    """The parameters of the finetune at uniform weights, of the runs' seed."""
    weights = uniform_weights(fitted.names)
    settings = fitted.definition.finetuning
    return fitted.store.run(fitted.model, fitted.tasks, weights, settings).parameters()


@dataclass(frozen=True)
class Line:
    """What the previews of one recipe, family and kind of merge are worth, a seed of runs each.

    Attributes:
        error: Mean absolute error of the metrics.
        ranks: Of each task, rank correlation, and beyond own weight: `T x 2`.
        scores: Of each score, rank correlation and regret: `scores x 2`.
    """

    error: float
    ranks: Array
    scores: Array


def judged(
    seen: Array, truths: Truths, scores: Mapping[str, tuple[Array, bool]], sign: float
) -> Line:
    """What these previews are worth.

    Args:
        seen: Their metrics, `n x T`.
        truths: Of the same weights.
        scores: By name, the weights of the tasks in it, and whether it is the worst task.
        sign: 1 where more is better, -1 for losses.
    """
    truth = truths.metrics.mean(0)
    ranks = [
        (
            spearman(seen[:, t].tolist(), truth[:, t].tolist()),
            beyond_own_weight(seen[:, t], truth[:, t], truths.weights[:, t]),
        )
        for t in range(truth.shape[1])
    ]
    found = []
    for column, worst in scores.values():
        mine, real = (sign * (m if worst else m @ column) for m in (seen, truth))
        if worst:
            mine, real = mine.min(1), real.min(1)
        found.append(
            (spearman(mine.tolist(), real.tolist()), float(real.max() - real[mine.argmax()]))
        )
    return Line(float(np.abs(seen - truth).mean()), np.array(ranks), np.array(found))


def scores_of(names: Sequence[str], targets: Sequence[str]) -> dict[str, tuple[Array, bool]]:
    """The mean, the worst, and the targets, as `judged` takes them."""
    count = len(names)
    found = {"mean": (np.full(count, 1 / count), False), "worst": (np.ones(count), True)}
    for target in targets:
        found[f"target:{target}"] = (np.eye(count)[list(names).index(target)], False)
    return found


def table(lines: Mapping[tuple[str, ...], Sequence[Line]], head: Sequence[str]) -> str:
    """Markdown; after ± the standard deviation over the seeds of the runs."""
    rows = [list(head), ["---"] * len(head)]
    for labels, found in lines.items():
        cells = [*labels, _spread([line.error for line in found], 4)]
        for t in range(len(found[0].ranks)):
            rank, beyond = np.mean([line.ranks[t] for line in found], axis=0)
            cells.append(f"{rank:.2f} ({beyond:.2f})")
        for s in range(len(found[0].scores)):
            rank = _spread([float(line.scores[s, 0]) for line in found], 2)
            regret = np.mean([line.scores[s, 1] for line in found])
            cells.append(f"{rank} ({regret:.4f})")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    shown = f"{np.mean(values):.{digits}f}"
    return f"{shown} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else shown


def prices(recipe: Recipe, count: int) -> str:
    """Steps and examples of all runs, in finetunes (an example of each task a step)."""
    steps = count / recipe.shorter
    examples = steps if recipe.share else steps / count
    return f"{steps:.2g} / {examples:.2g}"


def compare(
    definition: StudyDefinition,
    results: Path,
    workdir: Path,
    recipes: Sequence[str],
    families: Sequence[str],
    seeds: int,
    targets: Sequence[str],
) -> str:
    """Make everything and write the files; the table."""
    truths, names = Truths.read(results), list(definition.names)
    sign = 1.0 if all(definition.greater_is_better.values()) else -1.0
    scores = scores_of(names, targets)
    lines: dict[tuple[str, ...], list[Line]] = {}
    head = ["recipe", "family", "seed", "merge"]
    rows: list[list[object]] = [
        [*head, *(f"weight_{n}" for n in names), *(f"metric_{n}" for n in names)]
    ]
    for seed in range(SEED, SEED + seeds):
        fitted, _ = fit_family(definition, "isotropic", seed, workdir)
        truth = uniform_truth(fitted)
        for recipe in recipes:
            runs = Runs.make(fitted, Recipe.of(recipe))
            for family in families:
                for kind in kinds_of(runs.recipe, family):
                    anchor = Anchor(truth) if "anchored" in kind else None
                    beyond = BEYOND in kind
                    seen = previews(
                        runs, family, definition.preview, anchor, truths.weights, beyond=beyond
                    )
                    labels = (recipe, prices(runs.recipe, len(names)), f"{family}{kind}")
                    line = judged(seen, truths, scores, sign)
                    lines.setdefault(labels, []).append(line)
                    for weights, metrics in zip(truths.weights, seen):
                        numbers = [f"{x:.7g}" for x in (*weights, *metrics)]
                        rows.append([recipe, family, seed, kind.strip(", "), *numbers])
                    typer.echo(f"{seed} {recipe} {family}{kind}: {line.error:.4f}", err=True)
    write_csv(results / "shares.csv", rows)
    ordered = sorted(lines.items(), key=lambda item: list(recipes).index(item[0][0]))
    text = table(dict(ordered), ["runs", "steps / examples", "previews", "error", *names, *scores])
    (results / "shares.md").write_text(text, encoding="utf-8")
    return text


def kinds_of(recipe: Recipe, family: str) -> list[str]:
    """What kinds of merges there are."""
    found = ["", ", anchored"]
    if recipe.share and family == "isotropic":
        found += [f", {BEYOND}", f", {BEYOND}, anchored"]
    return found


def main(
    definition: Definition,
    results: Annotated[Path, typer.Argument(help="Folder with truth.csv; the tables go there.")],
    recipes: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(RECIPES),
    families: Annotated[str, typer.Option(help="Separated by commas.")] = "isotropic,diagonal",
    seeds: Annotated[int, typer.Option(help="Sets of runs.")] = 3,
    targets: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = "",
    workdir: Annotated[
        Optional[Path],  # noqa: UP045 (typer reads it)
        typer.Option(help="Folder of finetunes; default workdir/<study>."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare previews of task runs that were made in other ways."""

    def work() -> None:
        folder = workdir or Path("workdir") / definition.resolve().parent.name
        found = load_definition(definition)
        named = [t for t in targets.split(",") if t]
        listed = (recipes.split(","), families.split(","))
        typer.echo(compare(found, results, folder, *listed, seeds, named))

    guarded(debug, work)


if __name__ == "__main__":
    typer.run(main)
