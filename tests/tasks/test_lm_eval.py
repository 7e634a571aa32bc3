"""lm-evaluation-harness as the metric of a task: the same model, in memory, on local tasks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from helpers import toy_model, toy_settings, toy_task
from language_helpers import TOKENIZER, language_model, save_language_model, translations

from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.fitting import fit
from optuna_merge.models import MultitaskModel, evaluate_tasks, task_batches
from optuna_merge.objective import Objective
from optuna_merge.reports import make_report
from optuna_merge.search import prepare_study
from optuna_merge.tasks import Task, language_task, lm_eval_metric

pytest.importorskip("lm_eval")
# Of the harness and what it imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

QUESTIONS = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{source}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
YES_OR_NO = QUESTIONS | {
    "doc_to_choice": ["w1", "w2"],
    "metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}],
}
TEXTS = {
    "output_type": "generate_until",
    "doc_to_text": "{{source}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["[EOS]"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def write_task(
    folder: Path, name: str, kind: dict[str, Any], *, step: int = 0, size: int = 24, seed: int = 5
) -> Path:
    """A harness task as YAML, beside its data: the translation among those of other steps."""
    folder.mkdir(exist_ok=True)
    rows = [dict(row) for row in translations(step, size, seed)]
    for i, row in enumerate(rows):
        words = [int(word[1:]) for word in row["source"].split()[:-1]]
        shown = [(i + shift) % 3 for shift in range(3)]
        row["choices"] = [" ".join(f"w{(w + s) % 6}" for w in words) for s in shown]
        row["label"] = row["choices"].index(row["target"])
    data = folder / f"{name}.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    config = kind | {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"{name}.yaml"


def ring_task(name: str, step: int, metric: Any, *, test: bool = False) -> Task:
    splits = {"train": translations(step, 200, step), "validation": translations(step, 20, 9)}
    splits |= {"test": translations(step, 20, 8)} if test else {}
    return language_task(name, splits, TOKENIZER, prompt="source", metrics=(metric,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model("llama", tmp_path_factory.mktemp("model"))


def measured(model: MultitaskModel, task: Task, split: str = "validation") -> Any:
    found = evaluate_tasks(model, [task], task_batches(model, [task], split), split)
    return found[task.name].metric


def log_probability(model: MultitaskModel, source: str, choice: str) -> float:
    """Of the choice's tokens behind the source's."""
    before = TOKENIZER(source)["input_ids"]
    after = TOKENIZER(choice)["input_ids"]
    ids = torch.tensor([before + after])
    with torch.no_grad():
        logs = model({"input_ids": ids}, model.tasks[0])[0].log_softmax(-1)
    return sum(float(logs[len(before) - 1 + i, token]) for i, token in enumerate(after))


def test_accuracy_is_that_of_the_model_in_memory(
    folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_task(tmp_path, "questions", QUESTIONS)
    task = ring_task("same", 0, lm_eval_metric("acc", path, TOKENIZER))
    model = language_model(folder, (task,))
    values = []
    capfd.readouterr()
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.load({name: t + 0.3 * torch.randn_like(t) for name, t in model.state().items()})
        before = {name: t.clone() for name, t in model.state_dict().items()}
        states = torch.get_rng_state()
        found = measured(model, task)
        assert torch.equal(states, torch.get_rng_state())
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        rows = list(map(json.loads, (tmp_path / "questions.json").read_text().splitlines()))
        right = [
            max(
                range(3), key=lambda k, r=row: log_probability(model, r["source"], r["choices"][k])
            )
            == row["label"]
            for row in rows
        ]
        share = sum(right) / len(right)
        assert found.value == pytest.approx(share)
        assert found.standard_error == pytest.approx(
            (share * (1 - share) / (len(right) - 1)) ** 0.5
        )
        values.append(found.value)
    assert values[0] != values[1]
    assert capfd.readouterr() == ("", "")


def test_what_the_harness_does_not_average_has_a_standard_error(
    folder: str, tmp_path: Path
) -> None:
    path = write_task(tmp_path, "q", YES_OR_NO, size=40)
    rows = list(map(json.loads, (tmp_path / "q.json").read_text().splitlines()))
    for i, row in enumerate(rows):
        row["label"] = i % 2
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, rows)))
    task = ring_task("same", 0, lm_eval_metric("f1", path, TOKENIZER))
    model = language_model(folder, (task,))
    torch.manual_seed(0)
    model.load({name: t + 0.3 * torch.randn_like(t) for name, t in model.state().items()})
    found = measured(model, task)
    yes = [
        log_probability(model, r["source"], "w2") > log_probability(model, r["source"], "w1")
        for r in rows
    ]
    hits = sum(y and r["label"] == 1 for y, r in zip(yes, rows))
    assert found.value == pytest.approx(2 * hits / (sum(yes) + 20))
    assert 0 < found.standard_error < 0.3


def test_texts_are_generated_greedily(folder: str, tmp_path: Path) -> None:
    path = write_task(tmp_path, "texts", TEXTS, size=12)
    task = ring_task("same", 0, lm_eval_metric("exact_match", path, TOKENIZER))
    model = language_model(folder, (task,))
    network = model.body
    model.load({name: t * 4 for name, t in model.state().items()})  # of some certainty
    rows = list(map(json.loads, (tmp_path / "texts.json").read_text().splitlines()))
    written = []
    for row in rows:
        ids = torch.tensor([TOKENIZER(row["source"])["input_ids"]])
        out = network.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        written.append(TOKENIZER.decode(out, skip_special_tokens=True).strip())
    for row, text in list(zip(rows, written))[::3]:
        row["target"] = text  # a third of the answers are right
    right = sum(row["target"] == text for row, text in zip(rows, written))
    (tmp_path / "texts.json").write_text("\n".join(map(json.dumps, rows)))
    task = ring_task("same", 0, lm_eval_metric("exact_match", path, TOKENIZER))
    model = language_model(folder, (task,))
    model.load({name: t * 4 for name, t in model.state().items()})
    model.body.generation_config.update(do_sample=True, temperature=9.0, max_new_tokens=1)
    own = model.body.generation_config
    values = [measured(model, task).value for _ in range(2)]
    assert values == [pytest.approx(right / 12)] * 2
    assert right >= 4
    assert model.body.generation_config is own


def test_the_definition_has_tasks_and_data_but_no_paths(folder: str, tmp_path: Path) -> None:
    def described(where: str, **changes: Any) -> Any:
        kind = QUESTIONS | changes.pop("kind", {})
        path = write_task(tmp_path / where, "q", kind, **changes)
        return ring_task("same", 0, lm_eval_metric("acc", path, TOKENIZER)).describe()["metrics"]

    first = described("a")
    assert described("b") == first
    others = [
        described("c", seed=6),
        described("d", kind={"doc_to_text": "{{source}} :"}),
        described("e", kind={"description": "w1"}),
        described("f", size=23),
    ]
    assert first not in others
    assert len(set(map(str, others))) == len(others)


def test_a_study_of_it(folder: str, tmp_path: Path) -> None:
    tasks = []
    for step, name in enumerate(("same", "next")):
        seen, unseen = (
            write_task(tmp_path / "harness", f"{name}-{split}", QUESTIONS, step=step, seed=seed)
            for split, seed in (("validation", 5), ("test", 6))
        )
        metric = lm_eval_metric("acc", seen, TOKENIZER, test=[unseen], name="harness")
        tasks.append(ring_task(name, step, metric, test=True))
    definition = StudyDefinition(
        tasks=tasks,
        model=language_model(folder, tuple(tasks)),
        finetuning=toy_settings(steps=40, batch_size=32, learning_rate=1e-2, num_rungs=1),
        posterior=PosteriorSettings(examples=32, damping_examples=16),
    )
    fitted = fit(definition, tmp_path / "work", progress=False)
    for name, run in fitted.runs.items():
        found = {other: e.metrics["harness"].value for other, e in run.evaluations.items()}
        assert found[name] > 0.8 and found[name] == max(found.values()) > min(found.values())
    alone = fitted.previewer({"same": 1.0, "next": 0.0})
    assert alone.evaluations["same"].metric == fitted.runs["same"].evaluations["same"].metric
    weights = {"same": 0.5, "next": 0.5}
    preview = fitted.previewer(weights).evaluations
    assert preview != fitted.previewer({"same": 0.9, "next": 0.1}).evaluations

    study = optuna.create_study(direction=definition.direction)
    prepare_study(study, fitted, second_seed=False)
    study.optimize(Objective(fitted, progress=False), n_trials=1)
    (trial,) = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert trial.intermediate_values[0] == pytest.approx(
        sum(e.metric.value for e in preview.values()) / 2
    )
    run = fitted.store.find(weights, definition.finetuning)
    assert run is not None
    parameters, report = run.parameters(), make_report(study, fitted)
    fitted.model.load(parameters)
    for task in tasks:
        shown = report["best"]["tasks"][task.name]
        assert shown["truth"] == measured(fitted.model, task).value
        assert shown["test"] == measured(fitted.model, task, "test").value


def test_few_shot_prompts_are_the_same_every_time(folder: str, tmp_path: Path) -> None:
    path = write_task(tmp_path, "q", QUESTIONS | {"fewshot_split": "test"})
    metric = lm_eval_metric("acc", path, TOKENIZER, num_fewshot=1, limit=10)
    task = ring_task("same", 0, metric)
    model = language_model(folder, (task,))
    prompts: list[Any] = []
    for _ in range(2):
        measured(model, task)
        (harness,) = metric.of_model._tasks["validation"].values()  # type: ignore[union-attr]
        prompts.append([instance.arguments for instance in harness.instances])
    assert prompts[0] == prompts[1]
    assert len({arguments[0] for arguments in prompts[0]}) == 10
    assert all(arguments[0].count(":") == 2 for arguments in prompts[0])


def test_errors_say_what_is_missing(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_task(tmp_path, "q", QUESTIONS)
    with pytest.raises(ValueError, match=r"no value 'accuracy' among .*'acc'"):
        lm_eval_metric("accuracy", path, TOKENIZER)
    with pytest.raises(ValueError, match=r"there is no file none\.yaml"):
        lm_eval_metric("acc", "none.yaml", TOKENIZER)
    with pytest.raises(ValueError, match="at least one task"):
        lm_eval_metric("acc", [], TOKENIZER)
    metric = lm_eval_metric("acc", path, TOKENIZER)
    assert metric.greater_is_better
    with pytest.raises(ValueError, match="has test data, but its metric 'acc' has none"):
        ring_task("same", 0, metric, test=True)
    with pytest.raises(ValueError, match="make the model with from_language_model"):
        toy_model([toy_task("red", metrics=(metric,))])
    with pytest.raises(ValueError, match="no filter 'strict' among"):
        task = ring_task("same", 0, lm_eval_metric("acc,strict", path, TOKENIZER))
        measured(language_model(folder, (task,)), task)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ImportError, match="pip install lm-eval"):
        lm_eval_metric("acc", path, TOKENIZER)
