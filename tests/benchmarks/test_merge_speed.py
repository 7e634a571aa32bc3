"""Merging against mergekit, FusionBench and the machine's own memory, one thread, one run.

    python -m venv $OPTUNA_MERGE_BENCHMARKS/mergekit        # and install mergekit==0.1.5 there
    python -m venv $OPTUNA_MERGE_BENCHMARKS/fusion-bench    # and install fusion-bench==0.2.33
    pytest tests/benchmarks/test_merge_speed.py -s

Prints one line a figure, `ratio <name> <value>`: above 1 means that we are faster than the others,
or slower than the memory. Nothing is asserted of a ratio: a busy machine would fail it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from other_mergers import WEIGHTS, best_of, make_tensors
from safetensors.torch import load_file, save_file

from optuna_merge.merging import merge, merge_into
from optuna_merge.posteriors import DiagonalGaussian, IsotropicGaussian

FOLDER = os.environ.get("OPTUNA_MERGE_BENCHMARKS")
GIGABYTES = float(os.environ.get("OPTUNA_MERGE_BENCHMARK_GIGABYTES", "3"))

pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="OPTUNA_MERGE_BENCHMARKS names no folder with the others' environments"
)

PEAK_MEMORY = """
import os, sys, threading, time
import torch
torch.set_num_threads(1)
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
imported = peak = anonymous()
from optuna_merge.merging import merge_files
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
thread.start()
os.sync()
start = time.perf_counter()
merge_files(sys.argv[1:-1], [0.2, 0.3, 0.5], sys.argv[-1])
os.sync()
seconds = time.perf_counter() - start
done = True
thread.join()
print(seconds, peak - imported)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def others(which: str, *arguments: str) -> dict[str, float]:
    """Seconds of another package's merges, in its own environment."""
    name = "mergekit" if which == "files" else which
    python = Path(str(FOLDER)) / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} does not exist")
    script = Path(__file__).with_name("other_mergers.py")
    command = [str(python), str(script), which, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def bert_shapes() -> dict[str, list[int]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    with torch.device("meta"):
        return {name: list(p.shape) for name, p in BertModel(config).named_parameters()}


def report(name: str, value: float) -> None:
    print(f"ratio {name} {value:.2f}")


def test_in_memory(tmp_path: Path) -> None:
    shapes = bert_shapes()
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps(shapes))
    theirs = {**others("mergekit", str(file)), **others("fusion-bench", str(file))}

    tensors = make_tensors(shapes, 6)
    plain = [IsotropicGaussian(mean) for mean in tensors[:3]]
    diagonal = [DiagonalGaussian(m, p) for m, p in zip(tensors[:3], tensors[3:])]
    base = IsotropicGaussian(tensors[5])
    module = torch.nn.ParameterList([torch.nn.Parameter(t.clone()) for t in tensors[0].values()])
    places = {name: str(k) for k, name in enumerate(shapes)}

    def read(count: int) -> Callable[[], Any]:
        return lambda: [tensor.sum() for each in tensors[:count] for tensor in each.values()]

    ours = {
        "linear": best_of(lambda: merge(plain, WEIGHTS)),
        "task_arithmetic": best_of(lambda: merge([*plain, base], [0.4, 0.6, 1.0, -1.0])),
        "diagonal": best_of(lambda: merge(diagonal, WEIGHTS)),
        "diagonal in place": best_of(lambda: merge_into(module, diagonal, WEIGHTS, names=places)),
    }
    limit = {count: best_of(read(count)) for count in (3, 6)}
    print()
    print({name: f"{1000 * seconds:.0f} ms" for name, seconds in ours.items()})
    report("linear_over_mergekit", theirs["linear"] / ours["linear"])
    report("task_arithmetic_over_mergekit", theirs["task_arithmetic"] / ours["task_arithmetic"])
    report("linear_over_fusionbench", theirs["weighted_sum"] / ours["linear"])
    report("diagonal_over_fusionbench", theirs["fisher"] / ours["diagonal"])
    report("linear_to_read_limit", ours["linear"] / limit[3])
    report("diagonal_to_read_limit", ours["diagonal"] / limit[6])
    report("diagonal_in_place_to_read_limit", ours["diagonal in place"] / limit[6])

    assert all(seconds > 0 for seconds in ours.values())


def save_llama(folder: Path, gigabytes: float, seed: int) -> None:
    """A language model of about that size in bf16; its largest tensor has 131 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers = max(1, round((gigabytes * 1e9 - 2.6e8) / 1.012e8))
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=layers,
        num_attention_heads=16,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    torch.manual_seed(seed)
    tensors = {k: 0.02 * torch.randn(p.shape).bfloat16() for k, p in model.named_parameters()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def test_disk_to_disk(tmp_path: Path) -> None:
    models = [tmp_path / f"model{k}" for k in range(3)]
    for k, model in enumerate(models):
        save_llama(model, GIGABYTES / 3, k)
    name = "model.embed_tokens.weight"
    parts = [load_file(model / "model.safetensors")[name] for model in models]
    megabytes = parts[0].numel() * 2 / 2**20
    times = []
    for run in range(3):
        command = [sys.executable, "-c", PEAK_MEMORY, *map(str, models), str(tmp_path / f"o{run}")]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, grown = map(float, output.split())
        times.append(seconds)
    merged = load_file(tmp_path / "o0" / "model.safetensors")[name]
    expected = torch.stack([a * part.float() for a, part in zip(WEIGHTS, parts)]).sum(0)
    assert (merged == expected.bfloat16()).double().mean() > 0.99
    # The same bytes read, and as many written, by nothing but copying.
    os.sync()
    start = time.perf_counter()
    for model in models:
        content = (model / "model.safetensors").read_bytes()
    (tmp_path / "copy").write_bytes(content)
    del content
    os.sync()
    copied = time.perf_counter() - start
    print()
    print(f"{statistics.median(times):.1f} s, copying {copied:.1f} s")
    report("files_peak_memory_in_largest_tensors", grown / megabytes)
    theirs = others("files", *map(str, models), str(tmp_path / "theirs"))
    report("files_over_mergekit", theirs["files"] / statistics.median(times))
