"""Tasks: data, loss, metrics and head of each thing that the model is finetuned for."""

from optuna_merge.tasks._data import Batch, Data, TensorData, fingerprint
from optuna_merge.tasks._evaluation import Evaluation, evaluate
from optuna_merge.tasks._image import image_task
from optuna_merge.tasks._losses import Loss, cross_entropy, mean_squared_error
from optuna_merge.tasks._metrics import Measurement, Metric, accuracy, negative_squared_error
from optuna_merge.tasks._task import Task, check_tasks
from optuna_merge.tasks._text import text_task

__all__ = [
    "Batch",
    "Data",
    "Evaluation",
    "Loss",
    "Measurement",
    "Metric",
    "Task",
    "TensorData",
    "accuracy",
    "check_tasks",
    "cross_entropy",
    "evaluate",
    "fingerprint",
    "image_task",
    "mean_squared_error",
    "negative_squared_error",
    "text_task",
]
