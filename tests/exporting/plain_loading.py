"""Loads exports with transformers, peft, timm or torch alone and evaluates them.

    python plain_loading.py JOBS.json RESULTS.json

Each job names the export's format and folder, and a safetensors file of validation data with the
outputs that are expected; the result is the share of labels (of tokens, too) that are right.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "pixel_values")


def transformers_model(job: dict[str, Any]) -> Any:
    import transformers

    loader = getattr(transformers, job["loader"])
    model = loader.from_pretrained(job["folder"]).eval()
    if job["labels"]:
        assert model.config.id2label == dict(enumerate(job["labels"])), model.config.id2label
    return lambda batch: model(**{n: batch[n] for n in INPUTS if n in batch}).logits


def peft_model(job: dict[str, Any]) -> Any:
    import transformers
    from peft import PeftModel

    options = {"num_labels": job["outputs"]} if "Sequence" in job["loader"] else {}
    base = getattr(transformers, job["loader"]).from_pretrained(job["base"], **options)
    model = PeftModel.from_pretrained(base, job["folder"]).eval()
    return lambda batch: model(**{n: batch[n] for n in INPUTS if n in batch}).logits


def timm_model(job: dict[str, Any]) -> Any:
    import timm

    model = timm.create_model(f"local-dir:{job['folder']}", pretrained=True).eval()
    again = timm.create_model(
        job["architecture"],
        **job["options"],
        num_classes=job["outputs"],
        checkpoint_path=f"{job['folder']}/model.safetensors",
    ).eval()

    def predict(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs: torch.Tensor = model(batch["pixel_values"])
        torch.testing.assert_close(outputs, again(batch["pixel_values"]))
        return outputs

    return predict


def torch_model(job: dict[str, Any]) -> Any:
    body = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(), torch.nn.Linear(8, 8)
    )
    head = torch.nn.Linear(8, job["outputs"])
    body.load_state_dict(load_file(f"{job['folder']}/model.safetensors"))
    head.load_state_dict(load_file(f"{job['folder']}/heads/{job['head']}.safetensors"))
    body.eval()
    return lambda batch: head(body(batch["x"]))


LOADERS = {
    "transformers": transformers_model,
    "peft": peft_model,
    "timm": timm_model,
    "plain": torch_model,
}


def main(jobs: str, results: str) -> None:
    found = []
    with open(jobs, encoding="utf-8") as file:
        listed = json.load(file)
    for job in listed:
        predict, batch = LOADERS[job["format"]](job), load_file(job["data"])
        with torch.inference_mode():
            outputs = predict(batch)
        torch.testing.assert_close(outputs, batch["outputs"], rtol=1e-4, atol=1e-4)
        right = outputs.argmax(-1) == batch["labels"]
        found.append(int(right.sum()) / int((batch["labels"] != -100).sum()))
    assert "optuna_merge" not in sys.modules and "optuna" not in sys.modules
    with open(results, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
