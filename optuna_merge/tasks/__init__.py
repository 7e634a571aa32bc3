"""Tasks: data, loss, metrics and head of each thing that the model is finetuned for."""

from optuna_merge.tasks._chat import chat_task
from optuna_merge.tasks._data import (
    DECODER as DECODER,
    LABELS as LABELS,
    MASK as MASK,
    Batch,
    Data,
    TensorData,
    batches_in_order as batches_in_order,
    fingerprint,
    to_device as to_device,
    unpadded_batches as unpadded_batches,
)
from optuna_merge.tasks._draws import own_draws as own_draws, seed_draws as seed_draws
from optuna_merge.tasks._evaluation import (
    Evaluation,
    EvaluationBatches,
    check_finite as check_finite,
    evaluate,
)
from optuna_merge.tasks._image import image_task
from optuna_merge.tasks._language import language_task, seq2seq_task
from optuna_merge.tasks._losses import Loss, cross_entropy, mean_squared_error, token_cross_entropy
from optuna_merge.tasks._metrics._classification import accuracy, macro_f1, matthews
from optuna_merge.tasks._metrics._lm_eval import lm_eval_metric
from optuna_merge.tasks._metrics._metric import Measurement, Metric, ModelMeasure
from optuna_merge.tasks._metrics._regression import negative_squared_error, pearson, squared_error
from optuna_merge.tasks._metrics._texts import bleu, chrf, text_metric
from optuna_merge.tasks._metrics._tokens import perplexity, token_accuracy, token_loss
from optuna_merge.tasks._pretrained import load_tokenizer as load_tokenizer, loading as loading
from optuna_merge.tasks._task import SPLITS as SPLITS, Task, check_name as check_name, check_tasks
from optuna_merge.tasks._text import text_task

__all__ = [
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
    "bleu",
    "chat_task",
    "check_tasks",
    "chrf",
    "cross_entropy",
    "evaluate",
    "fingerprint",
    "image_task",
    "language_task",
    "lm_eval_metric",
    "macro_f1",
    "matthews",
    "mean_squared_error",
    "negative_squared_error",
    "pearson",
    "perplexity",
    "seq2seq_task",
    "squared_error",
    "text_metric",
    "text_task",
    "token_accuracy",
    "token_cross_entropy",
    "token_loss",
]
