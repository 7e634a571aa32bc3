"""Means from checkpoints that are already there: Hugging Face, timm, LoRA adapters."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_merge._base.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    is_adapter,
    model_config,
    naming_hint,
)
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.posteriors._model_files import (
    check_ordinary,
    is_parameter,
    read_model,
    read_tensors,
)

PathLike = str | os.PathLike[str]

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

# Which models' output layer may be the embedding itself, by PEFT's types of tasks and by the
# names of transformers' classes.
_LANGUAGE_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_LANGUAGE_CLASS = re.compile(
    r"LM$|LMHead|DoubleHeads|ConditionalGeneration|PreTraining|EncoderDecoder|MTModel"
)
_EMBEDDING = re.compile(r"(^|\.)(wte|shared|\w*emb\w*|word\w*)\.weight$")
_OTHER_EMBEDDING = re.compile(r"pos|type|\.\d+\.")
_OUTPUT = "its output layer"


def load_checkpoint(path: PathLike, *, base: PathLike | None = None) -> dict[str, Tensor]:
    """The parameters in a checkpoint, as a posterior's mean.

    Left out, for they are not to be averaged: tensors that are not floating-point, and the running
    statistics of batch norms (`optuna_merge.merging.reestimate_batch_norm`). Tied tensors are
    taken once, by their first name. Of a folder those files are read that transformers would load:
    model.safetensors before the index of shards, both before pytorch_model.bin; and of an adapter
    adapter_model.safetensors before adapter_model.bin. Names are those in the files.

    Args:
        path: A Hugging Face folder (sharded or not), a safetensors file or an index of shards, a
            file of torch.save that holds tensors only (timm: its `state_dict`; nothing in it is
            executed), or a PEFT folder with a LoRA adapter.
        base: For an adapter the checkpoint that it was trained on; the result then is
            W' = W + scaling B A for adapted weights, with the scaling alpha / r, or
            alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), and the base's other parameters. Of a
            DoRA adapter (arXiv 2402.09353, eq. 5) it is m W' / |W'|, with the norms of the rows
            that belong to one output each. Where the base's output layer is its embedding (tied),
            the adapter must leave them equal.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: no such path, no checkpoint in the folder, or a shard is missing.
        CorruptFileError: a file that can't be read, or that lacks what its index names.
        ValueError: an adapter without a base or the other way round, one that does not fit it, or
            one that isn't of these forms; quantised weights; a posterior's file.
    """
    path = Path(path)
    if is_adapter(path) != (base is not None):
        if base is None:
            raise ValueError(
                f"{path} is an adapter: give the checkpoint it was trained on as base"
            )
        raise ValueError(
            f"{path} is no adapter's folder (it has no {ADAPTER_CONFIG}), but a base was given"
        )
    if base is None:
        return read_model(path)[0]
    if is_adapter(Path(base)):
        raise ValueError(
            f"the base {base} is an adapter itself; give a whole checkpoint, for instance the "
            f"tensors of load_checkpoint({str(base)!r}, base=...) saved with safetensors"
        )
    parameters, ties = read_model(Path(base))
    adapter_config, tensors = _adapter(path)
    replaced = {name: t for name, t in _replaced(tensors).items() if is_parameter(name, t)}
    updates = _updates(path, adapter_config, tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in replaced.items()}
    for module, update in updates.items():
        shapes[f"{module}.weight"] = update.shape[::-1] if update.embedding else update.shape
    ties |= _tied_outputs(Path(base), parameters, ties, adapter_config, shapes)
    merged = parameters | {alias: parameters[kept] for alias, kept in ties.items()}
    # First what replaces whole tensors: embeddings may have been resized before they were adapted.
    for name, tensor in replaced.items():
        merged[_place(name, merged, path)] = tensor
    placed = {
        _place(f"{module}.weight", merged, path): update for module, update in updates.items()
    }
    transposed = _transposed(path, merged, placed, bool(adapter_config.get("fan_in_fan_out")))
    for place, update in placed.items():
        merged[place] = update.applied(merged[place], transposed[place])
    _check_ties(path, merged, ties)
    return {name: merged[name] for name in parameters}


@dataclass(frozen=True)
class _Update:
    """What an adapter does to one weight: factors (rank, in), (out, rank), DoRA's magnitudes."""

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
    files = [path / name for name in ADAPTERS if (path / name).is_file()]
    if not is_adapter(path) or not files:
        raise FileNotFoundError(f"{path} lacks {ADAPTER_CONFIG} or {ADAPTERS[0]}")
    try:
        config = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{path / ADAPTER_CONFIG} is no JSON: {error}") from error
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
    tensors, _ = read_tensors(files[0])
    check_ordinary(path, tensors)
    return config, tensors


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

    PEFT has one flag for an adapter's layers, of models with both kinds that of the last layer.
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
    found = _places(name, base)
    if len(found) != 1:
        raise ValueError(
            f"{path}: the base has no tensor {name!r}{naming_hint(name, base)}; is it another "
            f"base? (a head that is trained as a whole must be in the base's checkpoint)"
        )
    return found[0]


