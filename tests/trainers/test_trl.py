"""TRL's SFTTrainer as a study's Trainer: chats as they are, packing, losses over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from language_helpers import word_tokenizer
from trainer_helpers import llama, texts

import optuna_merge as om
from optuna_merge.trainers import FittedProgram

trl = pytest.importorskip("trl")

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + ' : ' }}{% else %}"
    "{% generation %}{{ m.content + ' [EOS]' }}{% endgeneration %}{% endif %}{% endfor %}"
)


def chats(words: int, size: int = 12) -> Dataset:
    """The user says one word, the assistant so many."""
    rows = []
    for start in range(size):
        said = " ".join(f"w{(start + k) % 6}" for k in range(words))
        told = {"role": "assistant", "content": said}
        rows.append({"messages": [{"role": "user", "content": f"w{start % 6}"}, told]})
    return Dataset.from_list(rows)


TRAIN = {"short": chats(2), "long": chats(5)}
VALIDATION = {"short": chats(2, 4), "long": chats(5, 4)}


def make_sft(folder: str, **changes: Any) -> Any:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    given = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "assistant_only_loss": True,
        "max_length": 32,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    torch.manual_seed(0)
    return trl.SFTTrainer(
        llama(),
        trl.SFTConfig(folder, **(given | changes)),
        train_dataset=TRAIN["short"],
        eval_dataset=VALIDATION,
        processing_class=tokenizer,
    )


def fitted(folder: Path, make: Any = make_sft, **options: Any) -> FittedProgram:
    return om.from_trainer(make, TRAIN, workdir=folder, progress=False, **options)


def test_chats_are_prepared_by_the_trainer_and_the_users_words_have_no_loss(
    tmp_path: Path,
) -> None:
    few = om.PosteriorSettings(examples=8, damping=1e-2)
    bench = fitted(tmp_path, posterior=few)
    # The words of the assistant and the end of the turn, and none of the user's.
    assert bench.parts["weights"]["mean_label_tokens"] == {"short": 3.0, "long": 6.0}
    assert bench.parts["posterior"]["family"] == "diagonal"
    preview = bench.preview({"short": 0.5, "long": 0.5})
    truth = bench.finetune({"short": 0.5, "long": 0.5}, lambda step, metrics: None)
    assert preview.values == pytest.approx(truth.values, rel=1e-4)


def test_packed_chats_are_sampled_as_they_are_packed(tmp_path: Path) -> None:
    def make_packed(folder: str) -> Any:
        return make_sft(folder, packing=True)

    averaging = om.PosteriorSettings(family="isotropic")
    bench = fitted(tmp_path, make_packed, posterior=averaging)
    tokens = bench.parts["weights"]["mean_label_tokens"]
    assert tokens["short"] > 6 and tokens["long"] > 12, "several chats a row"
    weights = {"short": 0.25, "long": 0.75}
    truth = bench.finetune(weights, lambda step, metrics: None)
    assert set(truth.values) == set(bench.preview(weights).values) == set(TRAIN)


def test_the_loss_of_a_batch_is_the_mean_of_its_label_tokens(tmp_path: Path) -> None:
    trainer = make_sft(str(tmp_path))
    rows = [trainer.eval_dataset[task][0] for task in ("short", "long")]

    def loss(some: list[dict[str, Any]]) -> tuple[float, float]:
        batches = iter([trainer.data_collator(some)])
        (batch,), count = trainer.get_batch_samples(batches, 1, torch.device("cpu"))
        found = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
        return float(found.detach()), float(count)

    (short, few), (long, many), (both, all_) = loss(rows[:1]), loss(rows[1:]), loss(rows)
    assert all_ == few + many == 9
    assert both == pytest.approx((few * short + many * long) / all_, rel=1e-5)


def test_rows_that_no_trainer_takes_are_named(tmp_path: Path) -> None:
    strange = {"short": Dataset.from_dict({"picture": [1, 2]}), "long": texts(3, 1)}
    with pytest.raises(ValueError, match=r"task 'short': .* can't make a batch .*picture"):
        om.from_trainer(make_sft, strange, workdir=tmp_path)
