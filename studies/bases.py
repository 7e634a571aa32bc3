"""Can a checkpoint of another base be told from a finetune, where all shapes are equal?

    python studies/bases.py

Finetunes all of MiniLM (on movie sentiment), of the language model of studies/mixture (on its own
words) and of the digits' vision transformer at learning rates up to such as destroy them, and
compares each with its base; then bases with independent ones of equal shapes: fresh starts, and
pretrained twice. Prints a table and writes it to studies/results/bases.json.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_cosine_schedule_with_warmup,
)

from optuna_merge._base.files import write_json
from optuna_merge.fitting import UNRELATED, median_cosine
from studies.digits.data import pretraining_data
from studies.digits.optimize import fresh_vit
from studies.fetch import default_cache
from studies.mixture.body import pretrained_body
from studies.mixture.data import english_text, load_texts
from studies.text.data import body_path, load_tasks

RESULTS = Path(__file__).parent / "results" / "bases.json"
RATES = (1e-4, 1e-3, 1e-2, 1e-1)
STEPS = 50

Loss = Callable[[nn.Module], Iterator[Tensor]]
Made = tuple[nn.Module, dict[str, nn.Module], Loss]


def finetuned(model: nn.Module, losses: Loss, rate: float, steps: int = STEPS) -> nn.Module:
    """All of a copy of the model, by AdamW."""
    torch.manual_seed(0)
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    for _, loss in zip(range(steps), losses(model)):
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def row(what: str, one: nn.Module, other: nn.Module) -> dict[str, Any]:
    """How far two models are from each other."""
    a, b = ({n: p.detach() for n, p in model.named_parameters()} for model in (one, other))
    apart = math.sqrt(sum(float((a[n] - b[n]).double().square().sum()) for n in a))
    norm = math.sqrt(sum(float(b[n].double().square().sum()) for n in b))
    equal = sum(int((a[n] == b[n]).sum()) for n in a) / sum(b[n].numel() for n in b)
    found = {"median_cosine": median_cosine(a, b), "distance": apart / norm, "equal": equal}
    print(f"{what:44}" + "".join(f"{value:10.4f}" for value in found.values()), flush=True)
    return {"models": what, **found}


def batches(columns: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """Random rows, without an end."""
    draws = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(len(next(iter(columns.values()))), (size,), generator=draws)
        yield {name: column[rows] for name, column in columns.items()}


def minilm() -> Made:
    """The pretrained body with a new head, fresh values, and the loss on movie reviews."""
    folder = body_path(default_cache())
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    fresh = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    rows = load_tasks(default_cache(), train=800, validation=100, test=100)["movies"]["train"]
    tokens = AutoTokenizer.from_pretrained(folder)(
        list(rows["text"]), truncation=True, max_length=24, padding="max_length",
        return_tensors="pt",
    )  # fmt: skip
    data = {**tokens, "labels": torch.tensor(rows["label"])}
    return base, {"fresh": fresh}, lambda model: (model(**b).loss for b in batches(data, 8))


def language() -> Made:
    """The mixture's body, the start of its pretraining, fresh values, and a loss on texts."""
    cache = default_cache()
    texts = load_texts(cache)
    body = pretrained_body(cache, [t["train"] for t in texts.values()], english_text(cache))
    base, start = (
        AutoModelForCausalLM.from_pretrained(path) for path in (body, body.parent / "fresh")
    )
    torch.manual_seed(1)
    fresh = AutoModelForCausalLM.from_config(base.config)
    tokenizer = AutoTokenizer.from_pretrained(body)
    ids = torch.tensor(tokenizer(texts["italian"]["train"][:100000])["input_ids"])
    windows = ids[: len(ids) // 64 * 64].view(-1, 64)
    data = {"input_ids": windows, "labels": windows}
    others = {"before its pretraining": start, "fresh": fresh}
    return base, others, lambda model: (model(**batch).loss for batch in batches(data, 8))


def digits() -> Made:
    """Two vision transformers, pretrained on digits from independent fresh values."""
    data = pretraining_data()

    def losses(model: nn.Module) -> Iterator[Tensor]:
        for batch in batches(dict(data), 32):
            yield nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])

    one = nn.Sequential(*fresh_vit())
    other = copy.deepcopy(one)
    torch.manual_seed(1)
    for module in other.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()
    first, second = (finetuned(model, losses, 3e-3, 500) for model in (one, other))
    return first, {"pretrained from another start": second}, losses


def main() -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    print(f"{'':44}{'cosine':>10}{'distance':>10}{'equal':>10}")
    rows = []
    for name, made in (("digits", digits), ("language", language), ("MiniLM", minilm)):
        base, others, losses = made()
        for rate in RATES:
            rows.append(row(f"{name}, finetuned at {rate:g}", finetuned(base, losses, rate), base))
        rows += [row(f"{name}, {what}", other, base) for what, other in others.items()]
    write_json(RESULTS, {"steps": STEPS, "bound": UNRELATED, "rows": rows})


if __name__ == "__main__":
    main()
