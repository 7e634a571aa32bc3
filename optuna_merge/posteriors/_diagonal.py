"""One precision per number: Fisher- or Hessian-weighted merging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from optuna_merge.posteriors._example_gradients import (
    Batch,
    Labelling,
    Loss,
    Predict,
    SampleLabels,
    example_gradients,
    wide,
)
from optuna_merge.posteriors._family import Curvature, Evidence, Family
from optuna_merge.posteriors._gaussian import Gaussian, Part, double_sum


@dataclass(frozen=True, eq=False)
class DiagonalGaussian(Gaussian):
    """N(mean, diag(precision)^-1), for Fisher- or Hessian-weighted merging.

    Source: arXiv 2111.09832, arXiv 2412.08147.

    Args:
        mean: Tensors by name, the task's parameters.
        precision: Tensors of the same names and shapes: the diagonal of the averaged loss's
            Hessian plus the prior's precision, once. The dtype may be wider than the mean's.
    """

    precision: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.precision, dict):
            raise TypeError(
                f"precision must be a dict of tensors, got {type(self.precision).__name__}; "
                f"for one number use IsotropicGaussian"
            )

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield from self.precision_parts("precision", self.precision)

    def elementwise(self, name: str) -> Tensor:
        return self.precision[name]

    def trace(self) -> float:
        return double_sum(self.precision)

    def damped(self, delta: float) -> Self:
        # In the mean's order, whatever order the curvature came in: hashes must agree.
        return replace(self, precision={name: self.precision[name] + delta for name in self.mean})


def squared_gradients(
    predict: Predict,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    *,
    loss: Loss,
    sample_labels: SampleLabels | None = None,
    chunk_size: int = 32,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of each example's loss.

    With labels sampled from the model this is the diagonal of the true Fisher matrix, which for
    cross-entropy and squared error is that of the Gauss-Newton matrix; with the data's own labels
    it is the empirical Fisher, which vanishes where the data are fitted. It is the data part, on
    the scale of the averaged loss: add the prior's precision to get a posterior's (arXiv
    2412.08147, arXiv 2310.12808). A squared minibatch gradient would be too small by the batch
    size.

    Args:
        predict: `predict(params, batch) -> outputs`, without randomness (the model in eval mode)
            and of the parameters given, as `torch.func.functional_call` does it. It is called
            under vmap with a batch of one example, its leading dimension kept; code that can't be
            vmapped is called one example after the other instead, to the same result.
        params: Parameters by name to differentiate by.
        batches: Batches of equal keys, each tensor of leading dimension B; labels at "labels".
        loss: Outputs and labels of B examples to B losses, each the negative logarithm of the
            density that labels are sampled from; a mean over n labels of an example would give
            curvature too small by n, and must be multiplied by sqrt(n).
        sample_labels: `categorical_labels`, `gaussian_labels` or your own; None takes the data's
            labels. Where the data's integer labels are -100, none is drawn.
        chunk_size: Examples whose gradients are held at once; memory is this times the parameters.
        generator: Of the sampled labels.

    Returns:
        Non-negative tensors with the names and shapes of `params`, in fp32 (fp64 for fp64).

    Raises:
        ValueError: no examples, a batch without labels, bad chunk size, or dropout that is on.
    """
    total = {name: torch.zeros_like(p, dtype=wide(p)) for name, p in params.items()}
    count = 0
    labelling: Labelling = {"loss": loss, "sample_labels": sample_labels, "generator": generator}
    for gradient in example_gradients(
        predict, params, batches, chunk_size=chunk_size, **labelling
    ):
        for name, rows in gradient.items():
            # Not squared in place: gradients of tied or added parameters may share memory.
            for row in rows.to(total[name].dtype):
                total[name].addcmul_(row, row)
        count += len(rows)
    return {name: tensor.div_(count) for name, tensor in total.items()}


def _estimate(evidence: Evidence) -> DiagonalGaussian:
    return DiagonalGaussian(evidence.mean, evidence.by_gradients(squared_gradients))


SQUARES = Curvature("diagonal", _estimate, estimators=("squared_gradients", "ivon"))
"""One number per parameter."""

DIAGONAL = Family("diagonal", "weighted by curvature, elementwise", DiagonalGaussian, SQUARES)
