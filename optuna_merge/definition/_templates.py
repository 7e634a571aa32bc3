"""What `optuna-merge init` writes: definitions with every choice explained in their comments."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_TEXT = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# Every command takes this file. Paths are relative to its folder. Lines that begin with # are
# optional, and show what is taken without them (or an example, where it says so).

model:
  kind: text                        # encoders of transformers
  name: distilbert-base-uncased     # on the hub, or a folder of save_pretrained
  trainable: all                    # or {last_layers: 2}, or {matching: "layer\\\\.5"}
  # lora: {r: 8, alpha: 16, target_modules: [q_lin, v_lin]}   # example; of the body LoRA alone

# For all tasks; a task may say otherwise.
data:
  train: data.csv                   # .csv, .tsv, .json, .jsonl or .parquet
  validation: 0.2                   # a file of its own, or a share of train
  test: 0.2                         # the same, or leave it out; looked at once, by the report
  text: text                        # column; for pairs of texts [premise, hypothesis]
  max_length: 128                   # tokens kept of each text
  # metric: accuracy                # or macro_f1, matthews
  # dataset: imdb                   # example: of the hub; train and test are then its splits

# At least two, named by letters, digits, _ and -. `label` is a column of texts or numbers. Rows
# without a label are left out (an empty or blank cell, null, NaN, and NA among numbers).
tasks:
  - name: topic
    label: topic
  - name: tone
    label: tone
    # train: other.csv              # example: data of its own
    # head: shared                  # example: tasks that name one head share it; it is merged

finetuning:                         # of each task alone, and of all of them at the weights found
  steps: 200
  batch_size: 32                    # of each task
  learning_rate: 5e-5
  # head_learning_rate: 1e-3        # example; else as learning_rate
  # optimizer: adamw                # or ivon
  # mixed_precision: "no"           # or bf16, fp16
  # seed: 0

# posterior:
#   family: diagonal                # or isotropic, kronecker, ...: any other word lists them
#   examples: 512                   # of training data, for the curvature

score: mean                         # or relative, worst, worst_relative, target:topic, pareto
# constraints: 0.95                 # example: no task below 95 % of what it reaches alone, or
# constraints: [{task: tone, at_least: 0.8}]

# search:                           # flags of the same names override it
#   second_seed: true               # uniform weights twice: tells the noise of a finetune
#   stop_when_flat: true            # once nothing above the noise is expected
#   budget: 10                      # example: all that it may cost, in finetunes
#   until: 0.25                     # example: or once a finetune promises less of the noise
"""

_IMAGE = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# Every command takes this file. Paths are relative to its folder. Lines that begin with # are
# optional, and show what is taken without them (or an example, where it says so).

model:
  kind: image                       # models of timm
  name: resnet18.a1_in1k            # on the hub, or local-dir:/path/of/a/folder
  trainable: all                    # or {last_layers: 2}, or {matching: "layer4"}
  # pretrained: true                # false: from random parameters
  # batch_norm: pretrained          # or reestimated

# For all tasks; a task may say otherwise.
data:
  validation: 0.2                   # a folder of its own, or a share of train
  test: 0.2                         # the same, or leave it out; looked at once, by the report
  # metric: accuracy                # or macro_f1, matthews
  # augment: false                  # true: timm's augmentation of training images

# At least two, named by letters, digits, _ and -. Each has a folder, with a folder of images for
# each class.
tasks:
  - name: topic
    train: images/topic
  - name: tone
    train: images/tone
    # head: shared                  # example: tasks that name one head share it; it is merged

finetuning:                         # of each task alone, and of all of them at the weights found
  steps: 200
  batch_size: 32                    # of each task
  learning_rate: 5e-5
  # head_learning_rate: 1e-3        # example; else as learning_rate
  # optimizer: adamw                # or ivon
  # mixed_precision: "no"           # or bf16, fp16
  # seed: 0

# posterior:
#   family: diagonal                # or isotropic, kronecker, ...: any other word lists them
#   examples: 512                   # of training data, for the curvature

score: mean                         # or relative, worst, worst_relative, target:topic, pareto
# constraints: 0.95                 # example: no task below 95 % of what it reaches alone, or
# constraints: [{task: tone, at_least: 0.8}]

