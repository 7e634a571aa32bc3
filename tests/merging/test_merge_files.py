from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from optuna_merge.exceptions import CorruptFileError
from optuna_merge.merging import merge, merge_files
from optuna_merge.posteriors import (
    DiagonalGaussian,
    FullGaussian,
    IsotropicGaussian,
    Posterior,
    load_checkpoint,
    save_posterior,
)

WEIGHTS = [0.2, 0.3, 0.5]


def checkpoint(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # More than one block, a scalar, an empty tensor.
    shapes = {"odd": (3,), "large": (700, 900), "scale": (), "empty": (0, 4)}
    return {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}


def save_all(folder: Path, tensors: list[dict[str, Tensor]]) -> list[Path]:
    paths = [folder / f"{k}.safetensors" for k in range(len(tensors))]
    for path, each in zip(paths, tensors):
        save_file(each, path)
    return paths


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plain_files_equal_merge_in_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = [checkpoint(k, dtype) for k in range(4)]
    paths = save_all(tmp_path, tensors)
    merge_files(paths[:3], WEIGHTS, tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    expected = merge([IsotropicGaussian(each) for each in tensors[:3]], WEIGHTS)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)

    merge_files(paths, [1.0, -0.5, 0.3, 0.2], tmp_path / "off.safetensors")
    off = load_file(tmp_path / "off.safetensors")
    expected = merge([IsotropicGaussian(t) for t in tensors], [1.0, -0.5, 0.3, 0.2])
    assert all(torch.equal(off[name], expected[name]) for name in off)


def test_weights_that_were_rounded_are_divided_by_their_sum(tmp_path: Path) -> None:
    paths = save_all(tmp_path, [checkpoint(k) for k in range(3)])
    merge_files(paths, [0.333333] * 3, tmp_path / "rounded.safetensors")
    merge_files(paths, [1 / 3] * 3, tmp_path / "exact.safetensors")
    rounded, exact = (load_file(tmp_path / f"{name}.safetensors") for name in ("rounded", "exact"))
    assert all(torch.equal(rounded[name], exact[name]) for name in exact)


@pytest.mark.parametrize("family", ["diagonal", "one scalar", "0-d tensor", "per tensor"])
def test_posterior_files_equal_merge_in_memory(tmp_path: Path, family: str) -> None:
    def posterior(seed: int) -> Posterior:
        mean = checkpoint(seed)
        if family == "diagonal":
            # With zeros, where the weights decide.
            return DiagonalGaussian(
                mean, {k: v.clamp(min=0) for k, v in checkpoint(-seed).items()}
            )
        if family == "one scalar":
            return IsotropicGaussian(mean, 1.0 + seed)
        if family == "0-d tensor":
            return IsotropicGaussian(mean, torch.tensor(1.0 + seed))
        return IsotropicGaussian(mean, {k: float(i + seed + 1) for i, k in enumerate(mean)})

    tasks = {name: posterior(k) for k, name in enumerate("abc")}
    paths = {name: tmp_path / name for name in tasks}
    for name, task in tasks.items():
        save_posterior(task, paths[name])
    weights = {"c": 0.1, "a": 0.6, "b": 0.3}
    output = tmp_path / "out.safetensors"
    merge_files(paths, weights, output)
    merged, expected = load_file(output), merge(tasks, weights)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_folders_load_with_from_pretrained(tmp_path: Path) -> None:
    from transformers import (
        AutoModelForSequenceClassification,
        BertConfig,
    )

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    models = [AutoModelForSequenceClassification.from_config(config) for _ in range(3)]
    folders = [tmp_path / f"task{k}" for k in range(3)]
    for k, (model, folder) in enumerate(zip(models, folders)):
        model.save_pretrained(folder, max_shard_size="17KB" if k else "1GB")
    assert (folders[1] / "model.safetensors.index.json").is_file()
    assert (folders[0] / "model.safetensors").is_file()
    (folders[0] / "tokenizer_config.json").write_text("{}")
    (folders[0] / "training_args.bin").write_bytes(b"no")

    for limit, sharded in ((17_000, True), (5_000_000_000, False)):
        output = tmp_path / f"merged{limit}"
        merge_files(folders, WEIGHTS, output, max_shard_bytes=limit)
        assert (output / "model.safetensors.index.json").is_file() == sharded
        assert (output / "tokenizer_config.json").read_text() == "{}"
        assert not (output / "training_args.bin").exists()
        merged = AutoModelForSequenceClassification.from_pretrained(output)
        for name, tensor in merged.state_dict().items():
            parts = [model.state_dict()[name] for model in models]
            expected = sum(a * part for a, part in zip(WEIGHTS, parts))
            torch.testing.assert_close(tensor, expected)
        for file in output.glob("*.safetensors"):
            assert file.stat().st_size < limit + 10_000
    with pytest.raises(FileExistsError, match="not an empty folder"):
        merge_files(folders, WEIGHTS, output)
    assert not list(tmp_path.glob(".*"))


def test_heads_can_be_left_out_and_tasks_dropped(tmp_path: Path) -> None:
    tensors = [{"body": torch.randn(4), f"head{k}": torch.ones(k + 1)} for k in range(2)]
    paths = save_all(tmp_path, tensors)
    output = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="task '1': lacks the tensor 'head0' of task '0'"):
        merge_files(paths, [0.5, 0.5], output)
    merge_files(paths, [0.5, 0.5], output, keep=lambda name: "head" not in name)
    merged = load_file(output)
    assert list(merged) == ["body"]
    torch.testing.assert_close(merged["body"], (tensors[0]["body"] + tensors[1]["body"]) / 2)

    save_file({"body": torch.full((4,), math.nan), "head0": torch.ones(1)}, paths[1])
    merge_files(paths, [1.0, 0.0], output)
    assert torch.equal(load_file(output)["body"], tensors[0]["body"])


