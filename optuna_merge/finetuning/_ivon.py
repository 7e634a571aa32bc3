"""IVON: an optimizer whose state is a diagonal Gaussian posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer


class IVON(Optimizer):
    """Improved variational online Newton (arXiv 2402.17641, algorithm 1), for averaged losses.

    It fits N(m, 1 / (ess (h + delta))) to the loss with the prior N(m_0, 1 / (ess delta)):

        th = m + e / sqrt(ess (h + delta)),     g = gradient at th,
        h_hat = g (th - m) ess (h + delta),
        h <- b2 h + (1 - b2) h_hat + (1 - b2)^2 / 2 (h - h_hat)^2 / (h + delta),
        m <- m - lr (v + delta (m - m_0)) / (h + delta),

    with v the debiased running mean of g. A step is

        for _ in range(samples):
            with optimizer.sampled():
                loss(model).backward()
        optimizer.step()

    Outside of the block the parameters are the mean m. The estimates of h are noisy, and with b2
    near 1 or few steps h stays near where it began: choose 1 - b2 of about 3 to 5 over the number
    of steps, and take the posterior's curvature from `curvature`, which removes the start.

    Args:
        params: Parameters or groups of them; the prior is centred where they are now, so make the
            optimizer at the pretrained parameters.
        lr: Learning rate, in units of Newton steps.
        ess: Effective sample size: the number of training examples, or more to sample nearer to
            the mean.
        delta: The prior's precision on the scale of the averaged loss, above 0.
        initial_h: Where h begins, above -delta.
        betas: Decay of the running means of g and of h.
        clip: Largest step of a parameter before the learning rate; none by default.
        generator: Of the noise, on the parameters' device.

    Raises:
        ValueError: a setting out of its range; `step` before any sample.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        ess: float,
        delta: float = 1e-4,
        initial_h: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float = math.inf,
        generator: Generator | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("ess", ess), ("delta", delta), ("clip", clip)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected more than 0")
        if not initial_h > -delta:
            raise ValueError(f"initial_h is {initial_h}; expected more than -delta, {-delta}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; expected numbers from 0 to below 1")
        self._generator = generator
        defaults = {
            "lr": lr,
            "ess": ess,
            "delta": delta,
            "initial_h": initial_h,
            "betas": betas,
            "clip": clip,
        }
        super().__init__(params, defaults)
        for parameter, group in self._parameters():
            # A step is a tensor, as of torch's own optimizers, so that all state is tensors.
            self.state[parameter] = {
                "step": torch.zeros(()),
                "prior_mean": parameter.detach().clone(),
                "v": torch.zeros_like(parameter),
                "h": torch.full_like(parameter, group["initial_h"]),
            }

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Within the block parameters are drawn from the posterior; take one backward pass in it.

        Gradients from before the block are dropped; those from within are collected at its end.
        """
        drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for parameter, group in self._parameters():
                h = self.state[parameter]["h"]
                noise = torch.randn(
                    parameter.shape,
                    generator=self._generator,
                    dtype=parameter.dtype,
                    device=parameter.device,
                )
                noise /= (group["ess"] * (h + group["delta"])).sqrt()
                drawn.append((parameter, parameter.detach().clone(), noise))
                parameter.add_(noise)
                parameter.grad = None
        try:
            yield
        except BaseException:
            self._restore(drawn, collect=False)
            raise
        self._restore(drawn, collect=True)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update mean and curvature from the samples since the last step."""
        if closure is not None:
            raise ValueError("IVON takes no closure: run the backward pass within sampled()")
        with torch.no_grad():
            for parameter, group in self._parameters():
                state = self.state[parameter]
                if "samples" not in state:
                    raise ValueError(
                        "no sample since the last step: use `with optimizer.sampled()`"
                    )
                self._update(parameter, state, group)

    def curvature(self) -> list[Tensor]:
        """The data part of the precision by parameter, without its start, never below 0.

        With n steps (h - b2^n initial_h) / (1 - b2^n), on the scale of the averaged loss. Add
        delta for a `DiagonalGaussian`'s precision.

        Raises:
            ValueError: no step was taken.
        """
        estimates = []
        for parameter, group in self._parameters():
            state = self.state[parameter]
            if not state["step"]:
                raise ValueError("no step was taken, so nothing is known of the curvature")
            left = group["betas"][1] ** float(state["step"])
            estimates.append(((state["h"] - left * group["initial_h"]) / (1 - left)).clamp(min=0))
        return estimates

    def _parameters(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter, group

    def _restore(self, drawn: list[tuple[Tensor, Tensor, Tensor]], *, collect: bool) -> None:
        with torch.no_grad():
            for parameter, mean, noise in drawn:
                parameter.copy_(mean)
                if not collect:
                    continue
                state = self.state[parameter]
                # Kept from the first sample to the step only: a checkpoint has none of it.
                for name in ("g_sum", "gn_sum"):
                    state.setdefault(name, torch.zeros_like(parameter))
                state["samples"] = state.get("samples", 0) + 1
                if parameter.grad is not None:
                    state["g_sum"] += parameter.grad
                    state["gn_sum"] += parameter.grad * noise
                parameter.grad = None

    @staticmethod
    def _update(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        b1, b2 = group["betas"]
        delta, h = group["delta"], state["h"]
        samples = state.pop("samples")
        g = state.pop("g_sum") / samples
        h_hat = state.pop("gn_sum") / samples * group["ess"] * (h + delta)
        state["step"] += 1
        state["v"].mul_(b1).add_(g, alpha=1 - b1)
        # The last term keeps h + delta above 0 whatever the estimate is.
        correction = (h - h_hat).square() / (h + delta)
        h.mul_(b2).add_(h_hat, alpha=1 - b2).add_(correction, alpha=0.5 * (1 - b2) ** 2)
        pull = delta * (parameter - state["prior_mean"])
        step = (state["v"] / (1 - b1 ** float(state["step"])) + pull) / (h + delta)
        parameter.sub_(step.clamp(-group["clip"], group["clip"]), alpha=group["lr"])
