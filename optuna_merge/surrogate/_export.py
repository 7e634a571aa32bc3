"""The posterior of the truth as plain numbers: what a program without Python needs to predict.

All that predictions depend on is given, Cholesky factors excepted: kernel hyperparameters, inputs,
noise variances and the weights of the kernels in the mean. `reports/page/surrogate.js` reads it.
"""

from __future__ import annotations

import base64
from typing import Any

import torch

from optuna_merge.surrogate._kernels import JITTER
from optuna_merge.surrogate._members import JUMP_VARIANCE, OFFSET_VARIANCE
from optuna_merge.surrogate._previews import SATURATIONS, PreviewProcess
from optuna_merge.surrogate._threads import single_thread
from optuna_merge.surrogate._truth import TruthModel

Json = dict[str, Any]

_OF_MEMBERS = (
    *("slope_mean", "slope_variance", "curve_mean", "curve_variance", "saturation"),
    *("amplitude", "length", "noise"),
)


def export_model(model: TruthModel) -> Json:
    """A fitted model without pending points, as JSON values.

    Arrays are base64 of little-endian float64, row by row. With `sqrt(T/2)` times the task weights
    as inputs `x`, and the mean and the variance of the process `below`, standardised and times
    `unit` and its square, as `p` and `v`:

    - kind "previews": kernel `amplitude / sqrt(1 + |x - x'|^2 / length^2) + 1 + sum(g g')`, a
      length per task, at the inputs `x` with the variances `noise`; `alpha` are the kernels'
      weights in the mean. The sum is over the curves g, as below, of all `saturation`, and is left
      out where `own` is null.
    - kind "truths": members with shares, the kernel
      `amplitude exp(-|x - x'|^2 / 2 length^2) + offset_variance + slope_variance p p' +
      curve_variance g g'` and the prior mean `slope_mean p + curve_mean g`. The curve g is
      `expm1(-T w / saturation) / expm1(-T / saturation) - 1/2`, w the weight of the task `own`.
      Where both have w = 0, `jump_variance (1 + exp(-|x - x'|^2 / 2))` is added. Where `own`
      is null, none of this is there. `noise` is a member's own, to which `jitter` and
      `slope_mean^2 v` are added. `below` is the process that gives p and v, or null.
    - `sign (location + scale p)` is in the truths' unit.
    """
    with single_thread(), torch.no_grad():
        return _truths(model)


def _truths(model: TruthModel) -> Json:
    members, below = model._members, model._previews
    at = model._at
    assert len(model._at_var.p) == len(at.p), "a model with pending points"
    _, variance = model._points(model.truth_weights)
    n_members = len(model.log_weights)
    alpha = model._alpha if model._n else torch.zeros(n_members, 0, dtype=torch.float64)
    return {
        "kind": "truths",
        "tasks": model.truth_weights.shape[1],
        "sign": model._sign,
        "location": model._location,
        "scale": model._scale,
        "own": model._own,
        "offset_variance": OFFSET_VARIANCE,
        "jump_variance": JUMP_VARIANCE,
        "jitter": JITTER * 10,
        "share": _packed(model.log_weights.exp()),
        **{name: _packed(getattr(members, name)) for name in _OF_MEMBERS},
        "x": _packed(at.x),
        "p": _packed(at.p),
        "v": _packed(variance),
        "alpha": _packed(alpha),
        "unit": model._preview_unit,
        "below": None if below is None else _below(below),
    }


def _below(process: PreviewProcess) -> Json:
    return {
        "kind": "previews",
        "tasks": process._at.x.shape[1],
        "location": process.location,
        "scale": process.scale,
        "amplitude": process._amplitude,
        "length": _packed(process._length),
        "own": process._own,
        "saturation": _packed(torch.tensor(SATURATIONS, dtype=torch.float64)),
        "noise": _packed(process._noise),
        "x": _packed(process._at.x * process._length),
        "alpha": _packed(process._alpha),
    }


def _packed(values: torch.Tensor) -> str:
    return base64.b64encode(values.numpy().astype("<f8").tobytes()).decode("ascii")
