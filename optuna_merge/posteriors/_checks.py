"""Checks of posteriors before any work: errors that name the task and the tensor."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from optuna_merge._base.checkpoint_files import adapter_parts, naming_hint
from optuna_merge.posteriors._families import CLASSES, Posterior
from optuna_merge.posteriors._gaussian import Gaussian, Part
from optuna_merge.posteriors._mixture import Mixture


def check_posteriors(posteriors: Mapping[str, Posterior], used: Collection[str]) -> bool:
    """Refuse posteriors that can't be merged; what has passed is read again only when changed.

    Keys are the words that name each in an error, for instance "task 'news'". Values are checked
    of those that are used alone. True: all precisions of these are positive, none zero.
    """
    stamps = {who: _stamps(posterior) for who, posterior in posteriors.items()}
    together: list[_Stamp] = [(tuple(stamps), 0)]
    together += [s for each in stamps.values() for s in each]
    if not _unchanged(_alike, together):
        check_structure(posteriors)
        _alike[:] = together
    positive = [check_values(who, posteriors[who], stamps[who]) for who in used]
    return all(positive)  # all of them are checked


def check_structure(posteriors: Mapping[str, Posterior]) -> None:
    """Refuse posteriors whose tensors differ in name, shape, dtype or device; reads no values."""
    gaussians: dict[str, Gaussian] = {}
    for who, posterior in posteriors.items():
        if type(posterior).__name__ not in CLASSES:
            raise TypeError(
                f"{who} is a {type(posterior).__name__}; expected one of {', '.join(CLASSES)}"
            )
        if not isinstance(posterior, Mixture):
            gaussians[who] = posterior
            continue
        if not posterior.components:
            raise ValueError(f"{who}: a mixture needs at least one component")
        _check_part(who, next(posterior.parts()))
        for k, component in enumerate(posterior.components):
            if type(component).__name__ not in CLASSES or isinstance(component, Mixture):
                raise TypeError(f"{who}: component {k} must be a Gaussian, got {component!r:.60}")
            gaussians[f"{who}, component {k}"] = component
    first = next(iter(gaussians))
    reference: dict[tuple[str, str], Tensor | float] = {}
    for who, gaussian in gaussians.items():
        mean = gaussian.mean
        if not isinstance(mean, dict) or not mean:
            told = f"a dict of at least one tensor, got {mean!r:.80}"
            raise TypeError(f"{who}: the mean must be {told}")
        _check_names(who, mean, first, gaussians[first].mean, "mean")
        for field, value in vars(gaussian).items():
            if isinstance(value, dict):
                some = field in gaussian.partial
                _check_names(who, value, f"{who}'s mean", mean, field, some=some)
        parts = tuple(gaussian.parts())
        for part in parts:
            _check_part(who, part)
        if who == first:
            reference = {(part.role, part.name): part.value for part in parts}
        _check_alike(who, parts, first, reference)


def check_factors(posteriors: Mapping[str, Posterior]) -> None:
    """Refuse means of adapters of which two factors differ, going by their names.

    What an adapter does to a weight is linear in each of its parts, but not in several at once:
    with B A the mean of the products is the product of the means if A is the same in all tasks,
    or B. The magnitudes of DoRA are divided by a norm in which A and B are: only they may differ.
    """
    means = [
        (who, gaussian.mean)
        for who, each in posteriors.items()
        for gaussian in (each.components if isinstance(each, Mixture) else (each,))
    ]
    _, first = means[0]
    for parts in adapter_parts(first).values():
        if len(parts) < 2:
            continue
        differ: dict[str, tuple[str, str]] = {}
        for who, mean in means[1:]:
            for part, names in parts.items():
                for name in names:
                    if part not in differ and not torch.equal(mean[name], first[name]):
                        differ[part] = who, name
        norm = "lora_magnitude_vector" in parts and differ.keys() - {"lora_magnitude_vector"}
        if len(differ) > 1 or norm:
            who = max(differ.values())[0]
            together = " and ".join(repr(name) for _, name in differ.values())
            raise ValueError(
                f"{who}: {together} differ from {means[0][0]}'s, and weights are not linear in "
                f"them together, so means of them are not the mean of what the adapters do: train "
                f"and merge B alone, with one A, or merge the products "
                f"(load_checkpoint(adapter, base=...))"
            )


def check_values(who: str, posterior: Posterior, stamps: list[_Stamp]) -> bool:
    """Refuse NaN, infinities and negative precisions; whether all precisions are positive."""
    if posterior in _passed:
        before, positive = _passed[posterior]
        if _unchanged(before, stamps):
            return positive
    positive = True
    for part in posterior.parts():
        if isinstance(part.value, Tensor) and not part.value.numel():
            continue
        lowest, highest = _range(part.value)
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(
                f"{who}: {part} holds NaN or an infinity; every value must be finite (a task of "
                f"weight zero is left out unread)"
            )
        if part.nonnegative and lowest < 0:
            raise ValueError(f"{who}: {part} is negative ({lowest:g}); expected at least 0")
        positive &= part.may_vanish or not part.nonnegative or lowest > 0
    _passed[posterior] = stamps, positive
    return positive


_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_Stamp = tuple[Any, int | None]
"""What can't be the same once a value was changed; with None it is never the same."""

