"""A multitask model as models of its own, of transformers, peft, timm, or any module."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from optuna_merge.models import BodyAndHead, LanguageModel, MultitaskModel, quiet
from optuna_merge.tasks import Task, to_device


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


_logger = logging.getLogger(__name__)

TRANSFORMERS, PEFT, TIMM, PLAIN = "transformers", "peft", "timm", "plain"

_TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}

_ADAPTER = "default"
"""The name that peft gives an adapter."""


def save_part(part: Part, model: MultitaskModel, root: Path) -> tuple[str, Path]:
    """Write one model below `root`; return the format, and the folder it was written to."""
    from transformers import PreTrainedModel

    folder = root / part.folder
    if isinstance(part.network, PreTrainedModel):
        folder.mkdir(exist_ok=True)
        if getattr(model.body, "peft_config", None) is not None:
            _save_adapter(part, model.body, folder)
            return PEFT, folder
        _save_transformer(part, folder)
        return TRANSFORMERS, folder
    reassembled = _timm_model(part, model)
    if reassembled is not None:
        folder.mkdir(exist_ok=True)
        _save_timm(reassembled, part, folder)
        return TIMM, folder
    if not model.reestimates:  # one body for all heads
        folder = root
    folder.mkdir(exist_ok=True)
    _save_plain(part, model.body, folder)
    return PLAIN, folder


def _save_transformer(part: Part, folder: Path) -> None:
    from transformers import AutoConfig

    with quiet():
        part.network.save_pretrained(folder)
    if part.label_names is not None:
        config = AutoConfig.from_pretrained(folder)
        config.id2label = dict(enumerate(part.label_names))
        config.label2id = {name: i for i, name in enumerate(part.label_names)}
        config.save_pretrained(folder)


def _save_adapter(part: Part, body: Any, folder: Path) -> None:
    """Adapter and head as `PeftModel.save_pretrained` writes them; targets are named in full."""
    network = part.network
    inside = "" if network is body else f"{network.base_model_prefix}."
    tensors, targets, heads = {}, set(), set()
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            targets.add(name[: name.index(".lora_")])
            tensors[name.replace(f".{_ADAPTER}.", ".")] = tensor
        elif inside and not name.startswith(inside):
            heads.add(name.split(".")[0])
            tensors[name] = tensor
    config = copy.deepcopy(body.peft_config[_ADAPTER])
    config.target_modules = targets
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    config.modules_to_save = sorted(heads) or None
    config.base_model_name_or_path = network.config.name_or_path
    config.inference_mode = True
    config.task_type = _TASK_TYPES[part.loader]
    config.save_pretrained(str(folder))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(_plain_tensors(named), folder / "adapter_model.safetensors", {"format": "pt"})


def _timm_model(part: Part, model: MultitaskModel) -> nn.Module | None:
    """The part as one timm model; None if it is none, or not by timm's own classifier."""
    network = part.network
    config = getattr(model.body, "pretrained_cfg", None)
    if not isinstance(network, BodyAndHead) or not isinstance(network.head, nn.Linear):
        return None
    if not isinstance(config, dict) or not config.get("architecture"):
        return None
    import timm

    options = {**getattr(model.body, "_model_args", {}), "num_classes": network.head.out_features}
    try:
        whole = timm.create_model(config["architecture"], pretrained=False, **options)
        whole.pretrained_cfg = dict(config)
        classifier = whole.get_classifier()
        classifier.load_state_dict(network.head.state_dict())
        places = [n for n, module in whole.named_modules() if module is classifier]
        missing, unexpected = whole.load_state_dict(network.body.state_dict(), strict=False)
        if unexpected or {name.rpartition(".")[0] for name in missing} - set(places):
            return None
    except (RuntimeError, TypeError, AttributeError) as error:
        _logger.warning("not written in timm's format: %s", error)
        return None
    task = part.tasks[0]
    batch = to_device(task.data("validation")[[0]], model.device)
    whole.to(model.device).eval()
    with torch.inference_mode():
        ours = model(batch, task.name)
        same = torch.allclose(whole(batch["pixel_values"]), ours, rtol=1e-4, atol=1e-5)
    if not same:
        _logger.warning(
            "not written in timm's format: with timm's own classifier %s computes something else",
            config["architecture"],
        )
    return whole if same else None


def _save_timm(whole: nn.Module, part: Part, folder: Path) -> None:
    from timm.models import save_for_hf

    more = {} if part.label_names is None else {"label_names": list(part.label_names)}
    save_for_hf(whole.cpu(), str(folder), model_config=more, safe_serialization=True)


def _save_plain(part: Part, body: nn.Module, folder: Path) -> None:
    """`model.safetensors` is the body's state, `heads/<head>.safetensors` that of the head."""
    save_file(_plain_tensors(body.state_dict()), folder / "model.safetensors")
    head = head_state(part.network, body)
    if head:
        (folder / "heads").mkdir(exist_ok=True)
        save_file(_plain_tensors(head), folder / "heads" / f"{part.head}.safetensors")


def head_state(network: nn.Module, body: nn.Module) -> dict[str, Tensor]:
    """The state of a network without that of the body in it; of a plain head, the head's own."""
    if isinstance(network, BodyAndHead):
        return dict(network.head.state_dict())
    inside = {id(tensor) for tensor in (*body.parameters(), *body.buffers())}
    kept = dict(network.state_dict(keep_vars=True))
    return {name: tensor for name, tensor in kept.items() if id(tensor) not in inside}


def _plain_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors wants them."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
