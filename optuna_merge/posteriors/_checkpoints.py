"""Means from checkpoints that are already there: Hugging Face, timm, LoRA adapters."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from optuna_merge.exceptions import CorruptFileError

PathLike = str | os.PathLike[str]

_ADAPTER = "adapter_config.json"
_PREFIX = "base_model.model."
_REFUSED = {
    "alora_invocation_tokens": "it adapts some tokens only",
    "arrow_config": "it chooses among adapters for every token",
    "kasa_config": "it cuts the base's singular values",
    "layer_replication": "replicated layers",
    "lora_bias": "biases of B",
    "megatron_config": "Megatron's parallel layers",
    "monteclora_config": "its factors are random",
    "target_parameters": "adapted parameters outside of modules",
    "trainable_token_indices": "replaced rows of the embedding",
    "use_bdlora": "factors of blocks",
    "use_qalora": "it pools its inputs",
    "velora_config": "it keeps more than factors",
}
_OTHER_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
_STATISTICS = (".running_mean", ".running_var")


def load_checkpoint(path: PathLike, *, base: PathLike | None = None) -> dict[str, Tensor]:
    """The parameters in a checkpoint, as a posterior's mean.

    For the precision run an estimator on them (`squared_gradients` and others), or take
    `IsotropicGaussian` for averaging. Left out, for they are not to be averaged: tensors that are
    not floating-point, and the running statistics of batch norms, which must be estimated anew for
    a merged model (`optuna_merge.merging.reestimate_batch_norm`). Tied tensors are taken once, by
    their first name.

    Args:
        path: A Hugging Face folder (sharded or not), a safetensors file, a file of torch.save
            that holds tensors only (timm: its `state_dict`; nothing in it is executed), or a PEFT
            folder with a LoRA adapter.
        base: For an adapter the checkpoint that it was trained on; the result then is
            W' = W + scaling B A for adapted weights, with the scaling alpha / r, or
            alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), and the base's other parameters. Of a
            DoRA adapter (arXiv 2402.09353, eq. 5) it is m W' / |W'|, with the norms of the rows
            that belong to one output each. Tensors that were tied in the base stay tied, also
            where the adapter trained one of them as a whole.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: no such path, or no checkpoint in the folder.
        CorruptFileError: a file that can't be read.
        ValueError: an adapter without a base or the other way round, one that does not fit its
            base, or one that isn't of these forms: the message names the option.
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
    adapter_config, tensors = _adapter(path)
    # First what replaces whole tensors: embeddings may have been resized before they were adapted.
    for name, tensor in _parameters(_replaced(tensors)).items():
        merged[_place(name, merged, path)] = tensor
    updates = {
        _place(f"{module}.weight", merged, path): update
        for module, update in _updates(path, adapter_config, tensors).items()
    }
    transposed = _transposed(path, merged, updates, bool(adapter_config.get("fan_in_fan_out")))
    for place, update in updates.items():
        merged[place] = update.applied(merged[place], transposed[place])
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
        for module, update in _updates(path, config, tensors).items():
            if update.magnitude is not None:
                raise ValueError(
                    f"{path}: DoRA's weights are not linear in B; merge the products instead: "
                    f"load_checkpoint(path, base=...)"
                )
            known, known_scaling = reference.setdefault(module, (update.a, update.scaling))
            if not torch.equal(update.a, known) or update.scaling != known_scaling:
                name = f"{module}.weight"
                raise ValueError(
                    f"{path}: the factor A or the scaling of {name!r} is not that of {paths[0]}; "
                    f"merge the products instead: load_checkpoint(path, base=...)"
                )
            part = "lora_embedding_B" if update.embedding else "lora_B.weight"
            factors[f"{_PREFIX}{module}.{part}"] = update.b
        if results and factors.keys() != results[0].keys():
            raise ValueError(f"{path}: other layers are adapted than in {paths[0]}")
        results.append(factors)
    return results


@dataclass(frozen=True)
class _Update:
    """What an adapter does to one weight: factors (rank, in) and (out, rank), DoRA's magnitudes.

    Embeddings have one row per token and are "in" by "out"; their factors are as others'.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs, those of a convolution's kernel multiplied."""
        return self.b.shape[0], self.a.flatten(1).shape[1]

    def applied(self, weight: Tensor, transposed: bool) -> Tensor:
        product = self.b.flatten(1).double() @ self.a.flatten(1).double()
        matrix = weight.flatten(1).double()
        adapted = (matrix.T if transposed else matrix) + self.scaling * product
        if self.magnitude is not None:
            norms = torch.linalg.vector_norm(adapted, dim=1, keepdim=True)
            adapted = self.magnitude.double().reshape(-1, 1) * adapted / norms
        return (adapted.T if transposed else adapted).reshape(weight.shape).to(weight.dtype)