def _places(name: str, base: Iterable[str]) -> list[str]:
    names = list(base)
    if name in names:
        return [name]
    return [own for own in names if name.endswith(f".{own}") or own.endswith(f".{name}")]


def _tied_outputs(
    path: Path,
    base: Mapping[str, Tensor],
    ties: Mapping[str, str],
    adapter_config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """A language model's output layers that are its embedding itself, to the embedding's name.

    They are named as in the adapter (whose changes have the `shapes`), as in the base, or by no
    name that is known.
    """
    config = model_config(path)
    tied = config.get("tie_word_embeddings")
    if tied is False or not _is_language_model(config, adapter_config):
        return {}
    text = config.get("text_config")
    tokens = (text if isinstance(text, dict) else config).get("vocab_size")
    matrices = {
        name: tensor
        for name, tensor in base.items()
        if tensor.ndim == 2 and not _OTHER_EMBEDDING.search(name)
        if tokens is None or tensor.shape[0] == tokens
    }
    embedding = next(filter(_EMBEDDING.search, matrices), None)
    if embedding is None or embedding in ties.values():
        return {}
    alike = [
        name
        for name, tensor in matrices.items()
        if name != embedding and tensor.shape == base[embedding].shape
    ]
    if alike:  # one of them is the output layer
        both = tied and all(torch.equal(base[name], base[embedding]) for name in alike)
        return dict.fromkeys(alike, embedding) if both else {}
    fitting = {tuple(base[embedding].shape), *(shapes[n] for n in _places(embedding, shapes))}
    absent = [name for name in shapes if not _places(name, base) and shapes[name] in fitting]
    return dict.fromkeys(absent or [_OUTPUT], embedding)


def _check_ties(path: Path, merged: Mapping[str, Tensor], ties: Mapping[str, str]) -> None:
    """Refuse an adapter after which tensors differ that are one in the base."""
    for alias, kept in ties.items():
        if not _equal(merged[alias], merged[kept]):
            raise ValueError(
                f"{path}: {kept!r} and {alias if alias == _OUTPUT else repr(alias)} are one "
                f"tensor in the base (tied), which the adapter makes two: give as base a "
                f"checkpoint that holds both (in transformers: load it, set "
                f"model.config.tie_word_embeddings = False, give the output layer a clone of its "
                f"weight, save_pretrained), or train both as one (ensure_weight_tying=True, where "
                f"PEFT follows it)"
            )


def _is_language_model(config: Mapping[str, Any], adapter_config: Mapping[str, Any]) -> bool:
    """Whether the adapted model has an output for every token, by what is known of its class."""
    if task := adapter_config.get("task_type"):
        return task in _LANGUAGE_TASKS
    own = (adapter_config.get("auto_mapping") or {}).get("base_model_class")
    names = [own] if own else config.get("architectures") or []
    return any(_LANGUAGE_CLASS.search(name) for name in names)


def _equal(one: Tensor, two: Tensor) -> bool:
    """Whether they are the same but for rounding: tied factors are multiplied in two orders."""
    if one.shape != two.shape:
        return False
    largest = one.abs().max().double() if one.numel() else torch.zeros(())
    difference = (one.double() - two.double()).abs()
    return bool((difference <= 4 * torch.finfo(one.dtype).eps * largest).all())
