"""Checkpoints on disk: which files hold the tensors, and what can't be merged, by their names.

Shared by `load_checkpoint`, which reads tensors, and `merge_files`, which reads headers.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from optuna_merge.exceptions import CorruptFileError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""The files of a PEFT folder, in the order in which PEFT looks for them."""

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_SIDE_FILES = (".json", ".txt", ".model", ".jinja")
_TENSORS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
PICKLE = (
    "files of torch.save are not merged from disk to disk; convert it to safetensors, by "
    "from_pretrained and save_pretrained, or by "
    "safetensors.torch.save_file(load_checkpoint(...), ...)"
)

# Types in the words of safetensors and of torch.
_NUMBERS = re.compile(r"(B?F|b?float)(16|32|64)|BOOL|bool|C64|complex(32|64|128)")
_WHOLE_NUMBERS = re.compile(r"(?:[IU]|u?int)(8|16|32|64)")

# GPTQ, AWQ and compressed-tensors have packed weights, bitsandbytes its states.
_QUANTISED = re.compile(
    r"(^|\.)(qweight|qzeros|weight_packed|(nested_)?absmax|(nested_)?quant_map|SCB)$"
    r"|\.quant_state\."
)
_INTEGER_WEIGHT = re.compile(r"weight(\._data)?$")
_MASK = re.compile(r"mask|bias$")  # GPT-2's causal mask is a buffer of bytes, "attn.bias"

# What adapters add to a module, as PEFT, diffusers and LyCORIS name it.
_PART = re.compile(
    r"(?:^|\.)((?:lora|hada|lokr|ia3|vera_lambda|oft|boft|adaption|trainable_tokens)_\w+)"
    r"|(?:^|\.)(lora\.(?:up|down))\b"
)
_WRAPPED = "base_model.model."
"""What PEFT writes before all names of an adapter, and of a model that it wraps."""

_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel",
    "_fsdp_wrapped_module.": "FSDP",
}


def is_adapter(path: Path) -> bool:
    """Whether a checkpoint is a PEFT folder."""
    return (path / ADAPTER_CONFIG).is_file()


def tensor_files(path: Path, *, pickles: bool = False) -> list[Path]:
    """The files of a checkpoint, an adapter's among them."""
    return [path / ADAPTERS[0]] if is_adapter(path) else find_files(path, pickles=pickles)[0]


def find_files(path: Path, *, pickles: bool) -> tuple[list[Path], dict[str, str]]:
    """The files that transformers would load, and by an index' word the file of each tensor.

    In a folder the first of these: what `transformers_weights` of its config.json names,
    model.safetensors, its index, and with `pickles` pytorch_model.bin, its index. Later files
    replace tensors of earlier ones.
    """
    if path.is_dir():
        return find_files(_in_folder(path, pickles=pickles), pickles=pickles)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".gguf":
        raise ValueError(f"{path} is a file of llama.cpp: {_UNQUANTISED}")
    if path.suffix != ".json":
        return [path], {}
    try:
        index = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        shards = sorted(set(index.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} is not an index of files of tensors") from error
    if outside:
        raise CorruptFileError(f"{path} names a file outside its folder: {outside[0]!r}")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(shards)} files, of which {len(missing)} are not there, for "
            f"instance {missing[0]}: copy the checkpoint again, with all of its files"
        )
    return [path.parent / shard for shard in shards], index


def _in_folder(folder: Path, *, pickles: bool) -> Path:
    named: object = model_config(folder).get("transformers_weights")
    if isinstance(named, str):
        if named != Path(named).name:
            raise CorruptFileError(f"{folder / 'config.json'} names a file outside: {named!r}")
        return folder / named
    for name in _SAFE + _PICKLES if pickles else _SAFE:
        if (folder / name).is_file():
            return folder / name
    lacks = f"{folder} has no model.safetensors and no model.safetensors.index.json"
    for name in _PICKLES:
        if (folder / name).is_file():  # only where pickles won't do
            raise FileNotFoundError(f"{lacks}, but {name}: {PICKLE}")
    lacks += ", and no pytorch_model.bin" if pickles else ""
    found = sorted(file.name for file in folder.iterdir() if file.suffix in _TENSORS)
    raise FileNotFoundError(lacks + (f"; it has {', '.join(found[:5])}" if found else ""))


def is_pickle(file: Path) -> bool:
    """Whether a file begins as torch.save's do: a zip archive, or a plain pickle."""
    with file.open("rb") as stream:
        start = stream.read(9)
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[8:9] != b"{")


def model_config(path: Path) -> dict[str, Any]:
    """The config.json of a folder, or of the folder that a file is in; empty without one."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{file} is no JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def check_index(path: Path, index: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuse a checkpoint of which no file holds a tensor that the index names."""
    missing = sorted(index.keys() - set(names))
    if missing:
        raise CorruptFileError(
            f"{path}: the index says that {index[missing[0]]} holds {missing[0]!r}, but no file "
            f"does ({len(missing)} tensors are missing); the index and the files are not of one "
            f"save: save the checkpoint again, into an empty folder"
        )


