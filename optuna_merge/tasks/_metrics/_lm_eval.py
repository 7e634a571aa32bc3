"""Metrics by EleutherAI's lm-evaluation-harness: the whole language model on tasks of its own."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import jackknife_measurement, mean_measurement
from optuna_merge.tasks._pretrained import load_tokenizer

Spec = str | os.PathLike[str] | Mapping[str, Any]

_GROUPS = 20
_SEED = 1234
"""Of the examples in few-shot prompts: the harness's own default."""
_ELSEWHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")
"""Of a task's configuration what says where its data are: the data themselves are hashed."""


def lm_eval_metric(
    value: str,
    tasks: Spec | Sequence[Spec],
    tokenizer: Any,
    *,
    test: Spec | Sequence[Spec] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    apply_chat_template: bool | str = False,
    name: str | None = None,
    greater_is_better: bool | None = None,
) -> Metric:
    """A value of lm-evaluation-harness's tasks, of the model in memory: nothing is written.

    For tasks of a model made with `from_language_model`. Previews, rungs and truths run the
    harness on the whole model, as it is then; the data of the `Task` itself serve training, the
    posterior and the loss. The value of several harness tasks is their plain mean.

    The standard error is over examples: s / sqrt(n) where the harness averages, else (BLEU, F1,
    perplexities) by the delete-a-group jackknife with 20 groups, in place of its bootstrap. Texts
    are generated as each harness task says, greedily unless it asks for sampling. The study's
    definition has a hash of the harness tasks' configuration and examples, not the paths.

    Args:
        value: Name of the value, such as "acc", "acc_norm" or "exact_match"; of one of several
            filters as the harness prints it, "exact_match,flexible-extract".
        tasks: What the search sees, one or several: a YAML file of a harness task (paths of data
            in it are relative to the working directory), its content as a dict, or the name of
            one of the harness's own, which needs the hub or its cache.
        tokenizer: The model's Hugging Face tokenizer, or the name or folder of one.
        test: What the final table's test column is measured on; needed where the `Task` has test
            data.
        num_fewshot: Examples in each prompt; None: as the harness tasks say, else 0.
        limit: Only so many examples of each, the first ones.
        batch_size: Examples a forward pass.
        apply_chat_template: Put prompts into the tokenizer's chat template, or in that of a name.
        name: Stands in the study's definition and in tables; default: `value`.
        greater_is_better: Default: what the harness tasks say.

    Raises:
        ImportError: lm_eval isn't installed.
        ValueError: no task, no such file or name, a value that a task does not have, or that
            doesn't say whether greater is better.
    """
    by_split = {"validation": _listed(tasks), "test": _listed(test)}
    if not by_split["validation"]:
        raise ValueError("lm_eval_metric needs at least one task of lm-eval, got none")
    specs = {split: found for split, found in by_split.items() if found}
    harness = Harness(value, specs, tokenizer, num_fewshot, limit, batch_size, apply_chat_template)
    if greater_is_better is None:
        greater_is_better = harness.greater_is_better()
    return Metric(name or value, _never, greater_is_better, of_model=harness)


