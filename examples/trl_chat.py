"""TRL's SFTTrainer with LoRA on chats: how much of each of two sources is best for both?

    python examples/trl_chat.py                              # a tiny random Llama
    python examples/trl_chat.py HuggingFaceTB/SmolLM2-135M

You need trl and peft. The loss is averaged over the tokens of the assistant's answers.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_body
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import optuna_merge as om

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[BOS] ' + m.content + ' : ' }}{% else %}"
    "{% generation %}{{ m.content + ' [EOS]' }}{% endgeneration %}{% endif %}{% endfor %}"
)
"""Of a tokenizer that has none; TRL knows where the assistant speaks by `generation`."""


def chats(step: int, size: int) -> Dataset:
    """The user names words, the assistant those `step` further on; of step 0 there are more."""
    draw, longest = random.Random(size + step), 2 if step else 5
    rows = []
    for _ in range(size):
        words = [draw.randrange(8) for _ in range(draw.randint(1, longest))]
        asked, answered = (" ".join(f"w{(w + by) % 8}" for w in words) for by in (0, step))
        told = {"role": "assistant", "content": answered}
        rows.append({"messages": [{"role": "user", "content": asked}, told]})
    return Dataset.from_list(rows)


def main() -> None:
    """The chats are given as they are: they are prepared as SFTTrainer prepares its own."""
    with tempfile.TemporaryDirectory() as folder:
        body = sys.argv[1] if len(sys.argv) > 1 else tiny_body("llama", Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(body)
        tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
        train = {"copy": chats(0, 60), "next": chats(1, 60)}
        validation = {"copy": chats(0, 20), "next": chats(1, 20)}

        def make_trainer(folder: str) -> SFTTrainer:
            arguments = SFTConfig(
                folder,
                max_steps=12,
                per_device_train_batch_size=16,
                learning_rate=2e-2,
                assistant_only_loss=True,
                disable_tqdm=True,
                bf16=torch.cuda.is_available(),
            )
            return SFTTrainer(
                AutoModelForCausalLM.from_pretrained(body),
                arguments,
                train_dataset=train["copy"].select(range(8)),  # the mixture takes its place
                eval_dataset=validation,
                processing_class=tokenizer,
                peft_config=LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"),
            )

        fitted = om.from_trainer(make_trainer, train, workdir=folder, score="worst")
        print(fitted.unit)
        study = om.open_search(fitted, "chats", fraction=0.5, warmup=4, seed=0)
        study.optimize(om.Objective(fitted, progress=False), n_trials=7)
        print(om.format_report(om.make_report(study, fitted)))


if __name__ == "__main__":
    main()
