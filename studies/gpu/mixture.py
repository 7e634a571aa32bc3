"""The mixture study on SmolLM2-135M: task runs, curvature, previews and twelve truths, in bf16.

Once with LoRA on all linear layers, once with all layers trained; each has half of the time, and
makes as many of its truths as fit. A truth is one of `drawn_weights` of the mixture study, uniform
weights the first; previews are by averaging and by the diagonal, with the finetune at uniform
weights as the anchor and without. Rank correlations leave uniform weights out.
"""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from optuna_merge import FinetuneSettings, PosteriorSettings, StudyDefinition
from optuna_merge.exceptions import OptunaMergeError
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.models import from_language_model
from optuna_merge.previews import PreviewSettings
from optuna_merge.tasks import Task
from optuna_merge.trials import uniform_weights
from studies.gpu.findings import Findings, findings_of_command
from studies.gpu.speed import peak, reset_peak
from studies.mixture.body import language_tasks, make_tokenizer
from studies.mixture.data import Splits, by_hash, load_texts
from studies.mixture.weights import drawn_weights
from studies.preview_quality import spearman

TASKS = ("python", "german", "french", "italian")
"""Of the mixture study; Italian has a tenth of the others' training data."""

PACKAGES = ("email", "asyncio", "idlelib", "xml")
"""Of the standard library, where the study's archives are not there; the last has a tenth."""

SMOLLM = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
"""The shape of SmolLM2-135M."""

MINIATURE = SMOLLM | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 512,
}

KINDS = {"isotropic": False, "diagonal": False, "diagonal+anchor": True}
"""Previews by name, and whether they are anchored."""

TRUTHS = 12