class Harness:
    """Runs the harness; see `lm_eval_metric`."""

    def __init__(
        self,
        value: str,
        specs: Mapping[str, Sequence[Spec]],
        tokenizer: Any,
        num_fewshot: int | None,
        limit: int | None,
        batch_size: int,
        apply_chat_template: bool | str,
    ) -> None:
        self._value, _, chosen = value.partition(",")
        self._filter = chosen or None
        # A copy: the harness gives it a padding token.
        self._tokenizer = copy.deepcopy(load_tokenizer(tokenizer))
        self._limit, self._batch_size = limit, batch_size
        self._apply_chat_template = apply_chat_template
        self._tasks = {split: _load(some, num_fewshot) for split, some in specs.items()}
        self.splits = tuple(self._tasks)
        for name, task in self._all():
            if self._value not in task.aggregation():
                raise ValueError(
                    f"lm-eval's task {name!r} has no value {self._value!r} among "
                    f"{sorted(task.aggregation())}"
                )

    def greater_is_better(self) -> bool:
        """What the harness's tasks say of the value."""
        said = {task.higher_is_better().get(self._value) for _, task in self._all()}
        if said not in ({True}, {False}):
            raise ValueError(
                f"lm-eval's tasks don't all say whether a greater {self._value!r} is better; give "
                f"greater_is_better"
            )
        return bool(said.pop())

    def describe(self) -> dict[str, Any]:
        """What is asked, as JSON values; see `lm_eval_metric`."""
        return copy.deepcopy(self._described)

    @cached_property
    def _described(self) -> dict[str, Any]:
        return {
            "value": ",".join(filter(None, (self._value, self._filter))),
            "limit": self._limit,
            "apply_chat_template": self._apply_chat_template,
            "tasks": {
                split: {name: self._hash(task) for name, task in tasks.items()}
                for split, tasks in self._tasks.items()
            },
        }

    def __call__(self, network: Any, split: str) -> Measurement:
        """The value of a transformers model, where it is."""
        import lm_eval

        tasks = self._tasks[split]
        for task in tasks.values():
            task.set_fewshot_seed(seed=_SEED)
        with _quiet():
            found = lm_eval.evaluate(
                lm=_wrapped(network, self._tokenizer, self._batch_size),
                task_dict={"tasks": tasks},
                limit=self._limit,
                bootstrap_iters=0,  # it would print, and start processes
                log_samples=True,
                apply_chat_template=self._apply_chat_template,
            )
        each = [self._measured(name, task, found["samples"][name]) for name, task in tasks.items()]
        squares = sum(m.standard_error**2 for m in each)
        return Measurement(sum(m.value for m in each) / len(each), math.sqrt(squares) / len(each))

    def _measured(self, name: str, task: Any, samples: list[dict[str, Any]]) -> Measurement:
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        chosen = self._filter or filters[0]
        if chosen not in filters:
            raise ValueError(f"lm-eval's task {name!r} has no filter {chosen!r} among {filters}")
        values = [s[self._value] for s in samples if s["filter"] == chosen and self._value in s]
        if not values:
            raise ValueError(f"lm-eval's task {name!r} gave no {self._value!r} for any example")
        function = task.aggregation()[self._value]

        def aggregated(rows: list[int]) -> float:
            return float(function([values[row] for row in rows]))

        if all(isinstance(v, (bool, int, float)) or getattr(v, "ndim", 1) == 0 for v in values):
            mean = mean_measurement(torch.tensor([float(v) for v in values], dtype=torch.float64))
            if math.isclose(mean.value, aggregated(list(range(len(values)))), rel_tol=1e-9):
                return mean
        return jackknife_measurement(aggregated, len(values), _GROUPS)

    def _hash(self, task: Any) -> str:
        config = {
            key: value
            for key, value in task.config.to_dict(keep_callable=False).items()
            if key not in _ELSEWHERE
        }
        digest = hashlib.sha256(_canonical(config))
        examples = list(task.eval_docs)[: self._limit]
        few = list(task.fewshot_docs() or ()) if task.get_config("num_fewshot") else []
        for example in [*examples, *few]:
            digest.update(_canonical(example))
        return digest.hexdigest()

    def _all(self) -> Iterator[tuple[str, Any]]:
        for tasks in self._tasks.values():
            yield from tasks.items()


def _listed(specs: Spec | Sequence[Spec]) -> list[Spec]:
    one = isinstance(specs, (str, os.PathLike, Mapping))
    return [specs] if one else list(specs)  # type: ignore[arg-type, list-item]


def _load(specs: Sequence[Spec], num_fewshot: int | None) -> dict[str, Any]:
    """The harness's tasks by name, their data read."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError("lm_eval_metric needs lm-eval: pip install lm-eval") from error
    ready: list[Any] = []
    for spec in specs:
        if isinstance(spec, Mapping):
            ready.append(copy.deepcopy(dict(spec)))
            continue
        text = os.fspath(spec)
        if text.endswith((".yaml", ".yml")) and not Path(text).is_file():
            raise ValueError(f"there is no file {text} of an lm-eval task")
        ready.append(text)
    # Its own tasks are thousands of files, read only where one is named.
    named = any(isinstance(s, str) and not s.endswith((".yaml", ".yml")) for s in ready)
    with _quiet():
        try:
            tasks: dict[str, Any] = TaskManager(include_defaults=named).load(ready)["tasks"]
        except KeyError as error:
            raise ValueError(f"lm-eval: {error.args[0]}") from error
    for task in tasks.values():
        if num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        _silence(task)
    return tasks


def _silence(task: Any) -> None:
    """Building its requests shows a progress bar that nothing else turns off."""
    build = task.build_all_requests

    def quietly(**options: Any) -> None:
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            build(**options)

    task.build_all_requests = quietly


def _wrapped(network: Any, tokenizer: Any, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=batch_size)
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, name, partial(getattr(model, name), disable_tqdm=True))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log lines about each evaluation."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _never(outputs: Tensor, labels: Tensor) -> Measurement:
    raise TypeError("a metric of a whole model has no value for outputs and labels")
