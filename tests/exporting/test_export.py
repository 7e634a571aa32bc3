"""Exports are loaded by others, and say there what they said here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import (
    bert_model,
    largest_file,
    save_bert,
    token_task,
    toy_definition,
    toy_settings,
    toy_task,
)
from language_helpers import TOKENIZER, language_model, save_language_model, translation_tasks
from safetensors.torch import load_file, save_file

import optuna_merge as om
from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.exceptions import DefinitionMismatchError
from optuna_merge.exporting import Export, export_model
from optuna_merge.fitting import FittedStudy, fit
from optuna_merge.models import from_timm
from optuna_merge.tasks import Task, token_accuracy

SCRIPT = Path(__file__).with_name("plain_loading.py")
EVEN = {"one": 0.5, "two": 0.5}


def searched(definition: StudyDefinition, workdir: Path) -> tuple[FittedStudy, optuna.Study]:
    """Fitted, and its baselines finetuned."""
    fitted = fit(definition, workdir, progress=False)
    study = om.open_study("s", om.create_storage(None), definition.directions)
    om.prepare_study(study, fitted, second_seed=False)
    study.optimize(om.Objective(fitted, progress=False), n_trials=len(definition.names) + 1)
    return fitted, study


def bert_tasks(head: str | None = None) -> tuple[Task, Task]:
    """Of two and three classes with heads of their own; or of two each, with one head."""
    one = replace(token_task("one", 1, size=80), label_names=("bad", "good"))
    if head is None:
        return one, token_task("two", 2, classes=3, size=80)
    two = replace(token_task("two", 2, size=80), label_names=one.label_names, head=head)
    return replace(one, head=head), two


def quick(tasks: Any, model: Any, steps: int = 8) -> StudyDefinition:
    """Of little training, and of averages: what the parameters are doesn't matter here."""
    return toy_definition(
        tasks,
        model=model,
        finetuning=toy_settings(steps=steps, learning_rate=1e-2, num_rungs=1),
        posterior=PosteriorSettings(family="isotropic"),
    )


def bert(folder: Path, tasks: tuple[Task, Task], **options: Any) -> StudyDefinition:
    name = save_bert(folder / "bert", layers=2)
    TOKENIZER.save_pretrained(folder / "bert")
    return quick(tasks, bert_model(name, tasks, **options))


def image_tasks() -> tuple[Task, Task]:
    tasks = []
    for seed, name in enumerate(("one", "two")):
        images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        labels = (images[:, seed].mean((1, 2)) > 0).long()
        columns = {"pixel_values": images + 3 * (labels * 2 - 1)[:, None, None, None]}
        train = {"labels": labels[:30], "pixel_values": columns["pixel_values"][:30]}
        rest = {"labels": labels[30:], "pixel_values": columns["pixel_values"][30:]}
        tasks.append(Task(name, train, rest, 2, label_names=("dark", "light")))
    return tasks[0], tasks[1]