def check_unquantised_folder(path: Path) -> None:
    """Refuse a folder whose configuration says that its weights are quantised."""
    if not path.is_dir():
        return
    config = model_config(path)
    nested = [value for value in config.values() if isinstance(value, dict)]
    for each in (config, *nested):
        for key in ("quantization_config", "compression_config"):
            if method := each.get(key):
                name = method.get("quant_method", "") if isinstance(method, dict) else method
                raise ValueError(f"{path}: config.json has a {key} ({name}): {_UNQUANTISED}")
    for file in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):
        if (path / file).is_file():
            raise ValueError(f"{path} has a {file}: {_UNQUANTISED}")


def check_unquantised(who: str, tensors: Mapping[str, tuple[str, int]]) -> None:
    """Refuse quantised weights, by types (in words of safetensors or torch) and dimensions."""
    for name, (dtype, dimensions) in tensors.items():
        if whole := _WHOLE_NUMBERS.fullmatch(dtype):
            matrix = whole[1] == "8" and dimensions > 1 and not _MASK.search(name)
            quantised = matrix or bool(_INTEGER_WEIGHT.search(name))
        else:  # fp8, fp4, torch's own quantised types
            quantised = not _NUMBERS.fullmatch(dtype)
        if quantised or _QUANTISED.search(name):
            raise ValueError(f"{who}: {name!r} is {dtype}: {_UNQUANTISED}")


_UNQUANTISED = (
    "quantised weights can't be merged; give the checkpoint as it was before it was quantised, "
    "or dequantise it (in transformers: model.dequantize(), then save_pretrained)"
)


def check_no_adapter(who: str, names: Iterable[str]) -> None:
    """Refuse tensors that an adapter adds to a model, but for factors B alone.

    Means of an adapter's parts are not the part of a mean: B A is linear in either factor, not in
    both. The factors B alone may be those of adapters that share A.
    """
    names = tuple(names)
    parts = {part for found in adapter_parts(names).values() for part in found}
    if parts and parts <= {"lora_B", "lora_embedding_B"}:
        return
    added = [name for name in names if _PART.search(name) or name == "prompt_embeddings"]
    if not added:
        added = [name for name in names if name.startswith(_WRAPPED)]
    if added:
        raise ValueError(
            f"{who} holds an adapter's tensors, for instance {added[0]!r}, whose means are not "
            f"the adapter's of the mean; give its folder (with {ADAPTER_CONFIG}) and the base: "
            f"load_checkpoint(folder, base=...), or the factors B alone if all share A; or "
            f"save model.merge_and_unload() of a model with adapters in it"
        )


def adapter_parts(names: Iterable[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """By adapted module, by part (lora_A, lora_B and so on), the names of an adapter's tensors."""
    return _adapter_parts(tuple(names))


@lru_cache(maxsize=8)
def _adapter_parts(names: tuple[str, ...]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    parts: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in names:
        if match := _PART.search(name):
            found = parts.setdefault(name[: match.start()], {})
            part = match[1] or match[2]
            found[part] = (*found.get(part, ()), name)
    return parts


def copy_side_files(source: Path, target: Path) -> None:
    """Copy what a checkpoint's folder has beside tensors: configuration and tokenizer."""
    for file in source.iterdir():
        if file.suffix in _SIDE_FILES and not file.name.endswith(".index.json") and file.is_file():
            shutil.copy(file, target)


def same_shapes(
    what: str, found: Mapping[str, Any], expected: Mapping[str, Any], advice: str = ""
) -> dict[str, Any]:
    """Those of the tensors found that are expected: all must be there, in their shapes."""
    for name, tensor in expected.items():
        if name not in found:
            raise ValueError(f"{what} has no {name!r}{naming_hint(name, found)}{advice}")
        shape, known = tuple(tensor.shape), tuple(found[name].shape)
        if known != shape:
            raise ValueError(f"{what}: {name!r} has shape {known}, expected {shape}{advice}")
    return {name: found[name] for name in expected}


def naming_hint(missing: str, names: Iterable[str]) -> str:
    """A clause for an error of a missing tensor: what there is, by what prefix it differs."""
    names = list(names)
    for name in names:
        longer, shorter = (name, missing) if len(name) > len(missing) else (missing, name)
        for wrapper, source in _WRAPPERS.items():
            if wrapper in longer and longer.replace(wrapper, "", 1) == shorter:
                return f"; there is {name!r}: one has {wrapper!r} before it, which {source} adds"
        if longer.endswith(f".{shorter}"):
            prefix = longer.removesuffix(shorter)
            return f"; there is {name!r}: the names differ by the prefix {prefix!r}"
    close = difflib.get_close_matches(missing, names, n=3, cutoff=0)
    return f"; there {'are' if len(close) > 1 else 'is'} {', '.join(map(repr, close))}"
