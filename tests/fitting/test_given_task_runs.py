"""Checkpoints that are there already stand for task runs of the own training loop."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers import toy_definition, toy_settings
from language_helpers import language_model, save_language_model, translation_tasks
from safetensors.torch import load_file, save_file

import optuna_merge as om
from optuna_merge.definition import GivenRun
from optuna_merge.finetuning import RunInfo, Watcher, watched_by
from optuna_merge.fitting import finetune_store
from optuna_merge.tasks import token_loss

SETTINGS = om.PosteriorSettings(examples=8, damping=0.1)
PLAIN = om.PreviewSettings(anchor="none")
ALONE = {"red": 1.0, "blue": 0.0}


class Trained(Watcher):
    """Notes the tasks of each training that begins."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def started(self, run: RunInfo) -> None:
        self.tasks.append("+".join(name for name, weight in run.weights.items() if weight))


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    """A report that lets everything go on."""


def finetune_of(folder: Path, definition: om.StudyDefinition) -> Path:
    """The file of the task red's own finetune in a working folder."""
    found = om.fit(definition, folder, progress=False)
    return found.runs["red"].path


def test_a_finetune_of_another_folder_is_a_given_run(tmp_path: Path) -> None:
    path = finetune_of(tmp_path / "theirs", toy_definition(finetuning=toy_settings(steps=3)))
    definition = toy_definition(runs={"red": path})
    begun = Trained()
    with watched_by(begun):
        fit = om.fit(definition, tmp_path / "ours", progress=False)
    assert begun.tasks == ["blue", "red+blue"]
    assert fit.costs["task_run_steps"] == 7
    assert fit.runs["red"].given == str(path)
    assert fit.runs["blue"].given is None
    truth = fit.finetune(ALONE, ignore)
    assert truth.reused
    theirs = load_file(path)
    ours = fit.runs["red"].parameters()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert fit.parts["runs"].keys() == {"red"}
    with watched_by(again := Trained()):
        assert not fit.finetune(ALONE, ignore, repeat=1).reused
        assert om.fit(definition, tmp_path / "ours").fingerprint == fit.fingerprint
        plain = om.fit(toy_definition(), tmp_path / "ours", progress=False)
    assert again.tasks == ["red", "red"], "a second seed is trained, and red without a given run"
    assert plain.fingerprint != fit.fingerprint
    store = finetune_store(definition, tmp_path / "ours")
    assert store.path(ALONE, definition.finetuning) == fit.runs["red"].path


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_language_model_as_transformers_saves_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    body = save_language_model(kind, tmp_path / "base")
    auto = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(body)
    for parameter in model.parameters():
        parameter.data += 0.01
    model.save_pretrained(tmp_path / "tuned")
    tasks = translation_tasks(kind, size=16, metrics=(token_loss,))
    definition = om.StudyDefinition(
        tasks=tasks,
        model=language_model(body, tasks),
        finetuning=toy_settings(),
        posterior=SETTINGS,
        preview=PLAIN,
        runs={task.name: tmp_path / "tuned" for task in tasks},
    )
    with watched_by(begun := Trained()):
        fit = om.fit(definition, tmp_path / "work", progress=False)
    assert begun.tasks == []
    assert fit.costs["task_run_steps"] == fit.costs["task_run_seconds"] == 0
    study = om.open_search(fit, "given", seed=0, second_seed=False)
    study.optimize(om.Objective(fit, progress=False), n_trials=3)
    told = om.format_report(om.make_report(study, fit))
    assert "Given runs, which cost nothing: same, next\n" in told


def test_adapters_share_one_factor_a(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    body = save_language_model("llama", tmp_path / "base")
    tasks = translation_tasks("llama", size=16, metrics=(token_loss,))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")

    def definition(path: Path) -> om.StudyDefinition:
        return om.StudyDefinition(
            tasks=tasks,
            model=language_model(body, tasks, adapter=config),
            finetuning=toy_settings(),
            posterior=SETTINGS,
            preview=PLAIN,
            runs={"same": path, "next": path},
        )

    base = AutoModelForCausalLM.from_pretrained(body)
    other = peft.get_peft_model(base, config)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="all runs share one factor A here"):
        om.fit(definition(tmp_path / "other"), tmp_path / "work", progress=False)
    model = definition(tmp_path / "other").model
    own = dict(model.body.named_parameters())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_A" in name:
                parameter.copy_(own[name.removeprefix("base_model.model.")])
            elif "lora_B" in name:
                parameter.fill_(0.1)
    other.save_pretrained(tmp_path / "fitting")
    fit = om.fit(definition(tmp_path / "fitting"), tmp_path / "work", progress=False)
    assert all(bool((tensor == 0.1).all()) for tensor in fit.runs["same"].parameters().values())


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    path = finetune_of(tmp_path / "theirs", toy_definition(finetuning=toy_settings(steps=1)))
    with pytest.raises(ValueError, match="no task is called 'rad'; did you mean 'red'"):
        toy_definition(runs={"rad": path})
    with pytest.raises(FileNotFoundError, match="there is no checkpoint 'nowhere'"):
        toy_definition(runs={"red": "nowhere"})
    with pytest.raises(ValueError, match="curvature of a given run is not read here"):
        toy_definition(runs={"red": GivenRun(path, "optimizer")})
    tensors = load_file(path)
    first = next(iter(tensors))
    for name, change, told in (
        ("short", {k: v for k, v in tensors.items() if k != first}, f"has no '{first}'"),
        ("wide", tensors | {first: torch.zeros(3, 3)}, r"has shape \(3, 3\), expected"),
    ):
        file = tmp_path / f"{name}.safetensors"
        save_file(change, file)
        with pytest.raises(ValueError, match=told):
            om.fit(toy_definition(runs={"red": file}), tmp_path / "work", progress=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"is no checkpoint: .* has no model.safetensors"):
        om.fit(toy_definition(runs={"red": folder}), tmp_path / "work", progress=False)
    shutil.copy(path, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"classifiers of transformers are given to from_train"):
        om.fit(toy_definition(runs={"red": folder}), tmp_path / "work", progress=False)