class Jobs:
    """Exports, and what others are to make of them, all in one process of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exports: dict[str, Export] = {}
        self.jobs: list[dict[str, Any]] = []
        self.expected: list[tuple[str, str, float]] = []

    def add(self, name: str, fitted: FittedStudy, **options: Any) -> None:
        export = export_model(fitted, self.folder / name, **options)
        self.exports[name] = export
        body: Any = fitted.model.body
        for model in export.models:
            for task in model.tasks:
                chosen = next(t for t in fitted.tasks if t.name == task)
                columns = chosen.data("validation")[list(range(len(chosen.validation)))]
                fitted.model.prepare(chosen)  # it still holds what was exported
                with torch.inference_mode():
                    outputs = fitted.model(columns, task)
                data = self.folder / f"{name}-{task}.safetensors"
                save_file(columns | {"outputs": outputs}, data)
                config = getattr(body, "pretrained_cfg", {})
                self.jobs.append(
                    {
                        "format": model.format,
                        "folder": str(export.folder / model.folder),
                        "loader": model.loader,
                        "head": model.head,
                        "outputs": model.outputs,
                        "labels": model.label_names,
                        "base": getattr(getattr(body, "config", None), "_name_or_path", None),
                        "architecture": config.get("architecture"),
                        "options": {
                            k: v
                            for k, v in getattr(body, "_model_args", {}).items()
                            if k != "num_classes"
                        },
                        "data": str(data),
                    }
                )
                value = export.metrics[task]["validation"][
                    "token_accuracy" if "LM" in str(model.loader) else "accuracy"
                ]
                assert value is not None
                self.expected.append((name, task, value))

    def run(self) -> dict[tuple[str, str], tuple[float, float]]:
        """By export and task: the metric there and here."""
        jobs, results = self.folder / "jobs.json", self.folder / "results.json"
        jobs.write_text(json.dumps(self.jobs))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(jobs), str(results)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(results.read_text())
        return {(n, task): (got, here) for got, (n, task, here) in zip(found, self.expected)}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder = tmp_path_factory.mktemp("exports")
    jobs = Jobs(folder)

    fitted, study = searched(bert(folder, bert_tasks()), folder / "work-own")
    jobs.add("own", fitted, study=study, trial=0)
    jobs.add("own-trial", fitted, study=study, trial=1)
    jobs.add("own-merge", fitted, weights={"one": 3, "two": 1})
    shared = bert(folder, bert_tasks(head="both"))
    jobs.add("shared", fit(shared, folder / "work-shared", progress=False), weights=EVEN)

    peft = pytest.importorskip("peft")
    # Layers as the body names them: in the whole network they are called otherwise.
    lora = peft.LoraConfig(r=2, target_modules=r"encoder\.layer\..*\.(query|value)")
    adapted = bert(folder, bert_tasks(), trainable="all", adapter=lora)
    jobs.add("lora", fit(adapted, folder / "work-lora", progress=False), weights=EVEN)
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    for name, options in (("llama", {}), ("llama-lora", {"adapter": config}), ("t5", {})):
        kind = name.split("-")[0]
        tasks = translation_tasks(kind, size=60, metrics=(token_accuracy,))
        body = save_language_model(kind, folder / f"{kind}-body")
        definition = quick(tasks, language_model(body, tasks, **options))
        fitted = fit(definition, folder / f"work-{name}", progress=False)
        jobs.add(name, fitted, weights={"same": 1, "next": 1}, processor=TOKENIZER)

    timm = pytest.importorskip("timm")
    for kind, options in (("vit", {"img_size": 32}), ("resnet", {})):
        tasks = image_tasks()
        torch.manual_seed(0)
        body = timm.create_model(f"test_{kind}", num_classes=7, **options)
        statistics = "reestimated" if kind == "resnet" else "pretrained"
        definition = quick(tasks, from_timm(body, tasks, batch_norm=statistics), steps=2)
        fitted = fit(definition, folder / f"work-{kind}", progress=False)
        jobs.add(kind, fitted, weights=EVEN)

    fitted, study = searched(toy_definition(), folder / "work-plain")
    jobs.add("plain", fitted, study=study, trial=0)
    return jobs


def test_others_find_the_same_metrics(everything: Jobs) -> None:
    for (name, task), (there, here) in everything.run().items():
        assert there == pytest.approx(here, abs=1e-4), (name, task)


def test_formats_and_folders(everything: Jobs) -> None:
    found = {
        name: {model.folder: (model.format, *model.tasks) for model in export.models}
        for name, export in everything.exports.items()
    }
    lm = {".": ("transformers", "same", "next")}
    each = {"one": ("transformers", "one"), "two": ("transformers", "two")}
    assert found == {
        "own": each,
        "own-trial": {".": ("transformers", "one")},  # the other head was never trained
        "own-merge": each,
        "shared": {".": ("transformers", "one", "two")},
        "lora": {"one": ("peft", "one"), "two": ("peft", "two")},
        "llama": lm,
        "llama-lora": {".": ("peft", "same", "next")},
        "t5": lm,
        "vit": {"one": ("timm", "one"), "two": ("timm", "two")},
        "resnet": {"one": ("timm", "one"), "two": ("timm", "two")},
        "plain": {".": ("plain", "blue")},  # and red
    }


def test_the_card_says_what_it_is(everything: Jobs) -> None:
    export = everything.exports["own"]
    card = (export.folder / "README.md").read_text()
    weight, value = export.weights["two"], export.metrics["two"]["validation"]["accuracy"]
    assert f"| two | {weight:.4f} | accuracy | {value:.4f} | - |" in card
    for told in (
        "library_name: transformers",
        "Base model: bert\n",
        "Licence of the base model: unknown",
        'AutoModelForSequenceClassification.from_pretrained("own/one")',
        "finetuning: 8 steps of 10 examples a task, adamw, peak learning rate 0.01, seed 0",
        "posterior: isotropic",
        "study 's', trial 0",
        f"Written by optuna_merge {om.__version__}",
        "| task run steps | 16 |",
        "| finetune steps | 8 |",
    ):
        assert told in card, told
    assert str(everything.folder) not in card  # it may be published
    found = json.loads((export.folder / "optuna_merge.json").read_text())
    assert found == json.loads(json.dumps(export.as_json()))
    merged = (everything.exports["own-merge"].folder / "README.md").read_text()
    assert "the merge itself was not trained" in merged
    assert "- merge\n" in merged
    assert everything.exports["own-merge"].weights == {"one": 0.75, "two": 0.25}
    assert "No model for two" in (everything.exports["own-trial"].folder / "README.md").read_text()
    assert "license: apache-2.0" in (everything.exports["vit"].folder / "README.md").read_text()


def test_tokenizers_stand_beside(everything: Jobs) -> None:
    for name, folder in (("own", "one"), ("lora", "two"), ("llama", "."), ("t5", ".")):
        assert (everything.exports[name].folder / folder / "tokenizer.json").is_file(), name


@pytest.fixture
def plain(tmp_path: Path) -> tuple[FittedStudy, optuna.Study]:
    return searched(toy_definition(), tmp_path / "work")


def test_a_plain_module_with_several_heads(
    plain: tuple[FittedStudy, optuna.Study], tmp_path: Path
) -> None:
    fitted, study = plain
    export = export_model(fitted, tmp_path / "out", study=study, trial=0)
    assert sorted(
        str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.*")
    ) == [
        "README.md",
        "heads/blue.safetensors",
        "heads/red.safetensors",
        "model.safetensors",
        "optuna_merge.json",
    ]
    weights = load_file(tmp_path / "out" / "heads" / "blue.safetensors")
    run = fitted.store.find(export.weights, fitted.definition.finetuning)
    assert run is not None
    torch.testing.assert_close(weights["weight"], run.parameters()["heads.blue.head.weight"])


def test_nothing_is_overwritten_but_earlier_exports(
    plain: tuple[FittedStudy, optuna.Study], tmp_path: Path
) -> None:
    fitted, study = plain
    out, even = tmp_path / "out", {"red": 1, "blue": 1}
    export_model(fitted, out, study=study)
    with pytest.raises(FileExistsError, match=r"is an earlier export; replace it with --force"):
        export_model(fitted, out, weights=even)
    assert json.loads((out / "optuna_merge.json").read_text())["kind"] == "finetune"
    export_model(fitted, out, weights=even, overwrite=True)
    assert json.loads((out / "optuna_merge.json").read_text())["kind"] == "merge"
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "me.jpg").write_text("")
    with pytest.raises(FileExistsError, match="no export; take another folder"):
        export_model(fitted, other, weights=even, overwrite=True)
    assert (other / "me.jpg").is_file()
    (tmp_path / "empty").mkdir()
    export_model(fitted, tmp_path / "empty", weights=even)


def test_a_full_disk_leaves_nothing(
    plain: tuple[FittedStudy, optuna.Study], tmp_path: Path
) -> None:
    fitted, study = plain
    export_model(fitted, tmp_path / "out", study=study)
    before = sorted(tmp_path.iterdir())
    with largest_file(100), pytest.raises(OSError):
        export_model(fitted, tmp_path / "out", weights={"red": 1}, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    assert json.loads((tmp_path / "out" / "optuna_merge.json").read_text())["kind"] == "finetune"


def test_what_can_not_be_exported_is_said(
    plain: tuple[FittedStudy, optuna.Study], tmp_path: Path
) -> None:
    fitted, study = plain
    out = tmp_path / "out"
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.PRUNED))
    for options, told in (
        ({}, "either a study"),
        ({"study": study, "weights": {"red": 1}}, "either a study"),
        ({"weights": {"green": 1}}, "weights of 'green', but the study's tasks are red, blue"),
        ({"weights": {"red": -1}}, "must be finite and not negative"),
        ({"study": study, "trial": 99}, "no trial 99"),
        ({"study": study, "trial": 3}, r"trial 3 was not finetuned.*were: 0, 1, 2\."),
    ):
        with pytest.raises(ValueError, match=told):
            export_model(fitted, out, **options)
    empty = om.open_study("empty", om.create_storage(None), "maximize")
    with pytest.raises(DefinitionMismatchError):
        export_model(fitted, out, study=empty)
    om.prepare_study(empty, fitted, second_seed=False)
    with pytest.raises(ValueError, match="has no best trial"):
        export_model(fitted, out, study=empty)
    run = fitted.store.find({"red": 1.0, "blue": 0.0}, fitted.definition.finetuning)
    assert run is not None
    run.path.unlink()
    with pytest.raises(ValueError, match=r"not in this working folder.*red=1,blue=0"):
        export_model(fitted, out, study=study, trial=1)
    assert not out.exists()


def test_label_names_are_one_a_class() -> None:
    with pytest.raises(ValueError, match="1 label_names for 2 outputs"):
        toy_task("red", 1, label_names=("good",))
