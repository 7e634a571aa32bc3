"""Means from checkpoints that are already there: Hugging Face, timm, LoRA adapters."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from optuna_merge.exceptions import CorruptFileError

PathLike = str | os.PathLike[str]

_ADAPTER = "adapter_config.json"
_PREFIX = "base_model.model."
_STATISTICS = (".running_mean", ".running_var")


def load_checkpoint(path: PathLike, *, base: PathLike | None = None) -> dict[str, Tensor]:
    """The parameters in a checkpoint, as a posterior's mean.

    For the precision run an estimator on them (`squared_gradients` and others), or take
    `IsotropicGaussian` for averaging. Left out, for they are not to be averaged: tensors that are
    not floating-point, and the running statistics of batch norms, which must be estimated anew for
    a merged model. Tied tensors are taken once, by their first name.

    Args:
        path: A Hugging Face folder (sharded or not), a safetensors file, a file of torch.save
            that holds tensors only (timm: its `state_dict`; nothing in it is executed), or a PEFT
            folder with a LoRA adapter.
        base: For an adapter the checkpoint that it was trained on; the result then is
            W + scaling B A for adapted weights, with the scaling alpha / r, or
            alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), and the base's other parameters.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: no such path, or no checkpoint in the folder.
        CorruptFileError: a file that can't be read.
        ValueError: an adapter without a base or the other way round, one that does not fit its
            base, or one that isn't W + B A (DoRA and others).
    """
    path = Path(path)
    adapter = (path / _ADAPTER).is_file()
    if adapter != (base is not None):
        raise ValueError(
            f"{path} is an adapter: give the checkpoint it was trained on as base"
            if adapter
            else f"{path} is no adapter (it has no {_ADAPTER}), but a base was given"
        )
    if base is None:
        return _parameters(_read(path))
    merged = load_checkpoint(base)
    config, tensors = _adapter(path)
    for name, update in _updates(path, config, tensors).items():
        place = _place(name, merged, path)
        weight = merged[place]
        if isinstance(update, Tensor):
            merged[place] = update
            continue
        a, b, scaling = update
        delta = (b.flatten(1).double() @ a.flatten(1).double()) * scaling
        if config.get("fan_in_fan_out") or name.endswith(".embedding"):
            delta = delta.T
        if delta.numel() != weight.numel():
            raise ValueError(
                f"{path}: the update of {place!r} has {delta.numel()} elements, but the base's "
                f"weight has {weight.numel()}; is it another base?"
            )
        merged[place] = (weight.double() + delta.reshape(weight.shape)).to(weight.dtype)
    return merged


def load_lora_factors(paths: Sequence[PathLike]) -> list[dict[str, Tensor]]:
    """The factors B of LoRA adapters that share their factors A, as posteriors' means.

    The product B A is linear in B alone, so merging B is exact if A was the same, frozen, in
    all runs. For other adapters merge the products: `load_checkpoint(path, base=...)`.

    Args:
        paths: PEFT folders, one per task.

    Returns:
        For each adapter its B by the name they have in the adapter's file.

    Raises:
        ValueError: names the adapter and the tensor whose A or scaling differs from the first's.
        FileNotFoundError, CorruptFileError: as `load_checkpoint`.
    """
    results: list[dict[str, Tensor]] = []
    reference: dict[str, tuple[Tensor, float]] = {}
    for path in map(Path, paths):
        config, tensors = _adapter(path)
        factors: dict[str, Tensor] = {}
        for name, update in _updates(path, config, tensors).items():
            if isinstance(update, Tensor):
                continue
            a, b, scaling = update
            known, known_scaling = reference.setdefault(name, (a, scaling))
            if not torch.equal(a, known) or scaling != known_scaling:
                raise ValueError(
                    f"{path}: the factor A or the scaling of {name!r} is not that of {paths[0]}; "
                    f"merge the products instead: load_checkpoint(path, base=...)"
                )
            factors[_b_name(name)] = b
        if results and factors.keys() != results[0].keys():
            raise ValueError(f"{path}: other layers are adapted than in {paths[0]}")
        results.append(factors)
    return results


_Update = tuple[Tensor, Tensor, float] | Tensor
"""A, B and the scaling of an adapted weight, or a tensor that is replaced as a whole."""


def _adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    file = path / "adapter_model.safetensors"
    if not (path / _ADAPTER).is_file() or not file.is_file():
        raise FileNotFoundError(f"{path} lacks {_ADAPTER} or adapter_model.safetensors")
    config = json.loads((path / _ADAPTER).read_text())
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path} is an adapter of type {kind}; only LORA is supported")
    for option, what in (
        ("use_dora", "DoRA scales the columns of W + B A"),
        ("alpha_pattern", "scalings that differ by layer"),
        ("layer_replication", "replicated layers"),
        ("megatron_config", "Megatron's parallel layers"),
        ("target_parameters", "adapted parameters outside of modules"),
        ("use_qalora", "QALoRA pools its inputs"),
        ("trainable_token_indices", "replaced rows of the embedding"),
        ("lora_bias", "biases of B"),
    ):
        if config.get(option):
            raise ValueError(f"{path}: {option} is not supported ({what})")
    return config, _read(file)


def _updates(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, _Update]:
    updates: dict[str, _Update] = {}
    for key, tensor in tensors.items():
        # Biases of adapted layers are kept under the layer that the adapter wraps.
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if ".lora_" not in name:
            updates[name] = tensor
            continue
        module, part = name.split(".lora_", 1)
        embedding = part.startswith("embedding_")
        if part.removeprefix("embedding_").removesuffix(".weight") not in ("A", "B"):
            raise ValueError(f"{path}: {key!r} is not a factor A or B of LoRA")
        if not part.removeprefix("embedding_").startswith("A"):
            continue
        other = tensors.get(
            key.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
        )
        if other is None:
            raise CorruptFileError(f"{path}: {key!r} has no factor B")
        rank = tensor.shape[0]
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        scaling = config["lora_alpha"] / root
        updates[f"{module}.embedding" if embedding else f"{module}.weight"] = (
            tensor,
            other,
            scaling,
        )
    return updates


def _place(name: str, base: Mapping[str, Tensor], path: Path) -> str:
    """The base's name of an adapted weight: heads and prefixes may be there or not."""
    name = name.removesuffix(".embedding") + ".weight" if name.endswith(".embedding") else name
    if name in base:
        return name
    endings = [own for own in base if name.endswith(f".{own}") or own.endswith(f".{name}")]
    if len(endings) != 1:
        raise ValueError(
            f"{path}: the base has no tensor {name!r}; is it another base? (a head that is "
            f"trained as a whole must be in the base's checkpoint)"
        )
    return endings[0]


def _b_name(name: str) -> str:
    if name.endswith(".embedding"):
        return f"{_PREFIX}{name.removesuffix('.embedding')}.lora_embedding_B"
    return f"{_PREFIX}{name.removesuffix('.weight')}.lora_B.weight"


def _parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or name.endswith(_STATISTICS):
            continue
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if identity in seen and tensor.numel():
            continue
        seen.add(identity)
        kept[name] = tensor
    return kept


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint that is no adapter."""
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {k: v for shard in shards for k, v in _read(path / shard).items()}
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (path / name).is_file():
                return _read(path / name)
        raise FileNotFoundError(f"{path} has no model.safetensors, index or pytorch_model.bin")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptFileError(f"{path} is truncated or damaged: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is damaged, or holds more than tensors, which is not executed: convert it to "
            f"safetensors ({str(error)[:80]})"
        ) from error
    for key in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CorruptFileError(f"{path} holds no dict of tensors")
    return dict(content)