_passed: WeakKeyDictionary[Posterior, tuple[list[_Stamp], bool]] = WeakKeyDictionary()
_alike: list[_Stamp] = []
"""Of the posteriors that last passed together."""


def _stamps(value: Any) -> list[_Stamp]:
    """Of all in a posterior: tensors with their counts of in-place changes, names, numbers."""
    if isinstance(value, Tensor):
        return [(weakref.ref(value), None if value.is_inference() else value._version)]
    if isinstance(value, dict):
        leaves: list[_Stamp] = [(tuple(value), 0)]
        for each in value.values():
            if isinstance(each, Tensor):  # nearly all: without a call
                leaves.append((weakref.ref(each), None if each.is_inference() else each._version))
            else:
                leaves += _stamps(each)
        return leaves
    if isinstance(value, tuple | list):
        return [stamp for each in value for stamp in _stamps(each)]
    if type(value).__name__ in CLASSES:
        return [stamp for each in vars(value).values() for stamp in _stamps(each)]
    return [(value, 0)]


def _unchanged(old: list[_Stamp], new: list[_Stamp]) -> bool:
    return len(old) == len(new) and all(
        version is not None and version == other and (one is two or _equal(one, two))
        for (one, version), (two, other) in zip(old, new)
    )


def _equal(one: Any, two: Any) -> bool:
    # There is one weak reference per object, and == would compare the tensors' values.
    return not isinstance(one, weakref.ref) and type(one) is type(two) and bool(one == two)


def _range(value: Tensor | float) -> tuple[float, float]:
    """Lowest and highest value; NaN if there is one."""
    if not isinstance(value, Tensor):
        return float(value), float(value)
    lowest, highest = torch.aminmax(value.detach())
    return lowest.item(), highest.item()


def _check_names(
    who: str,
    given: dict[str, Any],
    whose: str,
    expected: dict[str, Any],
    role: str,
    *,
    some: bool = False,
) -> None:
    if not some and (missing := sorted(expected.keys() - given.keys())):
        raise ValueError(
            f"{who}: {role} lacks the tensor {missing[0]!r} that {whose} has"
            f"{naming_hint(missing[0], given)}"
        )
    if extra := sorted(given.keys() - expected.keys()):
        raise ValueError(f"{who}: {role} has a tensor {extra[0]!r} that {whose} lacks")


def _check_part(who: str, part: Part) -> None:
    value = part.value
    if not isinstance(value, Tensor):
        if part.shape or isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{who}: {part} must be a tensor, got {type(value).__name__}")
        return
    if not value.is_floating_point():
        raise ValueError(
            f"{who}: {part} is {_text(value.dtype)}; only floating-point tensors are merged: "
            f"leave integer buffers out and copy them from one model"
        )
    if value.dtype not in _DTYPES:
        raise ValueError(
            f"{who}: {part} is {_text(value.dtype)}; quantised weights can't be merged: give them "
            f"as {', '.join(map(_text, _DTYPES))}, dequantised"
        )
    if tuple(value.shape) != part.shape:
        raise ValueError(
            f"{who}: {part} has shape {tuple(value.shape)}, expected {part.shape} as of its mean"
        )


def _check_alike(
    who: str,
    parts: Iterable[Part],
    whose: str,
    reference: Mapping[tuple[str, str], Tensor | float],
) -> None:
    """Shape and device of the means, and all dtypes within one family, must be the same."""
    for part in parts:
        value, other = part.value, reference.get((part.role, part.name))
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            continue
        if part.role == "mean" and value.shape != other.shape:
            raise ValueError(
                f"{who}: {part} has shape {tuple(value.shape)}, but {whose} has "
                f"{tuple(other.shape)}"
            )
        if value.dtype != other.dtype and (part.role == "mean" or value.ndim):
            raise ValueError(
                f"{who}: {part} is {_text(value.dtype)}, but {whose} has {_text(other.dtype)}; "
                f"convert one of them"
            )
        if value.device != other.device and value.ndim:
            raise ValueError(
                f"{who}: {part} is on {value.device}, but {whose} is on {other.device}"
            )


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
