"""Merges from checkpoint to checkpoint: model folders, safetensors files, LoRA adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from optuna_merge._base.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    copy_side_files,
    is_adapter,
    tensor_files,
)
from optuna_merge._base.files import json_hash, sha256_file
from optuna_merge._base.tensors import opened
from optuna_merge.exceptions import ProgramError
from optuna_merge.merging import merge_files
from optuna_merge.trainers._adapters import has_products, merge_products

_FIXED = {
    "rank_pattern": "ranks by layer",
    "alpha_pattern": "scalings by layer",
    "use_dora": "DoRA",
    "lora_bias": "biases of B",
}


def checkpoint_hash(path: Path) -> str:
    """A hash of the tensors' files of a checkpoint."""
    try:
        return json_hash([sha256_file(file) for file in tensor_files(path)])
    except FileNotFoundError as error:
        raise ProgramError(
            f"the training has left no checkpoint in {path}: {error}. Expected there is a folder "
            f"as save_pretrained writes it, or a safetensors file; write it to {{checkpoint}}"
        ) from error


def merge_checkpoints(
    paths: Mapping[str, Path], weights: Mapping[str, float], output: Path
) -> None:
    """Write the weighted sum of checkpoints that are alike; of adapters that of the updates."""
    used = {task: path for task, path in paths.items() if weights[task]}
    output.parent.mkdir(parents=True, exist_ok=True)
    if any(map(is_adapter, used.values())):
        _merge_adapters(used, weights, output)
    else:
        merge_files(used, {task: weights[task] for task in used}, output)


def check_alike(paths: Mapping[str, Path]) -> None:
    """See that checkpoints can be merged: of one kind, with tensors of equal names and shapes.

    Those of whole models are merged from file to file, and so have equal dtypes, too.
    """
    if len(paths) < 2:
        return
    (first, path), *others = paths.items()
    kind = is_adapter(path)
    shapes = _shapes(path, dtypes=not kind)
    for task, other in others:
        where = f"task {task!r} ({other})"
        if is_adapter(other) != kind:
            words = ("no adapter", "an adapter")
            raise ValueError(
                f"{where} is {words[not kind]}, but that of task {first!r} is {words[kind]}; "
                f"checkpoints of one kind are merged"
            )
        if kind:
            one, two = _plain_config(path), _plain_config(other)
            if differs := [name for name in one if one[name] != two[name]]:
                name = differs[0]
                raise ValueError(
                    f"{where} is an adapter with {name} {two[name]!r}, but that of task {first!r} "
                    f"has {one[name]!r}; adapters of one base and one configuration are merged"
                )
        found = _shapes(other, dtypes=not kind)
        for name in shapes | found:
            if found.get(name) != shapes.get(name):
                told = [of.get(name, "missing") for of in (found, shapes)]
                raise ValueError(
                    f"{where}: {name!r} is {told[0]}, but {told[1]} in that of task {first!r}; "
                    f"are they finetuned from one base, and saved in one dtype?"
                )


def _shapes(path: Path, *, dtypes: bool) -> dict[str, str]:
    """By name the shape of each tensor, and its dtype, in words."""
    shapes = {}
    for file in tensor_files(path):
        with opened(file) as found:
            for name in found.keys():  # noqa: SIM118
                tensor = found.get_slice(name)
                shape = str(tuple(tensor.get_shape()))
                shapes[name] = f"{tensor.get_dtype()} {shape}" if dtypes else shape
    return shapes


def _merge_adapters(paths: Mapping[str, Path], weights: Mapping[str, float], output: Path) -> None:
    first = next(iter(paths.values()))
    config = _plain_config(first)
    states = [load_file(path / ADAPTERS[0]) for path in paths.values()]
    merged = merge_products(states, [weights[task] for task in paths])
    about: dict[str, Any] = json.loads((first / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if has_products(list(merged)):  # alpha / r stays as it is, or alpha / sqrt(r)
        factor = math.sqrt(len(paths)) if config["use_rslora"] else len(paths)
        about |= {"r": about["r"] * len(paths), "lora_alpha": about["lora_alpha"] * factor}
    output.mkdir()
    copy_side_files(first, output)
    (output / ADAPTER_CONFIG).write_text(json.dumps(about, indent=2), encoding="utf-8")
    save_file(merged, output / ADAPTERS[0], {"format": "pt"})


def _plain_config(path: Path) -> dict[str, Any]:
    """What must be equal in all adapters, which are plain LoRA."""
    about = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if about.get("peft_type") != "LORA":
        raise ProgramError(f"{path} is a {about.get('peft_type')} adapter; only LORA is merged")
    for option, what in _FIXED.items():
        if about.get(option):
            raise ProgramError(f"{path}: an adapter with {option} ({what}) can't be merged here")
    read = ("r", "lora_alpha", "target_modules", "modules_to_save", "base_model_name_or_path")
    found = {name: about.get(name) for name in read} | {
        "use_rslora": bool(about.get("use_rslora"))
    }
    if isinstance(found["target_modules"], list):
        found["target_modules"] = sorted(found["target_modules"])
    return found