def test_integers_are_copied_or_refused(tmp_path: Path) -> None:
    tensors = [{"w": torch.randn(3), "ids": torch.arange(5)} for _ in range(2)]
    paths = save_all(tmp_path, tensors)
    merge_files(paths, [0.5, 0.5], tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["ids"], torch.arange(5))
    save_file({**tensors[1], "ids": torch.arange(1, 6)}, paths[1])
    with pytest.raises(ValueError, match="task '1': 'ids' is I64 and differs"):
        merge_files(paths, [0.5, 0.5], tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def save_index(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """One shard per tensor, with an index; returns the index."""
    folder.mkdir(exist_ok=True)
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"{name}.safetensors" for name in tensors}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_of_a_folder_the_same_files_are_read_as_by_load_checkpoint(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for k, folder in enumerate(folders):
        save_index(folder, {"w": torch.full((3,), float(k)), "v": torch.ones(2)})
    output = tmp_path / "out.safetensors"
    merge_files(folders, [0.5, 0.5], output)
    assert load_file(output)["w"].tolist() == [0.5] * 3
    # A whole file before the shards, old or new.
    whole = {"w": torch.full((3,), 9.0), "v": torch.ones(2)}
    save_file(whole, folders[1] / "model.safetensors")
    assert torch.equal(load_checkpoint(folders[1])["w"], whole["w"])
    merge_files(folders, [0.5, 0.5], output)
    assert load_file(output)["w"].tolist() == [4.5] * 3
    (folders[1] / "w.safetensors").unlink()  # only its index is left
    merge_files(folders, [0.5, 0.5], output)
    assert load_file(output)["w"].tolist() == [4.5] * 3

    (folders[1] / "model.safetensors").unlink()
    for read in (load_checkpoint, lambda path: merge_files([path], [1], output)):
        with pytest.raises(FileNotFoundError, match=r"two.*1 are not there.* w.safetensors"):
            read(folders[1])
    save_file({"other": torch.ones(1)}, folders[1] / "w.safetensors")
    for read in (load_checkpoint, lambda path: merge_files([path], [1], output)):
        with pytest.raises(CorruptFileError, match=r"two.*w.safetensors holds 'w', but no file"):
            read(folders[1])


def test_adapters_pickles_and_quantised_weights_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"

    def refused(error: type[Exception], match: str, path: Path, **options: Any) -> None:
        with pytest.raises(error, match=match):
            merge_files([path, path], [0.5, 0.5], output, **options)
        assert not output.exists()

    file = tmp_path / "it.safetensors"
    factors = {"l.lora_A.weight": torch.ones(2, 3), "l.lora_B.weight": torch.ones(3, 2)}
    save_file(factors, file)
    refused(ValueError, "task '0': .*it.safetensors holds an adapter's tensors.*lora_A", file)
    refused(ValueError, "holds an adapter's", file, keep=lambda name: "lora_B" in name)
    save_posterior(IsotropicGaussian(factors), file)
    refused(ValueError, "is a posterior of several factors of 'l'", file)
    # B alone is linear.
    only_b = {"l.lora_B.weight": torch.ones(3, 2)}
    save_posterior(IsotropicGaussian(only_b), file)
    merge_files([file, file], [0.5, 0.5], output)
    assert torch.equal(load_file(output)["l.lora_B.weight"], only_b["l.lora_B.weight"])
    output.unlink()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file(factors, folder / "adapter_model.safetensors")
    refused(ValueError, "task '0': .*folder is an adapter's folder; .*base=", folder)

    (folder / "adapter_config.json").unlink()
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    refused(FileNotFoundError, r"but pytorch_model.bin: .*torch.save.*save_pretrained", folder)
    refused(CorruptFileError, r"model.bin is no .*: .*save_file", folder / "pytorch_model.bin")

    fp8 = torch.ones(2, 2).to(torch.float8_e4m3fn)
    save_file({"l.weight": fp8, "v": torch.ones(2)}, file)
    refused(ValueError, "task '0': .*it.safetensors: 'l.weight' is F8_E4M3: quantised", file)
    merge_files([file, file], [0.5, 0.5], output, keep=lambda name: name == "v")
    output.unlink()
    save_file({"l.qweight": torch.ones(2, 2, dtype=torch.int32)}, file)
    refused(ValueError, "'l.qweight' is I32: quantised .*dequantise", file)
    save_file({"l.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    refused(ValueError, r"config.json has a quantization_config \(awq\)", folder)


def test_what_differs_is_named_with_its_file(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    first = save_index(tmp_path / "first", tensors)
    output = tmp_path / "out.safetensors"
    for prefix, wrapper in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel")):
        other = tmp_path / "other.safetensors"
        save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, other)
        match = f"lacks the tensor 'a' .*other.safetensors.* there is '{prefix}a': .*{wrapper}"
        with pytest.raises(ValueError, match=match):
            merge_files([first, other], [0.5, 0.5], output)
    for changed in (torch.ones(4), torch.ones(3).half()):
        second = save_index(tmp_path / "second", {**tensors, "b": changed})
        with pytest.raises(ValueError, match=r"'b' is .*second/b.safetensors, .*first/b.safet"):
            merge_files([first, second], [0.5, 0.5], output)


def test_bad_files_leave_nothing(tmp_path: Path) -> None:
    good = checkpoint(0)
    paths = save_all(tmp_path, [good, good])
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "out.safetensors"

    def refused(error: type[Exception], match: str, **options: object) -> None:
        for target in (output, tmp_path / "folder"):
            with pytest.raises(error, match=match):
                merge_files(paths, [0.5, 0.5], target, **options)  # type: ignore[arg-type]
            assert sorted(tmp_path.iterdir()) == before

    large = good["large"].clone()
    large[-1, -1] = math.nan
    save_file({**good, "large": large}, paths[1])
    refused(ValueError, "task '1': mean 'large' holds NaN")
    save_file({**good, "odd": torch.ones(4)}, paths[1])
    refused(ValueError, r"task '1': 'odd' is F32 \[4\], but task '0' has F32 \[3\]")
    save_file({**good, "odd": torch.ones(3).half()}, paths[1])
    refused(ValueError, r"task '1': 'odd' is F16 \[3\]")
    save_file({**good, "more": torch.ones(3)}, paths[1])
    refused(ValueError, "task '1': has a tensor 'more' that task '0' lacks")
    paths[1].write_bytes(paths[0].read_bytes()[:-1])
    refused(CorruptFileError, "1.safetensors is truncated")
    paths[1].write_bytes(b"nonsense" * 10)
    refused(CorruptFileError, "1.safetensors is truncated or no safetensors file")
    paths[1].write_bytes(b"")
    refused(CorruptFileError, "1.safetensors is truncated or no safetensors file")
    save_posterior(DiagonalGaussian(good, good), paths[1])
    refused(TypeError, "must be of one family")
    save_posterior(FullGaussian({"x": torch.ones(1)}, torch.ones(1, 1)), paths[1])
    refused(TypeError, "task '1': .* is a FullGaussian")
    for path in paths:
        save_posterior(DiagonalGaussian(good, {k: v.abs() for k, v in good.items()}), path)
    save_posterior(DiagonalGaussian(good, good), paths[1])
    refused(ValueError, "task '1': precision '.*' is negative")
    with pytest.raises(FileNotFoundError, match="missing"):
        merge_files([tmp_path / "missing"], [1.0], output)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        merge_files([tmp_path], [1.0], output)
    save_posterior(IsotropicGaussian(good, 3.0), paths[0])
    save_posterior(IsotropicGaussian(good, 1.0), paths[1])
    with pytest.raises(ValueError, match=r"the merged precision of '.*' is -1"):
        merge_files(paths[:2], [-1.0, 2.0], output)
    with pytest.raises(ValueError, match="expected 1"):
        merge_files([paths[0]], [0.5], output)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    tensor = torch.randn(20_000_000).bfloat16()
    paths = save_all(tmp_path, [{"large": tensor}] * 3)
    (tmp_path / "small").mkdir()
    small = save_all(tmp_path / "small", [{"small": tensor[:10].clone()}] * 3)
    program = """
import sys, threading, time
from optuna_merge.merging import merge_files
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
merge_files(sys.argv[5:8], [0.2, 0.3, 0.5], sys.argv[8])  # kernels are compiled now
before, peak, done = anonymous(), 0.0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
merge_files(sys.argv[1:4], [0.2, 0.3, 0.5], sys.argv[4])
done = True
thread.join()
print(peak - before)
"""
    output = tmp_path / "out.safetensors"
    grown = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            *map(str, [*paths, output, *small, tmp_path / "small.safetensors"]),
        ],
        check=True,
        capture_output=True,
        text=True,
        # What is freed is given back at once: malloc's own reserves are not counted.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    ).stdout
    # One tensor alone has 40 MB.
    assert float(grown) < 30
    assert load_file(output)["large"].isfinite().all()
