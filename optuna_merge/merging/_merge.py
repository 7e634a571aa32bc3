"""Task weights and posteriors to parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from optuna_merge._base.checkpoint_files import same_shapes
from optuna_merge.merging._gaussians import merge_elementwise, merge_gaussians
from optuna_merge.merging._mixture import merge_mixtures
from optuna_merge.merging._problem import Posteriors, Problem, Weights, check_merge
from optuna_merge.posteriors import Coupled


def merge(posteriors: Posteriors, weights: Weights) -> dict[str, Tensor]:
    """The mode of the merged posterior for given task weights: the parameters of a preview.

    Source: arXiv 2412.08147. With S_t the precisions and m_t the means,

        S_a = sum_t a_t S_t,    m_a = S_a^-1 sum_t a_t S_t m_t.

    Off the simplex the prior, which is in each precision once, is one more posterior, of weight
    1 - sum a.

    Weight 1 on one task gives exactly that task's mean. A task of weight zero is dropped: its
    values are not read and may be NaN. Sums are taken in fp32 at least, in fp64 for the families
    that are not elementwise. Mixtures are merged by expectation maximisation.

    Args:
        posteriors: One per task, all of one family, in task order or by task name.
        weights: One per task: in the same order, or by name if the posteriors are. They add up to
            1; those that miss it by up to 1e-4, rounded ones, are divided by their sum. Negative
            ones only for isotropic posteriors.

    Returns:
        New tensors with the names, shapes, dtypes and device of the means.

    Raises:
        TypeError: not posteriors, or posteriors of several families.
        ValueError: tensors that differ in name, shape or dtype, NaN or infinite values, negative
            precisions, unfit weights; factors of adapters of which, by their names (lora_A, lora_B
            and so on), more than one differs among the tasks, for their means are not the mean of
            the products. The message names the task and the tensor, and nothing was merged.

    Examples:
        The second task knows its second parameter nine times as well:

        >>> import torch
        >>> from optuna_merge.posteriors import DiagonalGaussian
        >>> news = DiagonalGaussian({"w": torch.tensor([0., 0.])}, {"w": torch.tensor([1., 1.])})
        >>> books = DiagonalGaussian({"w": torch.tensor([1., 1.])}, {"w": torch.tensor([1., 9.])})
        >>> merge([news, books], [0.5, 0.5])
        {'w': tensor([0.5000, 0.9000])}
        >>> merge({"news": news, "books": books}, {"news": 0, "books": 1})
        {'w': tensor([1., 1.])}
    """
    problem = check_merge(posteriors, weights)
    with torch.no_grad():
        return _merged(problem)


def merge_into(
    module: nn.Module,
    posteriors: Posteriors,
    weights: Weights,
    *,
    names: Mapping[str, str] | None = None,
) -> None:
    """`merge` into a module's parameters and buffers, in place.

    Elementwise families take no memory beyond a few blocks, and a module whose own parameters are
    one of the means may be overwritten. Parameters that the posteriors don't have stay.

    Args:
        module: Has a parameter or buffer for every tensor, of its shape; types may differ.
        posteriors: As in `merge`.
        weights: As in `merge`.
        names: The module's name for each tensor's name, where they differ.

    Raises:
        TypeError, ValueError: as in `merge`, or a name or shape that the module does not have; the
            module is unchanged then.
    """
    problem = check_merge(posteriors, weights)
    targets = _targets(module, problem.posteriors[0].mean, names or {})
    gaussians = problem.gaussians()
    with torch.no_grad():
        if gaussians is None or any(isinstance(term, Coupled) for term in gaussians[0]):
            for name, tensor in _merged(problem).items():
                targets[name].copy_(tensor)
            return
        mean, vanishing = gaussians[0][0].mean, problem.vanishing
        direct = {
            name: target
            for name, target in targets.items()
            if target.is_contiguous() and target.device == mean[name].device
        }
        if direct:
            merge_elementwise(direct, *gaussians, vanishing=vanishing)
        for name in targets.keys() - direct.keys():
            output = torch.empty_like(mean[name], memory_format=torch.contiguous_format)
            merge_elementwise({name: output}, *gaussians, vanishing=vanishing)
            targets[name].copy_(output)


def _merged(problem: Problem) -> dict[str, Tensor]:
    gaussians = problem.gaussians()
    if gaussians is None:
        return merge_mixtures(problem)
    return merge_gaussians(*gaussians, vanishing=problem.vanishing)


def _targets(
    module: nn.Module, mean: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """The module's own tensor for every name, of which all exist and fit."""
    own = dict(module.named_buffers(remove_duplicate=False))
    own |= dict(module.named_parameters(remove_duplicate=False))
    if unknown := sorted(names.keys() - mean.keys()):
        raise ValueError(f"names has {unknown[0]!r}, which no posterior has")
    expected = {names.get(name, name): tensor for name, tensor in mean.items()}
    advice = "; where the module has other names, give them: names={posterior's: module's, ...}"
    same_shapes("the module", own, expected, advice)
    return {name: own[names.get(name, name)] for name in mean}
