"""Metrics of tokens: outputs (batch, tokens, classes), labels (batch, tokens), -100 ignored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optuna_merge._base.labels import IGNORED
from optuna_merge.tasks._losses import sum_over_tokens
from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import ratio_measurement


def _losses(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return sum_over_tokens(outputs.float(), labels)


def _hits(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    rows = (len(labels), -1)
    hits = outputs.argmax(-1) == labels  # never where the label is IGNORED
    return hits.reshape(rows).sum(1), (labels != IGNORED).reshape(rows).sum(1)


def _per_token(sums: Tensor, counts: Tensor) -> Measurement:
    if not counts.any():
        raise ValueError(
            f"none of the {len(counts)} examples has a labelled token: all labels are {IGNORED}"
        )
    return ratio_measurement(sums, counts)


def _perplexity(losses: Tensor, counts: Tensor) -> Measurement:
    mean = _per_token(losses, counts)
    # Not math.exp, which raises where it overflows: a ruined merge has infinite perplexity.
    value = float(torch.tensor(mean.value, dtype=torch.float64).exp())
    error = value * mean.standard_error if math.isfinite(value) else math.nan
    return Measurement(value, error)


perplexity = Metric("perplexity", _perplexity, greater_is_better=False, condense=_losses)
"""exp of the mean cross-entropy over all labelled tokens; smaller is better.

Label t is what output t predicts, as in `token_cross_entropy`; every token weighs the same. With
L_i the sum of example i's token losses, n_i its labelled tokens and R = sum(L) / sum(n), the delta
method gives it the influence exp(R) (L_i - R n_i) / mean(n).
"""

token_loss = Metric("token_loss", _per_token, greater_is_better=False, condense=_losses)
"""Mean cross-entropy over all labelled tokens of all examples together; smaller is better.

As `perplexity`, without the exponential: with L_i the sum of example i's token losses, n_i its
labelled tokens and R = sum(L) / sum(n), its influence is (L_i - R n_i) / mean(n).
"""

token_accuracy = Metric("token_accuracy", _per_token, condense=_hits)
"""Share of the labelled tokens, of all examples together, whose largest output is the label.

With h_i of example i's n_i labelled tokens right and R = sum(h) / sum(n), the delta method gives
it the influence (h_i - R n_i) / mean(n).
"""
