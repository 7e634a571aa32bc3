"""What was exported, and its model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna_merge._version import __version__
from optuna_merge.definition import StudyDefinition
from optuna_merge.exporting._formats import PEFT, PLAIN, TIMM, TRANSFORMERS
from optuna_merge.exporting._source import Source

Metrics = dict[str, dict[str, dict[str, float | None]]]
"""By task, by split and by metric."""


@dataclass(frozen=True)
class ExportedModel:
    """One model of an export: its folder within it, format, loading class, head, and tasks."""

    folder: str
    format: str
    loader: str | None
    head: str
    outputs: int
    tasks: tuple[str, ...]
    label_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: Where it is.
        kind: "finetune", or "merge", which was not trained.
        trial: The trial whose model it is; None for weights that were given.
        study: The study's name, if one was asked.
        weights: The task weights.
        metrics: By task, by split and by metric; of finetunes also "test", as of the report.
        costs: Training steps and seconds, by what they were spent on.
        models: The models.
        without: Tasks without weight, whose heads were never trained, so that they have no model.
        fingerprint: Of the study's definition.
    """

    folder: Path
    kind: str
    trial: int | None
    study: str | None
    weights: dict[str, float]
    metrics: Metrics
    costs: dict[str, float]
    models: tuple[ExportedModel, ...]
    without: tuple[str, ...]
    fingerprint: str

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with the package's version."""
        return {"optuna_merge": __version__, **asdict(self), "folder": str(self.folder)}


def model_card(export: Export, definition: StudyDefinition, source: Source) -> str:
    """The text of `README.md`, with its front matter for the hub."""
    kind = "Multitask model" if len(export.weights) > 1 else "Model"
    names = ", ".join(export.without)
    told = f"No model for {names}: without weight, the head was not trained.\n"
    without = [told] if names else []
    sections = [
        _front_matter(export, source),
        f"# {kind}: {', '.join(export.weights)}\n",
        _summary(export, source) + "\n",
        _table(export),
        *without,
        "## How to load it\n",
        *(_loading(export, model, source) for model in _examples(export)),
        "## How it was made\n",
        _method(export, definition),
        _costs(export),
        f"Written by optuna_merge {__version__}; study fingerprint `{export.fingerprint[:16]}`. "
        f"Task weights, metrics and costs for programs: `optuna_merge.json`.\n",
    ]
    return "\n".join(sections)


def _front_matter(export: Export, source: Source) -> str:
    library = export.models[0].format if export.models else PLAIN
    lines = ["---", f"library_name: {'pytorch' if library == PLAIN else library}"]
    if source.is_on_hub:
        lines.append(f"base_model: {source.name}")
    if source.licence:
        lines.append(f"license: {source.licence}")
    tags = ["multitask", *(["merge"] if export.kind == "merge" else [])]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---\n"])


def _summary(export: Export, source: Source) -> str:
    what = (
        "The pretrained body, finetuned on all tasks at once at the task weights below"
        if export.kind == "finetune"
        else "A merge of models that were each finetuned on one task, at the task weights below; "
        "the merge itself was not trained"
    )
    licence = source.licence or "unknown: look it up before you pass the model on"
    return f"{what}.\n\n- Base model: {source.name}\n- Licence of the base model: {licence}"


def _table(export: Export) -> str:
    lines = ["| task | weight | metric | validation | test |", "|---|---|---|---|---|"]
    for task, weight in export.weights.items():
        splits = export.metrics.get(task)
        if splits is None:
            lines.append(f"| {task} | {weight:.4f} | - | - | - |")
            continue
        for metric, value in splits["validation"].items():
            test = splits.get("test", {}).get(metric)
            shown = " | ".join("-" if v is None else f"{v:.4f}" for v in (value, test))
            lines.append(f"| {task} | {weight:.4f} | {metric} | {shown} |")
    return "\n".join([*lines, ""])


def _examples(export: Export) -> list[ExportedModel]:
    """One of each format is shown."""
    return list({model.format: model for model in reversed(export.models)}.values())


def _loading(export: Export, model: ExportedModel, source: Source) -> str:
    path = export.folder.name if model.folder == "." else f"{export.folder.name}/{model.folder}"
    where = ""
    if len(export.models) > 1 and model.format != PLAIN:
        folders = ", ".join(f"`{m.folder}` ({', '.join(m.tasks)})" for m in export.models)
        where = f"Each folder is a model of its own: {folders}.\n\n"
    return f"{where}```python\n{_code(model, path, source)}\n```\n"


def _code(model: ExportedModel, path: str, source: Source) -> str:
    if model.format == TRANSFORMERS:
        return (
            f"from transformers import {model.loader}, AutoTokenizer\n\n"
            f'model = {model.loader}.from_pretrained("{path}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{path}")  # if the folder has one'
        )
    if model.format == PEFT:
        kind = str(model.loader)
        labels = f", num_labels={model.outputs}" if "Sequence" in kind else ""
        return (
            f"from peft import PeftModel\nfrom transformers import {kind}\n\n"
            f'base = {kind}.from_pretrained("{source.name}"{labels})\n'
            f'model = PeftModel.from_pretrained(base, "{path}")'
        )
    if model.format == TIMM:
        return f'import timm\n\nmodel = timm.create_model("local-dir:{path}", pretrained=True)'
    head = f"heads/{model.head}.safetensors"
    return (
        "from safetensors.torch import load_file\n\n"
        f'body.load_state_dict(load_file("{path}/model.safetensors"))  # of your own class\n'
        f'head.load_state_dict(load_file("{path}/{head}"))  # outputs = head(body(inputs))'
    )


def _method(export: Export, definition: StudyDefinition) -> str:
    settings, posterior = definition.finetuning, definition.posterior
    lines = [
        "Each task was finetuned once, a Gaussian posterior was made from it, and merges of the "
        "posteriors were previews of task weights in a Bayesian search"
        + ("; the best were really finetuned.\n" if export.kind == "finetune" else ".\n"),
        f"- score of the search: {definition.score_name}",
        f"- finetuning: {settings.steps} steps of {settings.batch_size} examples a task, "
        f"{settings.optimizer}, peak learning rate {settings.peak_rate:g}, seed {settings.seed}",
        f"- trained and merged: {definition.model.trainable!r}",
        f"- posterior: {posterior.family}, curvature by {posterior.estimator}",
    ]
    if definition.settled_preview.anchor == "uniform":
        lines.append("- merges are corrected by the finetune at uniform weights")
    if export.study is not None:
        lines.append(f"- study {export.study!r}, trial {export.trial}")
    return "\n".join([*lines, ""])


def _costs(export: Export) -> str:
    lines = ["| cost | |", "|---|---|"]
    for name, value in export.costs.items():
        shown = f"{value:.0f}" if name.endswith("steps") else f"{value:.1f}"
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join([*lines, ""])