# search:                           # flags of the same names override it
#   second_seed: true               # uniform weights twice: tells the noise of a finetune
#   stop_when_flat: true            # once nothing above the noise is expected
#   budget: 10                      # example: all that it may cost, in finetunes
#   until: 0.25                     # example: or once a finetune promises less of the noise
"""

_LANGUAGE = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# Every command takes this file. Paths are relative to its folder. Lines that begin with # are
# optional, and show what is taken without them (or an example, where it says so).

model:
  kind: language                    # of transformers: causal (Llama, Qwen, GPT-2) or T5, BART
  name: HuggingFaceTB/SmolLM2-135M  # on the hub, or a folder beside this file
  lora: {r: 8, alpha: 16}           # leave it out to train all; target_modules: all-linear
  # trainable: all                  # without lora; or {last_layers: 2}

# For all tasks; a task may say otherwise. Only answers are learnt, and measured.
data:
  validation: 0.1                   # a file of its own, or a share of train
  test: 0.1                         # the same, or leave it out; looked at once, by the report
  prompt: prompt                    # columns
  answer: answer
  # separator: "\\n"                 # between prompt and answer; causal models only
  # chat: false                     # true: as turns, by the tokenizer's chat template
  # max_prompt_length: 256          # tokens kept, the last ones
  # max_answer_length: 128          # tokens kept, the first ones
  # metric: token_loss              # or perplexity, token_accuracy
  # dataset: name                   # example: of the hub; train and test are then its splits

# At least two, each of a file: .jsonl, .json, .csv, .tsv or .parquet.
tasks:
  - name: math
    train: math.jsonl
  - name: chat
    train: chat.jsonl
    messages: messages              # a column of lists of {role, content} in place of prompts
    # max_length: 1024              # tokens kept of a conversation, the last ones
    # text: text                    # example: a column of whole texts, all of which is learnt

finetuning:                         # of each task alone, and of all of them at the weights found
  steps: 200
  batch_size: 8                     # of each task
  learning_rate: 2e-4
  # mixed_precision: "no"           # or bf16, fp16
  # seed: 0

# runs:                             # example: checkpoints that are there already, in place of
#   math: checkpoints/math          # a task's own run; adapters of the same base, or folders

# posterior:
#   family: diagonal                # or isotropic, kronecker, ...: any other word lists them
#   examples: 512                   # of training data, for the curvature

score: mean                         # of losses: lower is better; or relative, worst, pareto, ...
# constraints: 0.95                 # example: no task's loss above 1 / 0.95 of what it is alone

# search:                           # flags of the same names override it
#   budget: 10                      # example: all that it may cost, in finetunes
"""

_COMMAND = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# Every command takes this file. Lines that begin with # are optional, and show what is taken
# without them (or an example, where it says so).

# A program that trains. It leaves its model in {checkpoint}: a folder of save_pretrained, a LoRA
# adapter, or a safetensors file. It is started again in the same {folder} after a kill. No shell
# reads the lines; they run where optuna-merge was started.
trainer:
  kind: command
  train: python train.py {folder} {checkpoint} {weights} {seed} {steps}   # or {weight:math} ...
  evaluate: python evaluate.py {checkpoint}     # its last line: {"math": 0.4, "chat": 0.7}
  steps: 1000                       # of one finetune
  unit: examples                    # what its weights are: shares of the sampled examples, or
                                    # of packed tokens, or factors of averaged losses
  # unit: {kind: examples, label_tokens: {math: 120, chat: 300}}   # loss averaged over tokens
  # greater_is_better: true         # of the metrics; false where the key ends with loss, ...
  # metric: "{task}"                # key of a task's metric in what is printed
  # checkpoint: model               # its name in the folder
  # seed: 0
  # time_limit: 3600                # example: seconds of one call
  # about: {data: second version}   # example: where it changes, all is trained anew

tasks: [math, chat]                 # at least two

# runs:                             # example: checkpoints that are there already, in place of
#   math: checkpoints/math          # a task's own run; paths are relative to this file

score: mean                         # or relative, worst, worst_relative, target:math, pareto
# constraints: 0.95                 # example: no task below 95 % of what it reaches alone

# search:                           # flags of the same names override it
#   budget: 10                      # example: all that it may cost, in finetunes
"""

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "text": _TEXT,
        "image": _IMAGE,
        "language": _LANGUAGE,
        "command": _COMMAND,
    }
)
"""Definitions to start from by kind; each explains every choice in its comments."""
