"""Mixtures by expectation maximisation (arXiv 2412.08147, the mixture family).

The mode of the merged posterior maximises

    J(x) = sum_t a_t log sum_k pi_tk N(x; m_tk, S_tk^-1).

The E step takes r_tk proportional to pi_tk N(x; m_tk, S_tk^-1); the M step is the Gaussian merge
of all components with the weights a_t r_tk. Neither lets J fall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from optuna_merge.merging._gaussians import empty_like, merge_gaussians, precision_of
from optuna_merge.merging._problem import Problem
from optuna_merge.posteriors import RESPONSIBILITIES, Coupled, Gaussian, Mixture

_BLOCK = 1 << 17
_MAX_STEPS = 200
_TOLERANCE = 1e-12
"""Relative gain of J at which the iteration stops."""

Parameters = dict[str, Tensor]


def merge_mixtures(problem: Problem) -> Parameters:
    """The merge of posteriors that all are mixtures."""
    tasks = [posterior for posterior in problem.posteriors if isinstance(posterior, Mixture)]
    _check(tasks, problem)
    mean, weights = tasks[0].mean, problem.weights
    kind = tasks[0].responsibilities
    used = [(a, task) for a, task in zip(weights, tasks) if a]
    if kind == "coordinate":
        merged = empty_like(mean)
        for name, output in merged.items():
            _merge_coordinates(name, output, used)
        return merged
    merged = {}
    for names in _layers(mean) if kind == "layer" else [list(mean)]:
        merged |= EM(
            [(a, [restrict(c, names) for c in task.components], _log_pi(task)) for a, task in used]
        ).run(fixed=kind == "fixed")
    return {name: merged[name] for name in mean}


class EM:
    """Expectation maximisation with one responsibility per component; probabilities as logs."""

    def __init__(self, tasks: Sequence[tuple[float, Sequence[Gaussian], Tensor]]) -> None:
        self.tasks = tasks

    def run(self, *, fixed: bool = False) -> Parameters:
        """From responsibilities equal to the mixtures' weights to the best point that is met."""
        responsibilities = [log_pi.exp() for _, _, log_pi in self.tasks]
        point = self.maximise(responsibilities)
        if fixed or all(len(components) == 1 for _, components, _ in self.tasks):
            return point
        objective, responsibilities = self.expect(point)
        for _ in range(_MAX_STEPS):
            candidate = self.maximise(responsibilities)
            value, responsibilities = self.expect(candidate)
            gain = value - objective
            if gain > 0:
                point, objective = candidate, value
            if gain <= _TOLERANCE * abs(objective):
                break
        return point

    def maximise(self, responsibilities: Sequence[Tensor]) -> Parameters:
        """The M step: a Gaussian merge."""
        terms = [term for _, components, _ in self.tasks for term in components]
        weights = [a * float(r) for (a, _, _), rs in zip(self.tasks, responsibilities) for r in rs]
        return merge_gaussians(terms, weights)

    def expect(self, point: Parameters) -> tuple[float, list[Tensor]]:
        """The E step: J (but for a constant) and the responsibilities at a point."""
        objective = 0.0
        responsibilities = []
        for a, components, log_pi in self.tasks:
            first = components[0]
            logits = log_pi + torch.tensor(
                [log_ratio(term, first, point) for term in components], dtype=torch.float64
            )
            objective += a * (log_density(first, point) + float(logits.logsumexp(0)))
            responsibilities.append(logits.softmax(0))
        return objective, responsibilities


def log_density(term: Gaussian, point: Parameters) -> float:
    """log N(point), less the constant -P/2 log 2 pi, in fp64."""
    if isinstance(term, Coupled):
        return term.log_density(point)
    return sum(float(_log_normal(s, x - m).sum()) for s, m, x in _blocks(term, point))


def log_ratio(term: Gaussian, first: Gaussian, point: Parameters) -> float:
    """log N_term(point) - log N_first(point), summed by coordinate: the logarithms are large."""
    if term is first:
        return 0.0
    if isinstance(term, Coupled):
        return log_density(term, point) - log_density(first, point)
    return sum(
        float((_log_normal(s, x - m) - _log_normal(s0, x - m0)).sum())
        for (s, m, x), (s0, m0, _) in zip(_blocks(term, point), _blocks(first, point))
    )


def restrict(term: Gaussian, names: Sequence[str]) -> Gaussian:
    """The same Gaussian over some of its tensors, of families where tensors are independent."""
    if len(names) == len(term.mean):
        return term
    some = {
        field: {name: value[name] for name in names if name in value}
        for field, value in vars(term).items()
        if isinstance(value, dict)
    }
    return replace(term, **some)


