"""Times a preview by hand, with mergekit and transformers; run by an interpreter with both.

Usage: python by_hand.py BODY DATA.safetensors BATCH_SIZE THREADS REPEATS FOLDER
DATA holds `<task>.<column>` of every task's padded validation data. Prints one JSON object: median
seconds of a preview of all tasks, by which layers are merged ("all", "last_two").
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

WEIGHTS = [0.2, 0.3, 0.5]
Examples = list[dict[str, list[int] | int]]


def read(path: str) -> dict[str, Examples]:
    """Every task's examples without padding, which the collator adds batch by batch."""
    columns: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(path).items():
        task, column = name.split(".")
        columns.setdefault(task, {})[column] = tensor
    data: dict[str, Examples] = {}
    for task, table in columns.items():
        lengths = table["attention_mask"].sum(1).tolist()
        data[task] = [
            {
                name: int(column[i]) if column.ndim == 1 else column[i, :length].tolist()
                for name, column in table.items()
            }
            for i, length in enumerate(lengths)
        ]
    return data


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    body, path, batch_size, threads, repeats, folder = sys.argv[1:]
    torch.set_num_threads(int(threads))
    data = read(path)
    tokenizer = AutoTokenizer.from_pretrained(body)
    configs = {
        task: AutoConfig.from_pretrained(
            body,
            num_labels=1 + max(int(row["labels"]) for row in rows),  # type: ignore[arg-type]
        )
        for task, rows in data.items()
    }
    torch.manual_seed(0)
    pretrained = AutoModelForSequenceClassification.from_pretrained(body, num_labels=2)
    bodies = [
        {n: t + 1e-3 * torch.randn_like(t) for n, t in pretrained.base_model.state_dict().items()}
        for _ in data
    ]
    networks = {
        task: AutoModelForSequenceClassification.from_config(config)
        for task, config in configs.items()
    }
    prefix = pretrained.base_model_prefix + "."
    heads = {
        task: {n: t for n, t in network.state_dict().items() if not n.startswith(prefix)}
        for task, network in networks.items()
    }
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_eval_batch_size=int(batch_size),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    last = pretrained.config.num_hidden_layers - 2

    def merged_names(which: str) -> list[str]:
        if which == "all":
            return list(bodies[0])
        return [
            name
            for name in bodies[0]
            if name.startswith("encoder.layer.") and int(name.split(".")[2]) >= last
        ]

    def preview(which: str) -> None:
        names = merged_names(which)
        merged = merge_state_dicts(
            [{name: state[name] for name in names} for state in bodies],
            "linear",
            parameters={"weight": WEIGHTS},
        )
        shared = {prefix + name: tensor for name, tensor in {**bodies[0], **merged}.items()}
        for task, config in configs.items():
            network = AutoModelForSequenceClassification.from_config(config)
            network.load_state_dict({**shared, **heads[task]})
            trainer = Trainer(
                network,
                arguments,
                data_collator=DataCollatorWithPadding(tokenizer),
                eval_dataset=data[task],
                compute_metrics=accuracy,
            )
            trainer.evaluate()

    seconds: dict[str, list[float]] = {"all": [], "last_two": []}
    for repeat in range(int(repeats) + 1):
        for which, taken in seconds.items():
            started = time.perf_counter()
            preview(which)
            if repeat:
                taken.append(time.perf_counter() - started)
    print(json.dumps({which: statistics.median(taken) for which, taken in seconds.items()}))


if __name__ == "__main__":
    main()
