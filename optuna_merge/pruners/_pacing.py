"""When a finetune is due: when another preview is not worth its price.

A pure function of the trials and the seed, as all that is decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np
from optuna.trial import TrialState

from optuna_merge import surrogate
from optuna_merge.pruners._ledger import Candidate, Ledger
from optuna_merge.pruners._truth_order import Posterior
from optuna_merge.surrogate import Aim
from optuna_merge.trials import History, Record

PRICE = 0.1
"""What a preview costs, in finetunes, while the study can't tell."""

MARGIN = 4.0
"""What a preview must be worth, in units of its price: it is the largest of many estimates."""

SHARE = 0.25
"""What the previews between two promotions may cost together, in finetunes."""

_MIN_PRICE = 1 / 256
_POINTS = 600  # of the simplex, at which previews are compared


def preview_price(records: Sequence[Record]) -> float:
    """What a preview costs in this study, in finetunes: the ratio of the medians of their seconds.

    Finetunes of a task alone are left out as long as there is any other. The ratio is rounded to a
    power of two, so that it hardly ever depends on how busy a machine was.
    """
    previews = [
        r.preview_seconds
        for r in records
        if r.preview_seconds > 0 and not (r.is_copy or r.preview_taken)
    ]
    ended = [r for r in records if r.truth_seconds > 0 and r.values]
    of_several = [r for r in ended if r.weights and max(r.weights) < 1.0]
    truths = [r.truth_seconds for r in of_several or ended]
    if not previews or not truths:
        return PRICE
    ratio = median(previews) / median(truths)
    return max(_MIN_PRICE, 2.0 ** min(round(math.log2(ratio)), 0))


def is_time(ledger: Ledger, history: History, aim: Aim, *, seed: int = 0) -> bool:
    """Whether the best preview is to be finetuned now, rather than another one to be made.

    It is as soon as no further preview is expected to raise what the next finetune promises (its
    expected improvement) by `MARGIN` times the share of a finetune that the preview costs, or when
    the previews since the last promotion have cost `SHARE` of a finetune; not while a finetune
    waits, nor before the design of `PreviewSampler` is previewed.

    Args:
        ledger: That of all trials.
        history: All trials, read for the study's tasks.
        aim: What the study looks for.
        seed: Of the points that are compared.
    """
    records = history.records
    if any(r.is_finetuning and r.state == TrialState.WAITING for r in records):
        return False
    n_tasks = len(history.tasks)
    previewed = history.previewed()
    candidates = _weights_of(ledger.candidates, records)
    if len(previewed) < surrogate.startup_size(n_tasks) or not len(candidates):
        return False
    price = preview_price(records)
    beyond_design = len(previewed) - surrogate.startup_size(n_tasks)
    if min(_previews_since_promotion(records), beyond_design) * price >= SHARE:
        return True
    pending = [r.weights for r in records if r.is_finetuning and r.weights]
    coming = np.array(pending, dtype=float).reshape(-1, n_tasks)
    posterior = Posterior(history, aim, seed)
    worth = surrogate.PreviewWorth(
        posterior.improvement(coming, len(ledger.claims)), np.array(candidates)
    )
    best = surrogate.maximise(
        worth,
        n_tasks,
        np.asarray,
        np.asarray,
        history.visited(),
        _POINTS,
        np.random.default_rng([seed, len(records)]),
        previewed=previewed,
    )
    return worth.share(best[None]) <= MARGIN * price


def _weights_of(
    candidates: Iterable[Candidate], records: Sequence[Record]
) -> list[tuple[float, ...]]:
    """Weights of what may be promoted, but for those that are finetuned already."""
    known = {r.number: r.weights for r in records}
    done = {r.weights for r in records if r.values or r.is_finetuning}
    found = (known.get(candidate.number, ()) for candidate in candidates)
    return [weights for weights in found if weights and weights not in done]


def _previews_since_promotion(records: Sequence[Record]) -> int:
    last = max((r.number for r in records if r.is_copy or r.is_baseline), default=-1)
    own = (r for r in records if r.number > last and not r.preview_taken)
    return sum(r.reported or r.noted for r in own)