def texts_of(cache: Path | None) -> tuple[dict[str, Splits], str]:
    """Texts of four tasks, and where they are from."""
    if cache is not None:
        try:
            return load_texts(cache, TASKS), "the mixture study's"
        except OptunaMergeError as error:
            print(error, flush=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = {
        name: by_hash(
            {p.name: p.read_text("utf-8") for p in sorted((library / name).rglob("*.py"))}
        )
        for name in PACKAGES
    }
    return texts, "packages of the standard library"


def body_of(given: Path | None, texts: Sequence[str], folder: Path, miniature: bool) -> str:
    """Put tokenizer and model into a folder, and say what they are.

    Raises:
        FileNotFoundError: the given folder holds no model.
    """
    if given is not None:
        if (given / "config.json").is_file():
            shutil.copytree(given, folder, dirs_exist_ok=True)
            return "SmolLM2-135M"
        pieces = sorted(p for p in given.iterdir() if ".gguf" in p.name)
        if not pieces:
            raise FileNotFoundError(f"{given} holds neither config.json nor a GGUF file")
        with (folder / "model.gguf").open("wb") as whole:
            for piece in pieces:
                whole.write(piece.read_bytes())
        name = {"gguf_file": "model.gguf"}
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **name)
        AutoTokenizer.from_pretrained(folder, **name).save_pretrained(folder)
        # A fresh model of the same shape: the loaded one remembers that it was quantised.
        fresh = LlamaForCausalLM(LlamaConfig(**plain(loaded.config.to_dict())))
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(folder)
        (folder / "model.gguf").unlink()
        return "SmolLM2-135M, from 4-bit weights"
    shape = MINIATURE if miniature else SMOLLM
    make_tokenizer(texts, 512 if miniature else 4096).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    return "a random Llama of the shape of SmolLM2-135M" if not miniature else "a tiny Llama"


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what it says of files and quantisation."""
    dropped = ("_name_or_path", "quantization_config", "architectures", "dtype", "torch_dtype")
    return {key: value for key, value in config.items() if key not in dropped}


def study(body: Path, tasks: Sequence[Task], lora: bool, miniature: bool) -> StudyDefinition:
    """The definition, with LoRA or all layers."""
    adapter = None
    if lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=4 if miniature else 16, lora_alpha=32, target_modules="all-linear")
    rate = 2e-3 if lora else 3e-4
    return StudyDefinition(
        tasks=tasks,
        model=from_language_model(str(body), tasks, adapter=adapter),
        finetuning=FinetuneSettings(
            steps=3 if miniature else 16,
            batch_size=2 if miniature else 8,
            learning_rate=rate,
            num_rungs=1,
            evaluation_batch_size=32,
            mixed_precision="no" if miniature else "bf16",
        ),
        posterior=PosteriorSettings(
            examples=4 if miniature else 64, damping_examples=4 if miniature else 16, chunk_size=4
        ),
        preview=PreviewSettings(mixed_precision="no" if miniature else "bf16"),
        score="mean",
    )


def fits_of(
    definition: StudyDefinition, folder: Path
) -> tuple[dict[str, FittedStudy], dict[str, str]]:
    """Task runs and posteriors by kind of previews, and the errors of those that failed.

    Raises:
        RuntimeError: all of them failed.
    """
    fits: dict[str, FittedStudy] = {}
    errors: dict[str, str] = {}
    for kind, anchored in KINDS.items():
        settings = replace(
            definition,
            posterior=replace(definition.posterior, family=kind.partition("+")[0]),
            preview=replace(definition.preview, anchor="uniform" if anchored else "none"),
        )
        try:
            fits[kind] = fit(settings, folder, progress=False)
        except Exception as error:  # truths and the other kinds are still worth having
            errors[kind] = f"{type(error).__name__}: {error}"[:600]
    if not fits:
        raise RuntimeError(f"no posteriors could be made: {errors}")
    return fits, errors


def searched(found: Findings, definition: StudyDefinition, folder: Path, end: float) -> Any:
    """Task runs, posteriors, previews of all weights, and truths until the time `end`."""
    reset_peak()
    fits, errors = fits_of(definition, folder)
    base = list(fits.values())[-1]
    names = base.names
    uniform = tuple(uniform_weights(names).values())
    count = 4 if found.miniature else TRUTHS
    weightings = [uniform, *drawn_weights(names, count - 1, 0)]
    previews: dict[str, list[list[float]]] = {}
    seconds: dict[str, float] = {}
    for kind, fitted in fits.items():
        made = [fitted.previewer(dict(zip(names, weights))) for weights in weightings]
        previews[kind] = [[m.evaluations[n].metric.value for n in names] for m in made]
        seconds[kind] = float(np.median([m.seconds for m in made]))
        fitted.previewer.release()
    truths: list[list[float]] = []
    spent: list[float] = []
    for weights in weightings:
        if truths and time.monotonic() > end - 1.5 * max(spent):
            break
        named = dict(zip(names, weights))
        run = base.store.run(base.model, base.tasks, named, base.definition.finetuning)
        truths.append([run.evaluations[n].metric.value for n in names])
        spent.append(run.seconds)
    return {
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "trained_parameters": sum(
            tensor.numel() for tensor in base.model.state(base.model.shared_names()).values()
        ),
        "steps": base.steps,
        "costs": base.costs,
        "damping": None if base.damping is None else base.damping.value,
        "preview_seconds": seconds,
        "truth_seconds": spent,
        "tasks": list(names),
        "alone": base.alone,
        "weights": weightings[: len(truths)],
        "truths": truths,
        "previews": previews,
        "quality": {kind: quality(made, truths) for kind, made in previews.items()},
        "errors_of_kinds": errors,
        "peak_bytes": peak(),
    }


def quality(previews: Sequence[Sequence[float]], truths: Sequence[Sequence[float]]) -> Any:
    """Error and rank correlations of losses at all weights but uniform ones, the first."""
    seen, real = np.array(previews[1 : len(truths)]), np.array(truths[1:])
    if not len(real):
        return {}
    pairs = [*zip(seen.T, real.T), (seen.mean(1), real.mean(1))]
    ranks = [spearman(x.tolist(), y.tolist()) for x, y in pairs]
    return {
        "error": float(np.abs(seen - real).mean()),
        "rank_correlation_by_task": [None if np.isnan(r) else r for r in ranks[:-1]],
        "rank_correlation_of_mean": None if np.isnan(ranks[-1]) else ranks[-1],
    }


def measure(found: Findings, smollm: Path | None, cache: Path | None) -> None:
    """LoRA, then all layers."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts, origin = texts_of(cache)
        found.put("data", origin)
        (folder / "body").mkdir()
        inputs = [splits["train"] for splits in texts.values()]
        kind = body_of(smollm, inputs, folder / "body", found.miniature)
        found.put("body", kind)
        print(f"body: {kind}; data: {origin}", flush=True)
        most = 20 if found.miniature else 320
        sizes = dict.fromkeys(texts, most)
        sizes[list(texts)[-1]] = most // 10
        length = 16 if found.miniature else 128
        tokenizer = AutoTokenizer.from_pretrained(folder / "body")
        tasks = language_tasks(texts, tokenizer, sizes, 8 if found.miniature else 48, length)
        found.put("preparation_seconds", time.monotonic() - started)
        for place, lora in enumerate((True, False)):
            end = time.monotonic() + found.left / (2 - place)

            def search(lora: bool = lora, end: float = end) -> Any:
                definition = study(folder / "body", tasks, lora, found.miniature)
                return searched(found, definition, folder / f"lora-{lora}", end)

            found.tried("searches", {"trained": "LoRA" if lora else "all layers"}, search)


if __name__ == "__main__":
    made, flags = findings_of_command()
    measure(made, flags.smollm, flags.cache)