def _merge_coordinates(
    name: str,
    output: Tensor,
    tasks: Sequence[tuple[float, Mixture]],
) -> None:
    """EM with one responsibility per component and coordinate, a block at a time."""
    eps = torch.finfo(output.dtype).eps
    components = [[_flat(component, name) for component in task.components] for _, task in tasks]
    for start in range(0, output.numel(), _BLOCK):
        part = slice(start, start + _BLOCK)
        stacks = []
        for (a, task), flat in zip(tasks, components):
            precisions, means = (
                torch.stack(tensors) for tensors in zip(*(_piece(each, part) for each in flat))
            )
            stacks.append((a, _log_pi(task).to(output.device)[:, None], precisions, means))
        output.view(-1)[part] = _coordinates(stacks, eps).to(output.dtype)


def _coordinates(
    tasks: Sequence[tuple[float, Tensor, Tensor, Tensor]],
    eps: float,
) -> Tensor:
    """EM on a block: per task its weight, log pi (K, 1), precisions and means (K, n)."""
    shares = [log_pi.exp().expand_as(s) for _, log_pi, s, _ in tasks]
    centre = tasks[0][3][0]
    best = value = None
    for _ in range(_MAX_STEPS):
        precision = sum(a * (r * s).sum(0) for (a, _, s, _), r in zip(tasks, shares))
        moment = sum(a * (r * s * (m - centre)).sum(0) for (a, _, s, m), r in zip(tasks, shares))
        point = centre + moment / precision
        logits = [log_pi + _log_normal(s, point - m) for _, log_pi, s, m in tasks]
        objective = point * 0 + sum(a * z.logsumexp(0) for (a, *_), z in zip(tasks, logits))
        shares = [z.softmax(0) for z in logits]
        if best is None or value is None:
            best, value = point, objective
            continue
        better = objective > value
        step = torch.where(better, point - best, 0).abs()
        best, value = torch.where(better, point, best), torch.where(better, objective, value)
        if bool((step <= eps * best.abs()).all()):
            break
    assert best is not None
    return best


def _log_normal(precision: Tensor, shift: Tensor) -> Tensor:
    return 0.5 * (precision.log() - precision * shift * shift)


def _blocks(term: Gaussian, point: Parameters) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Precision, mean and point of an elementwise term, block by block in fp64."""
    for name, tensor in point.items():
        flat = _flat(term, name)
        for start in range(0, tensor.numel(), _BLOCK):
            part = slice(start, start + _BLOCK)
            yield *_piece(flat, part), tensor.reshape(-1)[part].double()


def _flat(term: Gaussian, name: str) -> tuple[Tensor | float, Tensor]:
    """Precision and mean of one tensor of an elementwise term, as vectors."""
    precision = precision_of(term, name)
    if isinstance(precision, Tensor):
        precision = precision.reshape(-1)
    return precision, term.mean[name].detach().reshape(-1)


def _piece(flat: tuple[Tensor | float, Tensor], part: slice) -> tuple[Tensor, Tensor]:
    """One block of both, in fp64."""
    precision, mean = flat[0], flat[1][part].double()
    if isinstance(precision, Tensor):
        return precision[part].double(), mean
    return mean.new_full((), precision).expand_as(mean), mean


def _log_pi(task: Mixture) -> Tensor:
    return task.log_weights.detach().double().cpu().log_softmax(0)


def _layers(mean: Parameters) -> list[list[str]]:
    """Names by module: those that are the same up to the last dot."""
    layers: dict[str, list[str]] = {}
    for name in mean:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return list(layers.values())


def _check(tasks: Sequence[Mixture], problem: Problem) -> None:
    kind = tasks[0].responsibilities
    if kind not in RESPONSIBILITIES:
        raise ValueError(
            f"responsibilities={kind!r}; expected one of {', '.join(RESPONSIBILITIES)}"
        )
    first = tasks[0].components[0]
    if first.coupling not in RESPONSIBILITIES[kind]:
        raise ValueError(
            f"responsibilities={kind!r} need coordinates that are independent, which those of "
            f"{type(first).__name__} are not: use 'task' or 'fixed'"
        )
    if problem.vanishing and kind != "fixed":
        raise ValueError(
            "a mixture's precisions must be positive, or its components have no density: add the "
            "prior's precision (damping), or use responsibilities='fixed'"
        )
