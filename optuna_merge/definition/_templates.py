"""What `optuna-merge init` writes: definitions with every choice explained in their comments."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_TEXT = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# All commands take this file. Paths are relative to its folder. Settings behind # are optional;
# such a line shows the default, or an example where it says so.

model:
  kind: text                        # encoders of transformers
  name: distilbert-base-uncased     # on the hub, or a folder of save_pretrained
  trainable: all                    # or {last_layers: 2}, or {matching: "layer\\\\.5"}
  # lora: {r: 8, alpha: 16, target_modules: [q_lin, v_lin]}   # example: train LoRA only

# For all tasks; a task may have settings of its own.
data:
  train: data.csv                   # .csv, .tsv, .json, .jsonl or .parquet
  validation: 0.2                   # a file of its own, or a share of train
  test: 0.2                         # the same, or leave it out; only the report uses it
  text: text                        # column; for pairs of texts [premise, hypothesis]
  max_length: 128                   # tokens kept of each text
  # metric: accuracy                # or macro_f1, matthews
  # dataset: imdb                   # example: a dataset of the hub, with its splits

# At least two, named by letters, digits, _ and -. `label` is a column of texts or numbers. Rows
# without a label are left out (an empty or blank cell, null, NaN, and NA among numbers).
tasks:
  - name: topic
    label: topic
  - name: tone
    label: tone
    # train: other.csv              # example: data of its own
    # head: shared                  # example: tasks that name one head share it; it is merged

finetuning:                         # of each task alone, and of all tasks at task weights
  steps: 200
  batch_size: 32                    # of each task
  learning_rate: 5e-5
  # head_learning_rate: 1e-3        # example; by default learning_rate
  # optimizer: adamw                # or ivon
  # mixed_precision: "no"           # or bf16, fp16
  # seed: 0

# posterior:
#   family: diagonal                # or isotropic, kronecker, ...; an unknown name lists all
#   examples: 512                   # training examples for the curvature

score: mean                         # or relative, worst, worst_relative, target:topic, pareto
# constraints: 0.95                 # example: no task below 95 % of what it reaches alone, or
# constraints: [{task: tone, at_least: 0.8}]

# search:                           # flags of the same names override it
#   second_seed: true               # finetune uniform weights twice, to measure the noise
#   stop_when_flat: true            # stop when no gain above the noise is expected
#   budget: 10                      # example: cap on the cost of the study, in finetunes
#   until: 0.25                     # example: stop below this expected gain, in noises
"""

_IMAGE = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# All commands take this file. Paths are relative to its folder. Settings behind # are optional;
# such a line shows the default, or an example where it says so.

model:
  kind: image                       # models of timm
  name: resnet18.a1_in1k            # on the hub, or local-dir:/path/of/a/folder
  trainable: all                    # or {last_layers: 2}, or {matching: "layer4"}
  # pretrained: true                # false: from random parameters
  # batch_norm: pretrained          # or reestimated

# For all tasks; a task may have settings of its own.
data:
  validation: 0.2                   # a folder of its own, or a share of train
  test: 0.2                         # the same, or leave it out; only the report uses it
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

finetuning:                         # of each task alone, and of all tasks at task weights
  steps: 200
  batch_size: 32                    # of each task
  learning_rate: 5e-5
  # head_learning_rate: 1e-3        # example; by default learning_rate
  # optimizer: adamw                # or ivon
  # mixed_precision: "no"           # or bf16, fp16
  # seed: 0

# posterior:
#   family: diagonal                # or isotropic, kronecker, ...; an unknown name lists all
#   examples: 512                   # training examples for the curvature

score: mean                         # or relative, worst, worst_relative, target:topic, pareto
# constraints: 0.95                 # example: no task below 95 % of what it reaches alone, or
# constraints: [{task: tone, at_least: 0.8}]

