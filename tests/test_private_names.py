"""Private names of other packages still mean what the package takes them for.

Optuna's have a file of their own, `test_optuna_private.py`; `test_house.py` lists all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.utils import prune
from transformers.utils import cached_file

from optuna_merge.finetuning import make_accelerator


@pytest.fixture
def no_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("no_accelerator")
def test_accelerate_holds_one_precision_until_it_is_reset() -> None:
    assert not AcceleratorState._shared_state
    for precision in ("no", "bf16", "no"):
        assert make_accelerator(precision).mixed_precision == precision
        assert AcceleratorState._shared_state


def test_timm_keeps_what_a_model_was_made_with() -> None:
    options = {"img_size": 32, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    assert options.items() <= model._model_args.items()


def test_transformers_finds_no_file_without_an_error(tmp_path: Path) -> None:
    revision = "0123456789" * 4
    folder = tmp_path / "models--me--bert"
    for file in ("refs/main", f"snapshots/{revision}/config.json"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(revision)
    quiet = {
        f"_raise_exceptions_for_{what}": False
        for what in ("connection_errors", "gated_repo", "missing_entries")
    }
    where = {"cache_dir": tmp_path, "local_files_only": True}
    assert cached_file("me/bert", "config.json", **where, **quiet) is not None
    assert cached_file("me/bert", "README.md", **where, **quiet) is None
    with pytest.raises(OSError, match="cached files"):
        cached_file("me/bert", "README.md", **where)


def test_torch_counts_writes_into_a_tensor() -> None:
    tensor = torch.zeros(2)
    before = tensor._version
    tensor + 1
    assert tensor._version == before
    tensor.add_(1)
    assert tensor._version > before


def test_torch_names_what_a_layer_computes() -> None:
    layer = prune.l1_unstructured(nn.Linear(2, 2), "weight", amount=1)
    assert layer._parameters.keys() == {"weight_orig", "bias"}
    (hook,) = layer._forward_pre_hooks.values()
    assert hook._tensor_name == "weight"
