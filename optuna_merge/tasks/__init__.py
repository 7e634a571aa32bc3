"""Tasks: data, loss, metrics and head of each thing that the model is finetuned for."""

from optuna_merge.tasks._data import (
    DECODER,
    LABELS,
    MASK,
    Batch,
    Data,
    TensorData,
    batches_in_order,
    fingerprint,
    to_device,
    unpadded_batches,
)
from optuna_merge.tasks._draws import own_draws, seed_draws
from optuna_merge.tasks._evaluation import (
    Evaluation,
    EvaluationBatches,
    check_finite,
    evaluate,
)
from optuna_merge.tasks._image import image_task
from optuna_merge.tasks._language import language_task, seq2seq_task
from optuna_merge.tasks._losses import (
    Loss,
    cross_entropy,
    mean_squared_error,
    token_cross_entropy,
)
from optuna_merge.tasks._metrics import (
    Measurement,
    Metric,
    ModelMeasure,
    accuracy,
    bleu,
    chrf,
    lm_eval_metric,
    macro_f1,
    matthews,
    negative_squared_error,
    pearson,
    perplexity,
    squared_error,
    text_metric,
    token_accuracy,
    torchmetrics_metric,
)
from optuna_merge.tasks._pretrained import load_tokenizer, loading
from optuna_merge.tasks._task import SPLITS, Task, check_tasks
from optuna_merge.tasks._text import text_task

__all__ = [
    "DECODER",
    "LABELS",
    "MASK",
    "SPLITS",
    "Batch",
    "Data",
    "Evaluation",
    "EvaluationBatches",
    "Loss",
    "Measurement",
    "Metric",
    "ModelMeasure",
    "Task",
    "TensorData",
    "accuracy",
    "batches_in_order",
    "bleu",
    "check_finite",
    "check_tasks",
    "chrf",
    "cross_entropy",
    "evaluate",
    "fingerprint",
    "image_task",
    "language_task",
    "lm_eval_metric",
    "load_tokenizer",
    "loading",
    "macro_f1",
    "matthews",
    "mean_squared_error",
    "negative_squared_error",
    "own_draws",
    "pearson",
    "perplexity",
    "seed_draws",
    "seq2seq_task",
    "squared_error",
    "text_metric",
    "text_task",
    "to_device",
    "token_accuracy",
    "token_cross_entropy",
    "torchmetrics_metric",
    "unpadded_batches",
]