# search:                           # flags of the same names override it
#   second_seed: true               # finetune uniform weights twice, to measure the noise
#   stop_when_flat: true            # stop when no gain above the noise is expected
#   budget: 10                      # example: cap on the cost of the study, in finetunes
#   until: 0.25                     # example: stop below this expected gain, in noises
"""

_LANGUAGE = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# All commands take this file. Paths are relative to its folder. Settings behind # are optional;
# such a line shows the default, or an example where it says so.

model:
  kind: language                    # of transformers: causal (Llama, Qwen, GPT-2) or T5, BART
  name: HuggingFaceTB/SmolLM2-135M  # on the hub, or a folder beside this file
  lora: {r: 8, alpha: 16}           # leave it out to train all; target_modules: all-linear
  # trainable: all                  # without lora; or {last_layers: 2}

# For all tasks; a task may have settings of its own. Only answers are learnt, and measured.
data:
  validation: 0.1                   # a file of its own, or a share of train
  test: 0.1                         # the same, or leave it out; only the report uses it
  prompt: prompt                    # columns
  answer: answer
  # separator: "\\n"                 # between prompt and answer; causal models only
  # chat: false                     # true: as turns, by the tokenizer's chat template
  # max_prompt_length: 256          # tokens kept, the last ones
  # max_answer_length: 128          # tokens kept, the first ones
  # metric: token_loss              # or perplexity, token_accuracy
  # dataset: name                   # example: a dataset of the hub, with its splits

# At least two, each of a file: .jsonl, .json, .csv, .tsv or .parquet.
tasks:
  - name: math
    train: math.jsonl
  - name: chat
    train: chat.jsonl
    messages: messages              # a column of lists of {role, content} in place of prompts
    # max_length: 1024              # tokens kept of a conversation, the last ones
    # text: text                    # example: a column of texts that are learnt completely

finetuning:                         # of each task alone, and of all tasks at task weights
  steps: 200
  batch_size: 8                     # of each task
  learning_rate: 2e-4
  # mixed_precision: "no"           # or bf16, fp16
  # seed: 0

# runs:                             # example: checkpoints that you already have, in place of
#   math: checkpoints/math          # a task's own run; adapters of the same base, or folders

# posterior:
#   family: diagonal                # or isotropic, kronecker, ...; an unknown name lists all
#   examples: 512                   # training examples for the curvature

score: mean                         # of losses: lower is better; or relative, worst, pareto, ...
# constraints: 0.95                 # example: no task's loss above 1 / 0.95 of what it is alone

# search:                           # flags of the same names override it
#   budget: 10                      # example: cap on the cost of the study, in finetunes
"""

_COMMAND = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# fit, optimize, report, replay and gc take this file. Settings behind # are optional; such a
# line shows the default, or an example where it says so.

# A program that trains and writes its model to {checkpoint}: a folder of save_pretrained, a LoRA
# adapter, or a safetensors file. After a kill it is started again in the same {folder}. The lines
# run without a shell, in the folder where optuna-merge was started.
trainer:
  kind: command
  train: python train.py {folder} {checkpoint} {weights} {seed} {steps}   # or {weight:math} ...
  evaluate: python evaluate.py {checkpoint}     # prints at the end: {"math": 0.4, "chat": 0.7}
  steps: 1000                       # of one finetune
  unit: examples                    # how it uses weights: as shares of the sampled examples;
                                    # or tokens (shares of packed tokens), or losses (factors)
  # unit: {kind: examples, label_tokens: {math: 120, chat: 300}}   # loss averaged over tokens
  # greater_is_better: true         # of the metrics
  # metric: "{task}"                # key of a task's metric in the printed line
  # checkpoint: model               # its name in the folder
  # seed: 0
  # time_limit: 3600                # example: seconds of one call
  # about: {data: second version}   # example: if it changes, all is trained again

tasks: [math, chat]                 # at least two

# runs:                             # example: checkpoints that you already have, in place of
#   math: checkpoints/math          # a task's own run; paths are relative to this file

score: mean                         # or relative, worst, worst_relative, target:math, pareto
# constraints: 0.95                 # example: no task below 95 % of what it reaches alone

# search:                           # flags of the same names override it
#   budget: 10                      # example: cap on the cost of the study, in finetunes
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
