"""Into which models a multitask model is taken apart, and who writes each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna_merge.models import LanguageModel, MultitaskModel
from optuna_merge.tasks import Task


@dataclass(frozen=True)
class Part:
    """One model of an export: its folder ("" is all), network, its loader, head and tasks."""

    folder: str
    network: Any
    loader: str
    head: str
    tasks: tuple[Task, ...]

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes, if all its tasks have the same."""
        names = {None if t.label_names is None else tuple(t.label_names) for t in self.tasks}
        return names.pop() if len(names) == 1 else None


def take_apart(model: MultitaskModel, tasks: Sequence[Task]) -> list[Part]:
    """One part per network: tasks that share a head share a model.

    Where batch norms have statistics of each task, a model per task. A single part is the export
    itself; several have a folder each, named by their task or shared head.
    """
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        network = network_of(model, task)
        groups.setdefault((id(network), task.name if model.reestimates else ""), []).append(task)
    parts = []
    for found in groups.values():
        network = network_of(model, found[0])
        name = found[0].name if model.reestimates or len(found) == 1 else str(found[0].head)
        folder = name if len(groups) > 1 else ""
        loader = "AutoModelForSequenceClassification"
        if isinstance(model.heads[str(found[0].head)], LanguageModel):
            decoder = network.config.is_encoder_decoder
            loader = "AutoModelForSeq2SeqLM" if decoder else "AutoModelForCausalLM"
        parts.append(Part(folder, network, loader, str(found[0].head), tuple(found)))
    return parts


def network_of(model: MultitaskModel, task: Task) -> Any:
    """The task's network; of a language model the transformers model itself."""
    network = model.heads[str(task.head)]
    return network.network if isinstance(network, LanguageModel) else network
