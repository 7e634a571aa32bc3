"""Finetuned checkpoints that are already there, merged with curvature from a data loader.

    python examples/existing_checkpoints.py

No study and no training: two Hugging Face checkpoints of one pretrained model become posteriors,
and the weights of their merge are chosen on validation data. The checkpoints are tiny BERTs that
this script makes first; with your own, only the paths and loaders differ. Runs in seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, BertConfig

from optuna_merge.merging import merge_into
from optuna_merge.posteriors import (
    DiagonalGaussian,
    categorical_labels,
    load_checkpoint,
    squared_gradients,
)


def main() -> None:
    """Merge the checkpoints at several weights and print what each merge is worth."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        train, validation = make_loaders(256), make_loaders(200)
        paths = make_checkpoints(Path(folder), train)
        model = AutoModelForSequenceClassification.from_pretrained(paths["books"]).eval()

        def predict(parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
            """The model's logits with other parameters; what the estimators want."""
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return functional_call(model, dict(parameters), kwargs=inputs).logits

        curvature = {}
        for task, path in paths.items():
            mean = load_checkpoint(path)  # a LoRA adapter: load_checkpoint(path, base=...)
            curvature[task] = DiagonalGaussian(
                mean,
                squared_gradients(
                    predict,
                    mean,
                    train[task],
                    loss=lambda outputs, labels: cross_entropy(outputs, labels, reduction="none"),
                    sample_labels=categorical_labels,
                    generator=torch.Generator().manual_seed(0),
                ),
            )
        # The damping decides between Fisher merging (small) and averaging (large).
        delta = sum(p.mean_curvature() for p in curvature.values()) / len(curvature)
        posteriors = {task: found.damped(delta) for task, found in curvature.items()}

        best, best_worst = {}, 0.0
        for books in (0.0, 0.25, 0.5, 0.75, 1.0):
            weights = {"books": books, "films": 1 - books}
            merge_into(model, posteriors, weights)  # with batch norms: reestimate_batch_norm next
            found = {task: accuracy(model, loader) for task, loader in validation.items()}
            print(weights, {task: round(value, 3) for task, value in found.items()})
            if min(found.values()) > best_worst:
                best, best_worst = weights, min(found.values())
        print(f"Best task weights: {best} (worst accuracy {best_worst:.3f})")


def make_loaders(size: int) -> dict[str, DataLoader[dict[str, Tensor]]]:
    """Reviews of 6 to 12 words; in each domain, other words are good and bad."""
    loaders = {}
    for domain, first in (("books", 10), ("films", 30)):
        examples = []
        for _ in range(size):
            label = int(torch.randint(2, ()))
            words = torch.randint(50, 100, (12,))
            words[torch.randperm(6)[:2]] = torch.randint(0, 10, (2,)) + first + 10 * label
            length = int(torch.randint(6, 13, ()))
            mask = (torch.arange(12) < length).long()
            examples.append(
                {"input_ids": words * mask, "attention_mask": mask, "labels": torch.tensor(label)}
            )
        loaders[domain] = DataLoader(examples, batch_size=32)
    return loaders


def make_checkpoints(
    folder: Path, loaders: Mapping[str, DataLoader[dict[str, Tensor]]]
) -> dict[str, Path]:
    """One tiny BERT, finetuned on each domain; what you have already."""
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    pretrained = AutoModelForSequenceClassification.from_config(config)
    state = {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}
    for domain, loader in loaders.items():
        pretrained.load_state_dict(state)
        pretrained.train()
        optimizer = torch.optim.AdamW(pretrained.parameters(), lr=3e-3)
        for _ in range(8):
            for batch in loader:
                pretrained(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        pretrained.save_pretrained(folder / domain)
    return {domain: folder / domain for domain in loaders}


@torch.inference_mode()
def accuracy(model: torch.nn.Module, loader: DataLoader[dict[str, Tensor]]) -> float:
    """Fraction of examples that are classified correctly."""
    right = [
        (model(batch["input_ids"], batch["attention_mask"]).logits.argmax(1) == batch["labels"])
        for batch in loader
    ]
    return float(torch.cat(right).float().mean())


if __name__ == "__main__":
    main()
