"""How fast merges and previews of random Llamas are, beside the memory and a bare forward pass.

A merge of T = 3 posteriors must read their means (and precisions) and write a mean; the share of
the bandwidth is those bytes over the time, over what a copy in the same process moves a second.
"by hand" is a diagonal merge as a few lines of torch, tensor by tensor.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from optuna_merge.merging import merge
from optuna_merge.models import MultitaskModel, from_language_model
from optuna_merge.posteriors import DiagonalGaussian, RowsColumnsGaussian, posterior_bytes
from optuna_merge.previews import Previewer, PreviewSettings
from optuna_merge.tasks import EvaluationBatches, Task, perplexity, token_cross_entropy
from studies.gpu.findings import Findings, findings_of_command
from studies.gpu.machine import copy_rate, device, memory, seconds_of

N_TASKS = 3
WEIGHTS = (0.2, 0.3, 0.5)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

SHAPES: dict[str, dict[str, int]] = {
    "0.1 B": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
    "1 B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 20},
    "3 B": {"hidden_size": 2560, "intermediate_size": 8192, "num_hidden_layers": 32},
}
"""With 32,000 tokens and tied embeddings: 0.11, 1.09 and 2.94 billion parameters."""

MINIATURES: dict[str, dict[str, int]] = {
    "0.1 M": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
}

Posterior = DiagonalGaussian | RowsColumnsGaussian


def configuration(shape: Mapping[str, int], tokens: int) -> Any:
    """A Llama of the shape, its heads 64 wide."""
    return LlamaConfig(
        **shape,
        vocab_size=tokens,
        num_attention_heads=max(1, shape["hidden_size"] // 64),
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def tensor_shapes(config: Any) -> dict[str, torch.Size]:
    """The shapes of its parameters by name."""
    with torch.device("meta"):
        return {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}


def posterior(family: str, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> Posterior:
    """Random means and positive precisions on the device."""

    def uniform(size: Sequence[int]) -> Tensor:
        return torch.rand(size, device=device(), dtype=dtype).add_(0.1)

    mean = {name: uniform(shape) for name, shape in shapes.items()}
    if family == "diagonal":
        return DiagonalGaussian(mean, {name: uniform(shape) for name, shape in shapes.items()})
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    return RowsColumnsGaussian(
        mean,
        {name: uniform(shape[:1]) for name, shape in matrices.items()},
        {name: uniform(shape[1:]) for name, shape in matrices.items()},
        {name: uniform(shape) for name, shape in shapes.items() if name not in matrices},
        0.01,
    )


def by_hand(posteriors: Sequence[DiagonalGaussian]) -> dict[str, Tensor]:
    """The diagonal merge as one would write it down."""
    merged = {}
    for name in posteriors[0].mean:
        parts: list[Any] = [a * p.precision[name] for a, p in zip(WEIGHTS, posteriors)]
        sums: Any = sum(part * p.mean[name] for part, p in zip(parts, posteriors))
        merged[name] = sums / sum(parts)
    return merged


def merge_speed(
    family: str, shapes: Mapping[str, torch.Size], dtype: torch.dtype, rate: float
) -> dict[str, Any]:
    """Seconds, bytes that must move, their share of the bandwidth, and the most memory in use.

    Raises:
        MemoryError: the device has not the memory for posteriors and merge.
    """
    numbers = sum(shape.numel() for shape in shapes.values())
    size = torch.empty((), dtype=dtype).element_size()
    means = 1 + N_TASKS * (2 if family == "diagonal" else 1)
    room = memory()
    if room is not None and numbers * size * means > 0.95 * room:
        needed = numbers * size * means / 2**30
        raise MemoryError(f"{needed:.0f} GiB are needed, the card has {room / 2**30:.0f}")
    reset_peak()
    posteriors = [posterior(family, shapes, dtype) for _ in range(N_TASKS)]
    moved = sum(map(posterior_bytes, posteriors)) + numbers * size
    held = peak()
    reset_peak()
    seconds = seconds_of(lambda: merge(posteriors, WEIGHTS))
    found = {
        "parameters": numbers,
        "seconds": seconds,
        "bytes": moved,
        "share_of_bandwidth": moved / seconds / rate,
        "peak_bytes": peak(),
        "posterior_bytes": held,
    }
    if isinstance(posteriors[0], DiagonalGaussian):
        diagonals = [p for p in posteriors if isinstance(p, DiagonalGaussian)]
        found["by_hand_seconds"] = seconds_of(lambda: by_hand(diagonals), 3)
    return found


def preview_speed(shape: Mapping[str, int], miniature: bool) -> dict[str, Any]:
    """A preview of three tasks, and the forward passes that it can't do without.

    Parameters, posteriors and merge are in bf16, on a GPU.
    """
    dtype = torch.float32 if miniature else torch.bfloat16
    tokens, length, rows = (256, 16, 8) if miniature else (32_000, 256, 128)
    config = configuration(shape, tokens)
    generator = torch.Generator().manual_seed(0)
    tasks = []
    for name in ("first", "second", "third"):
        ids = torch.randint(3, tokens, (rows, length + 1), generator=generator)
        columns = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
        options: dict[str, Any] = {"loss": token_cross_entropy, "metrics": (perplexity,)}
        tasks.append(Task(name, columns, columns, tokens, **options))
    with tempfile.TemporaryDirectory() as folder:
        with torch.device(device()):
            LlamaForCausalLM(config).to(dtype).save_pretrained(Path(folder))
        model: MultitaskModel = from_language_model(folder, tasks, dtype=dtype)
    model.to(device())
    reset_peak()
    state = {k: v.to(device()) for k, v in model.state(model.shared_names()).items()}
    posteriors = {
        task.name: DiagonalGaussian(
            {k: v + 1e-3 * torch.randn_like(v) for k, v in state.items()},
            {k: torch.rand_like(v) + 1e-2 for k, v in state.items()},
        )
        for task in tasks
    }
    batch = rows // 4
    previewer = Previewer(
        model,
        tasks,
        posteriors,
        {task.name: {} for task in tasks},
        batch_size=batch,
        settings=PreviewSettings(memory_share=1.0),
    )
    batches = {
        task.name: list(EvaluationBatches(task, batch_size=batch, device=device()))
        for task in tasks
    }

    def bare() -> None:
        with torch.inference_mode():
            for name, prepared in batches.items():
                for columns in prepared:
                    model(columns, name)

    model.eval()
    weights = dict(zip(posteriors, WEIGHTS))
    forward = seconds_of(bare, 3)
    preview = seconds_of(lambda: previewer(weights), 3)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": rows * length * N_TASKS,
        "forward_seconds": forward,
        "preview_seconds": preview,
        "preview_over_forward": preview / forward,
        "peak_bytes": peak(),
    }


def reset_peak() -> None:
    """Forget the most memory that was in use, and free what is not."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> int | None:
    """The most bytes in use since then; None on a CPU."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None


def measure(found: Findings) -> None:
    """All cases, the small bodies first."""
    rate = copy_rate(1 << (24 if found.miniature else 30))
    found.put("copy_bytes_per_second", rate)
    for body, shape in (MINIATURES if found.miniature else SHAPES).items():
        shapes = tensor_shapes(configuration(shape, 256 if found.miniature else 32_000))
        for family in ("diagonal", "rows_columns"):
            for name, dtype in DTYPES.items():
                entry = {"body": body, "family": family, "dtype": name}

                def merged(
                    family: str = family,
                    shapes: dict[str, torch.Size] = shapes,
                    dtype: torch.dtype = dtype,
                ) -> dict[str, Any]:
                    return merge_speed(family, shapes, dtype, rate)

                found.tried("merges", entry, merged)
        if body != "3 B":  # whose posteriors leave no room for passes, or take long to write

            def previewed(shape: Mapping[str, int] = shape) -> dict[str, Any]:
                return preview_speed(shape, found.miniature)

            found.tried("previews", {"body": body}, previewed)
        reset_peak()


if __name__ == "__main__":
    measure(findings_of_command()[0])
