"""Tensors of a checkpoint's files: all of them, or a whole model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from optuna_merge._base.checkpoint_files import (
    check_index,
    check_no_adapter,
    check_unquantised,
    check_unquantised_folder,
    find_files,
    is_pickle,
)
from optuna_merge._base.tensors import load_pickled, opened
from optuna_merge.exceptions import CorruptFileError

_STATISTICS = (".running_mean", ".running_var")


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A whole model's parameters; and the names left out, as tied, to the names that are kept."""
    if path.is_dir():
        check_unquantised_folder(path)
    tensors, ties = read_tensors(path)
    check_no_adapter(str(path), tensors)
    check_ordinary(path, tensors)
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    kept = {}
    for name, tensor in tensors.items():
        if not is_parameter(name, tensor):
            continue
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if identity in seen and tensor.numel():
            ties[name] = seen[identity]
            continue
        seen[identity] = name
        kept[name] = tensor
    return kept, {name: own for name, own in ties.items() if own in kept and name not in kept}


def is_parameter(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not name.endswith(_STATISTICS)


def check_ordinary(path: Path, tensors: Mapping[str, Tensor]) -> None:
    check_unquantised(
        str(path),
        {name: (str(t.dtype).removeprefix("torch."), t.ndim) for name, t in tensors.items()},
    )
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"{path}: {name!r} is a {type(tensor).__name__}, which can't be merged; save "
                f"ordinary tensors"
            )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a checkpoint; and names that it left out as tied, to those that it has."""
    files, index = find_files(path, pickles=True)
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for file in files:
        if file.suffix == ".safetensors" or not is_pickle(file):
            part, metadata = _read_safetensors(file)
            ties |= metadata  # safetensors.torch.save_model writes there what it left out
        else:
            part = _read_pickle(file)
        tensors |= part
    check_index(path, index, tensors)
    return tensors, {
        name: own for name, own in ties.items() if own in tensors and name not in tensors
    }


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with opened(file) as found:
        metadata = dict(found.metadata() or {})
        if "posterior" in metadata:
            raise ValueError(f"{file} is a posterior: read it with load_posterior")
        return {name: found.get_tensor(name) for name in found.keys()}, metadata  # noqa: SIM118


def _read_pickle(file: Path) -> dict[str, Tensor]:
    content = load_pickled(file, advice=": convert it to safetensors")
    for key in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CorruptFileError(f"{file} holds no dict of tensors")
    return dict(content)
