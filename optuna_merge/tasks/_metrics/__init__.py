"""Metrics over a data set, each with the standard error that comes from the finite data."""

from optuna_merge.tasks._metrics._classification import accuracy, macro_f1, matthews
from optuna_merge.tasks._metrics._lm_eval import lm_eval_metric
from optuna_merge.tasks._metrics._metric import Measurement, Metric, ModelMeasure
from optuna_merge.tasks._metrics._regression import negative_squared_error, pearson, squared_error
from optuna_merge.tasks._metrics._standard_errors import mean_measurement
from optuna_merge.tasks._metrics._texts import bleu, chrf, text_metric
from optuna_merge.tasks._metrics._tokens import perplexity, token_accuracy, token_loss
from optuna_merge.tasks._metrics._torchmetrics import torchmetrics_metric

__all__ = [
    "Measurement",
    "Metric",
    "ModelMeasure",
    "accuracy",
    "bleu",
    "chrf",
    "lm_eval_metric",
    "macro_f1",
    "matthews",
    "mean_measurement",
    "negative_squared_error",
    "pearson",
    "perplexity",
    "squared_error",
    "text_metric",
    "token_accuracy",
    "token_loss",
    "torchmetrics_metric",
]
