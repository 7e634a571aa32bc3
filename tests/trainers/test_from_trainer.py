"""A study of a transformers Trainer: truths, previews, kills, pruning, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from datasets import Dataset
from helpers import flip_byte
from safetensors.torch import load_file
from trainer_helpers import STEPS, MakeTrainer, bert, classification_data, llama, pad, texts
from transformers import Trainer, TrainerCallback, TrainingArguments

import optuna_merge as om
from optuna_merge.exceptions import ProgramError
from optuna_merge.trainers import FittedProgram
from optuna_merge.trainers._transformers import _own_arguments

TRAIN, VALIDATION = classification_data("math", "math_hard")
AVERAGING = om.PosteriorSettings(family="isotropic")
WEIGHTS = {"math": 0.3, "math_hard": 0.7}


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    """A report that lets everything go on."""


def fitted(folder: Path, make: Any = None, **options: Any) -> FittedProgram:
    make = make or MakeTrainer(VALIDATION)
    settings = {"posterior": AVERAGING, "progress": False} | options
    return om.from_trainer(make, TRAIN, workdir=folder, **settings)


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def task_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with task runs and nothing else, to be copied."""
    folder = tmp_path_factory.mktemp("runs")
    fitted(folder)
    return folder


@pytest.fixture(scope="module")
def bench(task_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedProgram:
    return fitted(shutil.copytree(task_runs, tmp_path_factory.mktemp("bench") / "work"))


def test_all_weight_on_one_task_is_its_own_run_and_its_own_preview(bench: FittedProgram) -> None:
    for task in bench.names:
        weights = {other: float(other == task) for other in bench.names}
        truth = bench.finetune(weights, ignore)
        assert truth.reused
        assert truth.values[task] == bench.alone[task]
        assert bench.preview(weights).values == pytest.approx(truth.values)
    assert bench.costs["task_run_steps"] == 2 * STEPS


def test_a_finetune_is_the_same_whenever_it_is_made(bench: FittedProgram, tmp_path: Path) -> None:
    rungs: list[int] = []
    first = bench.finetune(WEIGHTS, lambda step, metrics: rungs.append(step))
    assert rungs == [2, 4, 6]
    assert not first.reused
    again = fitted(tmp_path)
    again.preview(WEIGHTS)
    np.random.seed(7)  # noqa: NPY002 - what the process drew before is of no matter
    torch.manual_seed(7)
    assert again.finetune(WEIGHTS, ignore).values == first.values
    assert again.fingerprint == bench.fingerprint


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    class Idle(Trainer):  # type: ignore[misc]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("trained again")

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("evaluated again")

        compute_loss = evaluate

    settings = om.PosteriorSettings(examples=4, damping_examples=4)
    first = fitted(tmp_path, posterior=settings)
    make = MakeTrainer(VALIDATION, kind=Idle)
    Idle.__qualname__ = Trainer.__qualname__  # its name is a part of the definition
    again = fitted(tmp_path, make, posterior=settings)
    assert again.fingerprint == first.fingerprint
    assert again.damping == first.damping and len(again.damping.sweep) == 8
    assert again.costs == first.costs


def test_a_repetition_has_another_seed(bench: FittedProgram) -> None:
    once, twice = (bench.finetune(WEIGHTS, ignore, repeat=r).values for r in (0, 1))
    assert once != twice
    assert bench.finetune(WEIGHTS, ignore, repeat=1).values == twice


def test_the_anchored_merge_is_evaluated_by_the_trainer(bench: FittedProgram) -> None:
    weights = {"math": 0.25, "math_hard": 0.75}
    math, hard, uniform = (model_of(bench.folder(anchor)) for anchor in bench.anchors)
    trainer = MakeTrainer(VALIDATION)("unused")
    share = 2 * (0.25 * 0.75) ** 0.5
    merged = {}
    for name, tensor in math.items():
        missing = uniform[name] - (tensor + hard[name]) / 2
        merged[name] = 0.25 * tensor + 0.75 * hard[name] + share * missing
    trainer.model.load_state_dict(merged)
    expected = trainer.evaluate(VALIDATION["math"])["eval_loss"]
    assert bench.preview(weights).values["math"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["isotropic", "diagonal"])
def test_at_uniform_weights_the_preview_is_the_truth(family: str, tmp_path: Path) -> None:
    settings = om.PosteriorSettings(family=family, examples=8, damping=1e-3)
    fit = fitted(tmp_path, posterior=settings)
    uniform = fit.anchors[-1]
    truth = fit.finetune(uniform, ignore)
    assert fit.preview(uniform).values == pytest.approx(truth.values, rel=1e-5)
    assert not truth.reused, "its cost is counted in its trial"
    near = fit.preview({"math": 0.4, "math_hard": 0.6}).values
    assert near != pytest.approx(truth.values, rel=1e-5)


class KillAt(TrainerCallback):  # type: ignore[misc]
    """Kills the process at the end of a step before its checkpoint is there, or just after it."""

    def __init__(self, step: int, *, saved: bool) -> None:
        self.step, self.saved = step, saved

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and not self.saved:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(job: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            job()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("step", "saved", "before"),
    [(1, False, None), (3, False, 2), (4, False, 2), (4, True, 4), (6, False, 4), (6, True, 6)],
)
def test_a_killed_finetune_goes_on_from_its_checkpoint(
    step: int,
    saved: bool,
    before: int | None,
    bench: FittedProgram,
    task_runs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = {"math": 0.6, "math_hard": 0.4}
    expected: dict[int, Mapping[str, float]] = {}
    bench.finetune(weights, expected.__setitem__)
    make = MakeTrainer(VALIDATION)
    other = fitted(shutil.copytree(task_runs, tmp_path / "work"), make)
    make.more["callbacks"] = [KillAt(step, saved=saved)]
    killed(lambda: other.finetune(weights, ignore))
    make.more["callbacks"] = []
    found: dict[int, Mapping[str, float]] = {}
    with caplog.at_level("INFO", "optuna_merge"):
        other.finetune(weights, found.__setitem__)
    assert [m for m in caplog.messages if "going on from" in m] == (
        [] if before is None else [f"going on from {other.folder(weights)}/checkpoint-{before}"]
    )
    assert found == expected
    ours, theirs = (model_of(each.folder(weights)) for each in (other, bench))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(other.folder(weights).glob("checkpoint-*"))


def test_a_pruned_finetune_stops_at_its_rung_and_goes_on_when_it_is_wanted_again(
    bench: FittedProgram, task_runs: Path, tmp_path: Path
) -> None:
    weights = {"math": 0.45, "math_hard": 0.55}
    other = fitted(shutil.copytree(task_runs, tmp_path / "work"))

    def prune(step: int, metrics: Mapping[str, float]) -> None:
        if step == 4:
            raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        other.finetune(weights, prune)
    folder = other.folder(weights)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert not (folder / "finished.json").exists()
    with pytest.raises(optuna.TrialPruned):  # nothing is trained to say so again
        other.finetune(weights, prune)
    found: dict[int, Mapping[str, float]] = {}
    truth = other.finetune(weights, found.__setitem__)
    assert list(found) == [2, 4, 6]
    assert truth.values == bench.finetune(weights, ignore).values


def test_a_study_of_three_tasks_is_short(tmp_path: Path) -> None:
    """All that a user writes but his Trainer and his data."""
    train, validation = classification_data("math", "math_hard", "chat")
    # A study's whole definition: from here
    fit = om.from_trainer(
        MakeTrainer(validation),
        tasks=train,
        workdir=tmp_path,
        score="worst",
        constraints=0.5,
        progress=False,
        posterior=om.PosteriorSettings(examples=16, damping=1e-3),
    )
    study = om.open_search(fit, "short", fraction=0.5, warmup=2, seed=0)
    study.optimize(om.Objective(fit, progress=False), n_trials=8)
    report = om.make_report(study, fit)
    text = om.format_report(report)
    # to here
    assert "Best task weights: " in text
    assert report["counts"]["promoted"] >= 1
    assert report["baselines"].keys() >= {"uniform", "math", "math_hard", "chat"}
    assert report["score"] == "worst" and report["maximize"]["score"] is False
    assert set(report["best"]["tasks"]) == {"math", "math_hard", "chat"}
    assert json.loads(json.dumps(report["definition"])) == report["definition"]


def test_a_definition_that_differs_is_another_study(bench: FittedProgram, tmp_path: Path) -> None:
    study = om.open_search(bench, "mine", seed=0)
    other = fitted(tmp_path, MakeTrainer(VALIDATION, learning_rate=5e-3))
    with pytest.raises(Exception, match=r"finetuning\.learning_rate \(0\.01 → 0\.005\)"):
        om.prepare_study(study, other)


def test_what_a_subclass_of_the_arguments_has_set_is_a_part_of_the_definition() -> None:
    @dataclass
    class Arguments(TrainingArguments):  # type: ignore[misc]
        beta: float = 0.1
        losses: list[str] = field(default_factory=list)
        folder: Path | None = None

    common = {"output_dir": "out", "report_to": "none", "use_cpu": True}
    assert _own_arguments(TrainingArguments(**common)) == {}
    assert _own_arguments(Arguments(**common)) == {}
    assert _own_arguments(Arguments(**common, beta=0.5, losses=["sft"])) == {
        "beta": 0.5,
        "losses": "['sft']",
    }


def test_another_rate_of_dropout_is_another_definition(
    bench: FittedProgram, tmp_path: Path
) -> None:
    def steady() -> Any:
        model = bert()
        model.dropout.p = 0.5
        return model

    study = om.open_search(bench, "mine", seed=0)
    with pytest.raises(Exception, match=r"finetuning\.beside_tensors"):
        om.prepare_study(study, fitted(tmp_path, MakeTrainer(VALIDATION, steady)))


def test_posteriors_that_are_made_again_are_the_same(task_runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(task_runs, tmp_path / "work")
    settings = om.PosteriorSettings(examples=4, damping=1e-3)
    first = fitted(folder, posterior=settings)
    shutil.rmtree(folder / "posteriors")
    again = fitted(folder, posterior=settings)
    assert again.costs["posterior_seconds"] != first.costs["posterior_seconds"]
    assert again.fingerprint == first.fingerprint


def test_parameters_that_are_damaged_are_told_with_the_run_to_delete(
    task_runs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(task_runs, tmp_path / "work")
    fit = fitted(folder)
    run = fit.folder({"math": 1.0, "math_hard": 0.0})
    for spoil in (flip_byte, Path.unlink):
        spoil(run / "trained.safetensors")
        with pytest.raises(ProgramError, match="delete that whole folder, and the run is made"):
            fitted(folder)
    shutil.rmtree(run)
    assert fitted(folder).fingerprint == fit.fingerprint


def test_token_losses_give_shares_by_label_tokens(tmp_path: Path) -> None:
    train = {"short": texts(2, 1), "long": texts(8, 2)}
    make = MakeTrainer({task: data.select(range(8)) for task, data in train.items()}, llama,
                       more={"data_collator": pad})  # fmt: skip
    fit = om.from_trainer(make, train, workdir=tmp_path, posterior=AVERAGING, progress=False)
    assert "short 2, long 8" in fit.unit
    weights = {"short": 0.5, "long": 0.5}
    fit.finetune(weights, ignore)
    given = json.loads((fit.folder(weights) / "finished.json").read_text())["given"]
    assert 0.5 < given["short"] < 0.8
    plain = om.from_trainer(make, train, workdir=tmp_path, posterior=AVERAGING, progress=False,
                            loss_average="examples")  # fmt: skip
    assert "equal the task weights" in plain.unit
    assert plain.fingerprint != fit.fingerprint


def lora(*, freeze: bool) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama(), config)
    for name, parameter in model.named_parameters():
        if freeze and "lora_A" in name:
            parameter.requires_grad_(False)
    return model


def test_a_lora_trains_and_merges_b_alone(tmp_path: Path) -> None:
    train = {"short": texts(2, 1), "long": texts(8, 2)}
    make = MakeTrainer(train, lambda: lora(freeze=True), more={"data_collator": pad})
    fit = om.from_trainer(make, train, workdir=tmp_path, progress=False,
                          posterior=om.PosteriorSettings(examples=8, damping=1e-3))  # fmt: skip
    assert fit.preview({"short": 0.5, "long": 0.5}).values.keys() == train.keys()
    folder = fit.folder({"short": 1.0, "long": 0.0})
    assert (folder / "model" / "adapter_model.safetensors").exists()
    assert all("lora_B" in name for name in load_file(folder / "trained.safetensors"))


def test_of_a_lora_with_both_factors_the_updates_are_averaged(tmp_path: Path) -> None:
    train = {"short": texts(2, 1), "long": texts(8, 2)}
    make = MakeTrainer(
        train, lambda: lora(freeze=False), more={"data_collator": pad}, learning_rate=0.1
    )
    fit = om.from_trainer(make, train, workdir=tmp_path, progress=False)
    weights = {"short": 0.25, "long": 0.75}
    found = fit.preview(weights).values
    models = []
    for anchor in fit.anchors:
        torch.manual_seed(0)  # the base that is made in every run
        trainer = make("unused")
        state = load_file(fit.folder(anchor) / "trained.safetensors")
        trainer.model.load_state_dict(state, strict=False)
        models.append(trainer.model.merge_and_unload())
    share = 2 * (0.25 * 0.75) ** 0.5
    with torch.no_grad():
        for short, long, uniform in zip(*(model.parameters() for model in models)):
            merged = 0.25 * short + 0.75 * long + share * (uniform - (short + long) / 2)
            short.copy_(merged)
    judge = MakeTrainer(train, lambda: models[0], more={"data_collator": pad})("unused")
    assert found["long"] == pytest.approx(judge.evaluate(train["long"])["eval_loss"], rel=3e-6)
    alone = fit.preview({"short": 0.0, "long": 1.0}).values["long"]
    assert alone == pytest.approx(fit.alone["long"])
    with pytest.raises(ValueError, match="both factors of LoRA adapters are trained"):
        om.from_trainer(make, train, workdir=tmp_path, posterior=om.PosteriorSettings())


def test_a_dora_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    train = {"short": texts(2, 1)}
    make = MakeTrainer(train, lambda: peft.get_peft_model(llama(), config),
                       more={"data_collator": pad})  # fmt: skip
    with pytest.raises(ValueError, match=r"has the trained parts .*lora_magnitude_vector"):
        om.from_trainer(make, train, workdir=tmp_path)


class Alike(Trainer):  # type: ignore[misc]
    """Gives a metric `hard_loss`, so that one task's looks like another's loss."""

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        found = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        return found | {f"{metric_key_prefix}_hard_loss": -1.0}


def test_names_that_begin_alike_are_kept_apart(bench: FittedProgram, tmp_path: Path) -> None:
    other = fitted(tmp_path, MakeTrainer(VALIDATION, kind=Alike))
    assert other.alone == bench.alone


BAD: list[tuple[str, Callable[[], tuple[Any, Any, dict[str, Any]]]]] = [
    ("no 'eval_math_accuracy'", lambda: (MakeTrainer(VALIDATION), TRAIN,
        {"metric": "eval_{task}_accuracy"})),
    ("metric 'eval_loss' must begin with", lambda: (MakeTrainer(VALIDATION), TRAIN,
        {"metric": "eval_loss"})),
    ("tasks is empty", lambda: (MakeTrainer(VALIDATION), {}, {})),
    ("task 'math': the training data are empty", lambda: (MakeTrainer(VALIDATION),
        {"math": TRAIN["math"].select([])}, {})),
    ("task 'math': the validation data are empty", lambda: (
        MakeTrainer({"math": TRAIN["math"].select([])}), {"math": TRAIN["math"]}, {})),
    ("which has no length", lambda: (MakeTrainer(VALIDATION),
        {"math": TRAIN["math"].to_iterable_dataset()}, {})),
    ("task 'chat': the Trainer's eval_dataset has", lambda: (MakeTrainer(VALIDATION),
        {**TRAIN, "chat": TRAIN["math"]}, {})),
    ("eval_dataset is a Dataset; expected a dict", lambda: (
        MakeTrainer(VALIDATION["math"]), TRAIN, {})),
    ("max_steps=-1; set it", lambda: (MakeTrainer(VALIDATION, max_steps=-1), TRAIN, {})),
    ("save_only_model=True", lambda: (MakeTrainer(VALIDATION, save_only_model=True), TRAIN, {})),
    ("gave a Trainer with output_dir='elsewhere'", lambda: (
        lambda folder: MakeTrainer(VALIDATION)("elsewhere"), TRAIN, {})),
    ("make_trainer gave a list", lambda: (lambda folder: [], TRAIN, {})),
    ("loss_average='tokens', but the batches", lambda: (MakeTrainer(VALIDATION), TRAIN,
        {"loss_average": "tokens"})),
    ("loss_average must be auto", lambda: (MakeTrainer(VALIDATION), TRAIN,
        {"loss_average": "steps"})),
    ("posterior 'full' is not made from a program's", lambda: (MakeTrainer(VALIDATION), TRAIN,
        {"posterior": om.PosteriorSettings(family="full")})),
    ("score must be one of", lambda: (MakeTrainer(VALIDATION), TRAIN, {"score": "median"})),
    ("task name 'uniform' stands for", lambda: (MakeTrainer({"uniform": TRAIN["math"]}),
        {"uniform": TRAIN["math"]}, {})),
]  # fmt: skip


@pytest.mark.parametrize(("message", "given"), BAD, ids=[message for message, _ in BAD])
def test_bad_input_is_refused_before_anything_is_trained(
    message: str, given: Callable[[], tuple[Any, Any, dict[str, Any]]], tmp_path: Path
) -> None:
    make, tasks, options = given()
    with pytest.raises((ValueError, TypeError, ProgramError), match=message):
        om.from_trainer(make, tasks, workdir=tmp_path, progress=False, **options)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_callback_that_stops_early_is_told(tmp_path: Path) -> None:
    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    with pytest.raises(ProgramError, match="has stopped after step 1 of 6; did a callback"):
        fitted(tmp_path, MakeTrainer(VALIDATION, more={"callbacks": [Stop()]}))


def test_a_metric_that_is_not_finite_is_told(tmp_path: Path) -> None:
    make = MakeTrainer(VALIDATION, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(om.exceptions.NotFiniteError, match="task 'math': the metric of the run"):
        fitted(tmp_path, make)


def test_a_metric_of_the_users_own_is_maximised(tmp_path: Path) -> None:
    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    make = MakeTrainer(VALIDATION, more={"compute_metrics": accuracy})
    fit = fitted(tmp_path, make, metric="eval_{task}_accuracy", score="pareto")
    assert fit.goal.directions == ("maximize", "maximize")
    assert all(0 <= value <= 1 for value in fit.alone.values())
    assert all(fit.reference_point[task] <= fit.alone[task] for task in fit.names)


class Seen(MakeTrainer):
    """Keeps the Trainers that it has made."""

    def __call__(self, folder: str) -> Trainer:
        self.made = super().__call__(folder)
        return self.made


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    make = Seen(VALIDATION, gradient_accumulation_steps=2, save_strategy="steps", save_steps=5,
                train_sampling_strategy="sequential")  # fmt: skip
    fit = fitted(tmp_path, make)
    fit.finetune(WEIGHTS, ignore)
    args = make.made.args
    assert (args.gradient_accumulation_steps, args.save_steps, args.seed) == (2, 5, 42)
    assert len(make.made.train_dataset) == STEPS * 4 * 2
    assert isinstance(TRAIN["math"], Dataset) and isinstance(make.made.model, type(bert()))


def optimizer(trainer: Trainer) -> str:
    kind = type(trainer.optimizer.optimizer)
    return f"{kind.__module__}.{kind.__name__}"


@pytest.mark.parametrize(
    ("needs", "set_by_user", "kept"),
    [
        ("torch", {"gradient_checkpointing": True}, lambda t: t.model.is_gradient_checkpointing),
        ("torch", {"bf16": True}, lambda t: t.accelerator.mixed_precision == "bf16"),
        ("torch", {"optim": "adafactor"}, lambda t: optimizer(t).endswith("Adafactor")),
        (
            "bitsandbytes",
            {"optim": "adamw_8bit"},
            lambda t: optimizer(t).startswith("bitsandbytes"),
        ),
        pytest.param(  # it compiles for minutes
            "torchao",
            {"optim": "adamw_torch_8bit"},
            lambda t: optimizer(t).startswith("torchao"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_memory_that_the_user_has_saved_stays_saved(
    needs: str, set_by_user: dict[str, Any], kept: Callable[[Any], bool], tmp_path: Path
) -> None:
    pytest.importorskip(needs)
    make = Seen(VALIDATION, **set_by_user)
    fit = fitted(tmp_path, make, posterior=om.PosteriorSettings(examples=4, damping=1e-3))
    truth = fit.finetune(WEIGHTS, ignore)
    assert kept(make.made)
    uniform = fit.anchors[-1]
    expected = fit.finetune(uniform, ignore).values
    assert fit.preview(uniform).values == pytest.approx(expected, rel=1e-3)
    assert truth.values != expected