def _adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    file = path / "adapter_model.safetensors"
    if not (path / _ADAPTER).is_file() or not file.is_file():
        raise FileNotFoundError(f"{path} lacks {_ADAPTER} or adapter_model.safetensors")
    config = json.loads((path / _ADAPTER).read_text())
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path} is an adapter of type {kind}; only LORA is supported")
    for option, what in _REFUSED.items():
        if config.get(option):
            raise ValueError(f"{path}: {option} is not supported ({what})")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
        raise ValueError(
            f"{path}: init_lora_weights={start!r} is not supported (it changes the base's weights "
            f"before training); save it as an ordinary adapter: "
            f"save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    return config, _read(file)


def _replaced(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the adapter has as a whole: trained heads and biases, saved embeddings."""
    # What belongs to an adapted layer is kept under the layer that the adapter wraps.
    return {
        key.removeprefix(_PREFIX).replace(".base_layer.", "."): tensor
        for key, tensor in tensors.items()
        if ".lora_" not in key
    }


def _updates(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, _Update]:
    """The adapted weights, by the names of their modules."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if ".lora_" not in key:
            continue
        module, part = key.removeprefix(_PREFIX).replace(".base_layer.", ".").split(".lora_", 1)
        part = part.removesuffix(".weight")
        if part.removeprefix("embedding_") not in ("A", "B", "magnitude_vector"):
            raise ValueError(
                f"{path}: {key!r} is neither a factor of LoRA nor a magnitude of DoRA"
            )
        parts.setdefault(module, {})[part] = tensor
    updates: dict[str, _Update] = {}
    for module, found in parts.items():
        embedding = any(part.startswith("embedding_") for part in found)
        prefix = "embedding_" if embedding else ""
        a, b, magnitude = (
            found.get(part) for part in (f"{prefix}A", f"{prefix}B", "magnitude_vector")
        )
        if a is None or b is None:
            raise CorruptFileError(f"{path}: {module!r} has no factor {'B' if b is None else 'A'}")
        if config.get("use_dora") and magnitude is None:
            raise CorruptFileError(f"{path}: {module!r} has no magnitudes, though DoRA's are used")
        rank = a.shape[0]
        alpha = _of_pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        updates[module] = _Update(a, b, scaling, magnitude, embedding)
    return updates


def _of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that the module's name ends with, as PEFT has it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _transposed(
    path: Path, base: Mapping[str, Tensor], updates: Mapping[str, _Update], flag: bool
) -> dict[str, bool]:
    """Which weights are "in" by "out", by their shapes; square ones as the flag says.

    PEFT has one flag for all layers of an adapter, which a model with layers of both kinds sets
    to that of the last one.
    """
    found: dict[str, bool | None] = {}
    for place, update in updates.items():
        shape, own = update.shape, tuple(base[place].flatten(1).shape)
        if own not in (shape, shape[::-1]):
            raise ValueError(
                f"{path}: the update of {place!r} is of {shape[0]} outputs and {shape[1]} inputs, "
                f"but the base's weight has shape {tuple(base[place].shape)}; is it another base?"
            )
        unclear = shape[0] == shape[1] and base[place].ndim == 2 and not update.embedding
        found[place] = None if unclear else own != shape or update.embedding
    kinds = {kind for place, kind in found.items() if not updates[place].embedding}
    for place, kind in found.items():
        if kind is None and not kinds <= {None, flag}:
            raise ValueError(
                f"{path}: fan_in_fan_out is {flag}, but that isn't so for all adapted layers, and "
                f"of the square weight {place!r} it can't be told"
            )
    return {place: flag if kind is None else kind for place, kind in found.items()}


def _place(name: str, base: Mapping[str, Tensor], path: Path) -> str:
    """The base's name of an adapted weight: heads and prefixes may be there or not."""
    if name in base:
        return name
    endings = [own for own in base if name.endswith(f".{own}") or own.endswith(f".{name}")]
    if len(endings) != 1:
        raise ValueError(
            f"{path}: the base has no tensor {name!r}; is it another base? (a head that is "
            f"trained as a whole must be in the base's checkpoint)"
        )
    return endings[0]


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
            for shard in shards:
                if Path(shard).name != shard:
                    raise CorruptFileError(f"{index} names a file outside its folder: {shard!r}")
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
