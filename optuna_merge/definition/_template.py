"""What `optuna-merge init` writes."""

TEMPLATE = """\
# A study of task weights:   optuna-merge optimize FILE --n-trials 50
# Every command takes this file. Paths are relative to its folder. Lines that begin with # are
# optional, and show what is taken without them (or an example, where it says so).

model:
  kind: text                        # text: transformers; image: timm
  name: distilbert-base-uncased     # on the hub, or a folder beside this file
  trainable: all                    # or {last_layers: 2}, or {matching: "layer\\\\.5"}
  # lora: {r: 8, alpha: 16, target_modules: [q_lin, v_lin]}   # example; of the body LoRA alone
  # pretrained: true                # image only
  # batch_norm: pretrained          # image only; or reestimated

# For all tasks; a task may say otherwise.
data:
  train: data.csv                   # .csv, .tsv, .json, .jsonl; images: a folder of folders
  validation: 0.2                   # a file (a folder) of its own, or a share of train
  test: 0.2                         # the same, or leave it out; looked at once, by the report
  text: text                        # column; for pairs of texts [premise, hypothesis]
  max_length: 128                   # tokens kept of each text
  # metric: accuracy                # or macro_f1, matthews
  # dataset: imdb                   # example: of the hub; train and test are then its splits
  # augment: false                  # image only: timm's augmentation of training images

# At least two. `label` is a column of texts or numbers; rows without a label are left out (an
# empty or blank cell, null, NaN).
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
"""What `optuna-merge init` writes: a definition with every choice explained in its comments."""
