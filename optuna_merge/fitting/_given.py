"""The parameters of a given checkpoint as those of the model that is trained, or why not.

By names, shapes, frozen parameters, and numbers: how near both are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from optuna_merge._base.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    is_adapter,
    naming_hint,
    same_shapes,
    tensor_files,
)
from optuna_merge._base.files import sha256_file
from optuna_merge.models import MultitaskModel
from optuna_merge.posteriors import load_checkpoint

_BODY = "body."
_WRAPPED = "base_model.model."
_OTHER_BASE = "is it a checkpoint of another base?"
_SCALING = ("lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "use_dora", "lora_bias")


def given_parameters(
    task: str, path: Path, model: Any, names: Sequence[str], *, any_base: bool = False
) -> dict[str, Tensor]:
    """The trained parameters (of these names) of a given checkpoint, by the names of the model.

    What the model keeps frozen must be equal in the checkpoint, as far as it is in there. What is
    trained must have something in common with the model, unless `any_base`.
    """
    where = f"runs: task {task!r}: {path}"
    adapted = getattr(model, "peft_config", None) is not None
    if is_adapter(path) != adapted:
        raise ValueError(
            f"{where} is an adapter, but the model that is trained has none; train one of the "
            f"same LoraConfig, or give the model with the adapter in it: "
            f"model.merge_and_unload().save_pretrained(...)"
            if not adapted
            else f"{where} is no adapter's folder (it has no {ADAPTER_CONFIG}), but an adapter is "
            f"trained"
        )
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if adapted:
        found = _of_adapter(where, path, model)
    else:
        found = load_checkpoint(path)
        known = model.state_dict().keys()
        if unknown := next((name for name in found if name not in known), None):
            raise ValueError(
                f"{where}: the model that is trained has no {unknown!r}"
                f"{naming_hint(unknown, known)}; {_OTHER_BASE}"
            )
    expected = {name: p for name, p in own.items() if name in names or name in found}
    for name, tensor in same_shapes(where, found, expected, f"; {_OTHER_BASE}").items():
        if name not in names and not torch.equal(tensor.to(own[name].dtype), own[name].cpu()):
            told = _OTHER_BASE
            if re.search(r"\.lora_(embedding_)?A\.", name):
                told = (
                    "all runs share one factor A here. Adapters that have their own are given to "
                    "from_trainer(..., runs=...) with a model of which both factors are trained"
                )
            raise ValueError(
                f"{where}: {name!r} is not that of the model that is trained, which keeps it "
                f"frozen; {told}"
            )
    if not adapted and not any_base:
        check_base(where, found, own)
    return {name: found[name].to(own[name].dtype) for name in names}


def given_state(
    task: str, path: Path, model: MultitaskModel, *, any_base: bool = False
) -> dict[str, Tensor]:
    """The same for the own loop's model, of its body's checkpoint or of a file with its names."""
    names = model.trained_names([task])
    if path.is_file():
        tensors = load_checkpoint(path)
        if any(name in tensors for name in names):
            where = f"runs: task {task!r}: {path}"
            parameters = dict(model.named_parameters())
            found = same_shapes(where, tensors, {name: parameters[name] for name in names})
            if not any_base:
                body = {name: tensor for name, tensor in found.items() if name.startswith(_BODY)}
                check_base(where, body, parameters)
            return found
    if heads := [name for name in names if not name.startswith(_BODY)]:
        raise ValueError(
            f"runs: task {task!r}: {path} has no {heads[0]!r}: where tasks have heads, a given "
            f"run of the own training loop is a file with the names of this model, such as "
            f"finetunes/.../model.safetensors of another working folder; classifiers of "
            f"transformers are given to from_trainer(..., runs=...)"
        )
    places = {name.removeprefix(_BODY): name for name in names}
    found = given_parameters(task, path, model.body, list(places), any_base=any_base)
    return {places[name]: tensor for name, tensor in found.items()}


def _of_adapter(where: str, path: Path, model: Any) -> dict[str, Tensor]:
    """The tensors of an adapter's file, by the names that they have in the model."""
    from peft import get_peft_model_state_dict

    wrapped = hasattr(model, "get_base_model")  # a PeftModel, and no body with layers injected
    name = model.active_adapter if wrapped else next(iter(model.peft_config))
    _check_config(where, path, model.peft_config[name])
    found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    expected = found if wrapped else {_WRAPPED + key: tensor for key, tensor in found.items()}
    places = {p.data_ptr(): name for name, p in model.named_parameters() if p.numel()}
    file = path / ADAPTERS[0]
    if not file.is_file():
        raise FileNotFoundError(f"{where} has no {ADAPTERS[0]}")
    tensors = load_file(file)
    for key in expected:
        if key not in tensors:
            raise ValueError(
                f"{where} has no {key!r}{naming_hint(key, tensors)}; was it made by another "
                f"LoraConfig, or {_OTHER_BASE}"
            )
    if more := sorted(tensors.keys() - expected.keys()):
        raise ValueError(
            f"{where}: the adapter that is trained has no {more[0]!r}"
            f"{naming_hint(more[0], expected)}; was it made by another LoraConfig, or "
            f"{_OTHER_BASE}"
        )
    return {places[tensor.data_ptr()]: tensors[key] for key, tensor in expected.items()}


