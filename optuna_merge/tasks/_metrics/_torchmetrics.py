"""Metrics of the torchmetrics package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import jackknife_measurement


def _shaped(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One output an example in the labels' shape, which torchmetrics insists on."""
    if outputs.numel() == labels.numel():
        outputs = outputs.reshape(labels.shape)
    return outputs, labels


def torchmetrics_metric(
    metric: Any,
    *,
    name: str | None = None,
    greater_is_better: bool | None = None,
    groups: int = 20,
    condense: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _shaped,
) -> Metric:
    """Any torchmetrics metric of outputs and labels that computes one number.

    Args:
        metric: A `torchmetrics.Metric`, of `update(outputs, labels)`; it is copied.
        name: Stands in the study's definition and in tables; default: the class's.
        greater_is_better: Default: what the metric says of itself.
        groups: As of `bleu`; the metric is computed once more than that.
        condense: See `Metric`; default: a single output an example takes the labels' shape.
            Outputs of tokens, whose batches differ in length, need one of your own.

    Raises:
        TypeError: not a torchmetrics metric.
        ValueError: the metric doesn't say whether greater is better, and you don't either; or,
            when it is called, it computes more than one number.
    """
    if not all(callable(getattr(metric, what, None)) for what in ("clone", "update", "compute")):
        raise TypeError(
            f"expected a torchmetrics metric, such as torchmetrics.SpearmanCorrCoef(), got "
            f"{metric!r}"
        )
    name = name or type(metric).__name__
    if greater_is_better is None:
        greater_is_better = getattr(metric, "higher_is_better", None)
        if greater_is_better is None:
            raise ValueError(
                f"metric {name!r} doesn't say whether greater is better; give greater_is_better"
            )
    prototype = metric.clone().cpu()

    def function(outputs: Tensor, labels: Tensor) -> Measurement:
        def value(rows: list[int]) -> float:
            fresh, index = prototype.clone(), torch.tensor(rows)
            fresh.reset()
            fresh.update(outputs[index], labels[index])
            computed = fresh.compute()
            if not isinstance(computed, Tensor) or computed.numel() != 1:
                raise ValueError(
                    f"metric {name!r} computes {computed!r}; expected one number, as with "
                    f"average='macro'"
                )
            return float(computed)

        return jackknife_measurement(value, len(labels), groups)

    return Metric(name, function, greater_is_better, condense)