def _check_config(where: str, path: Path, config: Any) -> None:
    """See that an adapter is of the same base, and that its factors mean the same."""
    about = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    for name in _SCALING:
        one, other = about.get(name), getattr(config, name, None)
        if (one or None) != (other or None):
            raise ValueError(
                f"{where}: {name} is {one}, but {other} in the adapter that is trained, so that "
                f"its factors mean something else; train one of the same LoraConfig"
            )
    one, other = about.get("base_model_name_or_path"), config.base_model_name_or_path
    if one and other and not _same_base(str(one), str(other)):
        raise ValueError(
            f"{where}: its base is {one!r}, but {other!r} is that of the adapter that is "
            f"trained; is it an adapter of another base? Where both are the same model, write "
            f"its name into {ADAPTER_CONFIG}"
        )


def _same_base(one: str, other: str) -> bool:
    """By the files' hashes where both are folders, else by the last part of the name."""
    if one == other:
        return True
    if Path(one).is_dir() and Path(other).is_dir():
        return _hashes(Path(one)) == _hashes(Path(other))
    return Path(one).name.lower() == Path(other).name.lower()


def _hashes(folder: Path) -> list[str]:
    return [sha256_file(file) for file in tensor_files(folder, pickles=True)]


UNRELATED = 0.1
"""Median cosine below which two models count as of different bases; see studies/bases.py."""


def median_cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float | None:
    """The median cosine of the matrices that both have, each taken as a vector; None without one.

    A finetune keeps it near 1; of two independent starts it is near 0. Vectors are left out: those
    of norms are near 1, and biases near 0, in any model. So are matrices that are zero in one, as
    those are that an adapter begins with.
    """
    cosines = []
    for name, tensor in one.items():
        if tensor.ndim > 1 and name in other:
            a, b = (t.detach().flatten().double().cpu() for t in (tensor, other[name]))
            norms = float(a.norm() * b.norm())
            if norms > 0:
                cosines.append(float(a @ b) / norms)
    return median(cosines) if cosines else None


def check_base(where: str, found: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """See that a checkpoint may be a finetune of the base, by its numbers."""
    cosine = median_cosine(found, base)
    if cosine is not None and cosine < UNRELATED:
        raise ValueError(
            f"{where}: its matrices have nothing in common with those of the model that is "
            f"trained (the median of their cosines is {cosine:.2f}, of a finetune it is near 1), "
            f"so it is of another base, and a merge of both is no model. If it is of this base "
            f"all the same, give optuna_merge.definition.GivenRun(path, any_base=True)"
        )
