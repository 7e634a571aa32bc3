from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import (
    InterruptedData,
    bert_model,
    failing_loss,
    flip_byte,
    raise_at,
    same,
    save_bert,
    token_task,
    toy_columns,
    toy_model,
    toy_settings,
    toy_task,
    toy_tasks,
    truncate,
)
from torch import Tensor, nn

from optuna_merge.exceptions import TrainingDivergedError
from optuna_merge.finetuning import IVON, FinetuneResult, FinetuneSettings, finetune
from optuna_merge.finetuning._optimizers import warn_if_constant
from optuna_merge.finetuning._training import Order, derived_seed
from optuna_merge.models import LastLayers, Matching, evaluate_tasks, task_batches
from optuna_merge.posteriors import categorical_labels, squared_gradients
from optuna_merge.tasks import (
    Loss,
    Task,
    TensorData,
    cross_entropy,
    mean_squared_error,
    negative_squared_error,
)

WEIGHTS = {"red": 0.3, "blue": 0.7}


def run(
    weights: dict[str, float] = WEIGHTS,
    settings: FinetuneSettings | None = None,
    tasks: Sequence[Task] | None = None,
    **options: Any,
) -> tuple[FinetuneResult, dict[str, Tensor]]:
    """Finetune a fresh toy model; the result and all trained parameters."""
    tasks = toy_tasks() if tasks is None else tasks
    model = toy_model(tasks)
    result = finetune(model, tasks, weights, settings or toy_settings(), **options)
    return result, model.state()


@pytest.fixture(scope="module")
def undisturbed() -> tuple[FinetuneResult, dict[str, Tensor]]:
    return run()


@pytest.fixture(scope="module")
def undisturbed_ivon() -> tuple[FinetuneResult, dict[str, Tensor]]:
    return run(settings=toy_settings(optimizer="ivon"))


@pytest.mark.parametrize("rung", [3, 5, 7])
@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_a_run_goes_on_bit_for_bit_after_every_rung(
    optimizer: str, rung: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    settings = toy_settings(optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        run(settings=settings, checkpoint=checkpoint, on_rung=raise_at(rung))
    torch.manual_seed(rung)  # whatever random numbers were drawn meanwhile
    seen: list[int] = []
    result, state = run(
        settings=settings, checkpoint=checkpoint, on_rung=lambda step, _: seen.append(step)
    )
    name = "undisturbed_ivon" if optimizer == "ivon" else "undisturbed"
    expected, expected_state = request.getfixturevalue(name)
    assert same(state, expected_state)
    assert same(result.curvature or {}, expected.curvature or {})
    assert bool(expected.curvature) is (optimizer == "ivon")
    assert result.evaluations == expected.evaluations
    assert (result.resumed_at, result.steps) == (rung, 7)
    assert seen == [3, 5, 7]


def test_a_run_that_stops_between_rungs_goes_on_from_the_last_one(
    tmp_path: Path, undisturbed: tuple[FinetuneResult, dict[str, Tensor]]
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    red, blue = toy_tasks()
    data = red.data("train")
    assert isinstance(data, TensorData)
    interrupted = Task("red", InterruptedData(data.columns, at=1 + 4), red.validation, 2)
    with pytest.raises(KeyboardInterrupt):
        run(tasks=(interrupted, blue), checkpoint=checkpoint)
    result, state = run(checkpoint=checkpoint)
    assert result.resumed_at == 3
    assert same(state, undisturbed[1])


def test_seconds_and_rungs_are_counted_over_all_calls(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = run(checkpoint=checkpoint)[0]
    again = run(checkpoint=checkpoint)[0]
    assert again.resumed_at == again.steps == 7
    assert again.evaluations == first.evaluations
    assert again.seconds > 0.5 * first.seconds


@pytest.mark.parametrize("damage", [truncate, flip_byte, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_starts_the_run_again(
    damage: Any,
    tmp_path: Path,
    undisturbed: tuple[FinetuneResult, dict[str, Tensor]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, on_rung=raise_at(5))
    damage(checkpoint)
    with caplog.at_level(logging.WARNING):
        result, state = run(checkpoint=checkpoint)
    assert result.resumed_at == 0
    assert same(state, undisturbed[1])
    assert f"starting again: {checkpoint}" in caplog.text


@pytest.mark.parametrize(
    "other",
    [
        {"key": "another definition"},
        {"weights": {"red": 0.5, "blue": 0.5}},
        {"settings": toy_settings(seed=1)},
    ],
    ids=["key", "weights", "settings"],
)
def test_the_checkpoint_of_another_run_is_not_used(
    other: dict[str, Any],
    tmp_path: Path,
    undisturbed: tuple[FinetuneResult, dict[str, Tensor]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(**other, checkpoint=checkpoint)
    with caplog.at_level(logging.WARNING):
        result, state = run(checkpoint=checkpoint)
    assert result.resumed_at == 0
    assert same(state, undisturbed[1])
    assert "belongs to a run with other settings" in caplog.text


def test_the_same_run_twice_is_the_same_and_another_seed_is_not(
    undisturbed: tuple[FinetuneResult, dict[str, Tensor]],
) -> None:
    torch.manual_seed(99)
    assert same(run()[1], undisturbed[1])
    assert not same(run(settings=toy_settings(seed=1))[1], undisturbed[1])


def test_the_caller_s_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_task_run_is_a_multitask_run_with_one_task() -> None:
    red, _ = toy_tasks()
    both, state = run({"red": 1.0, "blue": 0.0})
    alone, expected = run({"red": 1.0}, tasks=(red,))
    assert same({name: state[name] for name in expected}, expected)
    assert both.evaluations["red"] == alone.evaluations["red"]


def test_the_head_of_a_task_without_weight_stays_as_it_was() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    finetune(model, tasks, {"red": 1.0, "blue": 0.0}, toy_settings(weight_decay=0.5))
    for task, untouched in (("blue", True), ("red", False)):
        names = model.own_names(task)
        assert len(names) == 2
        assert same(model.state(names), model.initial(names)) is untouched


def test_what_is_frozen_stays_as_it_was() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks, trainable=Matching(r"^3\."))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    finetune(model, tasks, WEIGHTS, toy_settings(weight_decay=0.5))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"body.3.weight", "body.3.bias", *model.own_names("red")} | set(
        model.own_names("blue")
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": math.inf, "warmup": 0.0},
        {"decay": "cosine", "max_grad_norm": 0.05, "weight_decay": 0.3},
        {"decay": "constant", "head_learning_rate": 0.1},
    ],
    ids=["plain", "clipped", "head rate"],
)
def test_the_weights_weigh_averaged_losses_as_worked_out_by_hand(changes: dict[str, Any]) -> None:
    """A loop written down in the plainest way, whose sum of losses has one backward pass."""
    settings = toy_settings(**changes)
    tasks = toy_tasks()
    model = toy_model(tasks, dropout=0.0)
    by_hand = toy_model(tasks, dropout=0.0)
    finetune(model, tasks, WEIGHTS, settings)

    def group(parameters: Any, rate: float, decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "lr": rate, "peak": rate, "weight_decay": decay}

    body, heads = list(by_hand.body.parameters()), [by_hand.heads["red"].head]
    heads.append(by_hand.heads["blue"].head)
    head_rate = settings.head_learning_rate or settings.learning_rate
    optimizer = torch.optim.AdamW(
        [
            group(body[::2], settings.learning_rate, settings.weight_decay),
            group(body[1::2], settings.learning_rate, 0.0),
            group((head.weight for head in heads), head_rate, settings.weight_decay),
            group((head.bias for head in heads), head_rate, 0.0),
        ]
    )
    for step in range(settings.steps):
        objective = torch.zeros(())
        for task in tasks:
            rows = Order(task.name, 24, settings.batch_size, settings.seed).rows(step)
            batch = task.data("train")[rows]
            mean = nn.functional.cross_entropy(by_hand(batch, task.name), batch["labels"])
            objective = objective + WEIGHTS[task.name] * mean
        optimizer.zero_grad()
        objective.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), settings.max_grad_norm)
        for members in optimizer.param_groups:
            members["lr"] = members["peak"] * settings.rate(step)
        optimizer.step()
    for name, tensor in model.state().items():
        torch.testing.assert_close(tensor, by_hand.state()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_more_copies_of_a_task_s_data_change_nothing() -> None:
    """Weights weigh averaged losses, so the size of a task's data does not."""
    red, blue = toy_tasks()
    data = red.data("train")
    assert isinstance(data, TensorData)
    twice = {name: torch.cat([column, column]) for name, column in data.columns.items()}
    settings = toy_settings(batch_size=48)  # red's data twice, and its copies once
    states = []
    for tasks in ((red, blue), (Task("red", twice, red.validation, 2), blue)):
        model = toy_model(tasks, dropout=0.0)
        finetune(model, tasks, WEIGHTS, settings)
        states.append(model.state())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_frozen_layers_are_in_evaluation_mode_while_the_others_train(tmp_path: Path) -> None:
    tasks = (token_task("one", 1), token_task("two", 2))
    model = bert_model(save_bert(tmp_path, dropout=0.5), tasks, trainable=LastLayers(1))
    modes: dict[str, set[bool]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, *_: object) -> None:
            if torch.is_grad_enabled():  # a training step, no evaluation
                modes.setdefault(name, set()).add(module.training)

        return hook

    for name, module in model.body.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(watch(name))
    settings = FinetuneSettings(steps=4, batch_size=4, num_rungs=2)
    finetune(model, tasks, {"one": 0.5, "two": 0.5}, settings)
    frozen = {n: m for n, m in modes.items() if n.startswith(("embeddings", "encoder.layer.0"))}
    trained = {n: m for n, m in modes.items() if n.startswith("encoder.layer.2")}
    assert frozen and all(mode == {False} for mode in frozen.values())
    assert trained and all(mode == {True} for mode in trained.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 4])
def test_a_loss_that_is_not_finite_ends_the_run_at_once(value: float, at: int) -> None:
    red, blue = toy_tasks()
    rungs: list[int] = []
    with pytest.raises(
        TrainingDivergedError,
        match=rf"loss {value:g}, .* in step {at + 1} with task weights {{'red': 0.3.*; a lower",
    ):
        # A rung evaluates the loss in two batches.
        calls = at + (2 if at > 3 else 0)
        failing = Task("red", red.train, red.validation, 2, loss=failing_loss(calls, value))
        run(tasks=(failing, blue), on_rung=lambda step, _: rungs.append(step))
    assert rungs == ([3] if at > 3 else [])


def test_a_gradient_that_is_not_finite_ends_the_run_at_once() -> None:
    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs[:, 0] * 0).sqrt()  # zero, of infinite slope

    red, blue = toy_tasks()
    task = Task("red", red.train, red.validation, 2, loss=Loss("root", function))
    with pytest.raises(TrainingDivergedError, match=r"loss 0, gradient norm nan in step 1 "):
        run({"red": 1.0, "blue": 0.0}, tasks=(task, blue))


@pytest.mark.parametrize("column, value", [("x", math.nan), ("labels", -math.inf)])
def test_numbers_that_are_not_finite_are_named_when_the_run_reads_them(
    column: str, value: float
) -> None:
    whole = toy_columns(24, 2, 1)
    columns = {"x": whole["x"].tolist(), "labels": whole["labels"].float().view(-1, 1).tolist()}
    columns[column][7][-1] = value
    table = Dataset.from_dict(columns).with_format("torch")
    task = Task(
        "red",
        table,
        table.select(range(7)),
        1,
        loss=mean_squared_error,
        metrics=(negative_squared_error,),
    )
    told = f"task 'red', train data: column {column!r} is {value} in example 7 (counted from 0)"
    with pytest.raises(ValueError, match=re.escape(told)):  # within the first epoch
        run({"red": 1.0}, tasks=(task,))


def test_a_failed_run_leaves_nothing_behind_for_the_next_one(
    undisturbed: tuple[FinetuneResult, dict[str, Tensor]],
) -> None:
    red, blue = toy_tasks()
    model = toy_model((red, blue))
    failing = Task("blue", blue.train, blue.validation, 3, loss=failing_loss(2, math.nan))
    with pytest.raises(TrainingDivergedError):
        finetune(model, (red, failing), WEIGHTS, toy_settings())
    finetune(model, (red, blue), WEIGHTS, toy_settings())
    assert same(model.state(), undisturbed[1])


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"red": 1.0}, r"task weights for \['red'\], but the tasks are \['blue', 'red'\]"),
        ({"red": 1.0, "blue": 0.0, "green": 0.0}, r"task weights for \['blue', 'green', 'red'\]"),
        ({"red": 1.5, "blue": -0.5}, r"finite, not negative.*got {'red': 1.5, 'blue': -0.5}"),
        ({"red": math.nan, "blue": 1.0}, r"finite, not negative.*got {'red': nan"),
        ({"red": math.inf, "blue": 1.0}, r"finite, not negative.*got {'red': inf"),
        ({"red": 0.0, "blue": 0.0}, r"not all zero, got {'red': 0.0, 'blue': 0.0}"),
    ],
)
def test_bad_weights_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(weights)


def test_runs_of_one_process_may_differ_in_their_precision(
    undisturbed: tuple[FinetuneResult, dict[str, Tensor]],
) -> None:
    low, state = run(settings=toy_settings(mixed_precision="bf16"))
    assert not same(state, undisturbed[1])
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, undisturbed[1][name], rtol=0.2, atol=0.05, msg=name)
    assert low.evaluations.keys() == WEIGHTS.keys()
    assert same(run()[1], undisturbed[1])


def test_training_lowers_the_weighted_loss() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    settings = toy_settings(steps=40, num_rungs=1)

    def weighted_loss() -> float:
        found = evaluate_tasks(model, tasks, task_batches(model, tasks, "train"))
        return sum(weight * found[name].loss.value for name, weight in WEIGHTS.items())

    before = weighted_loss()
    finetune(model, tasks, WEIGHTS, settings)
    assert weighted_loss() < 0.5 * before


def test_ivon_steps_as_worked_out_by_hand() -> None:
    """Its noise is the step's, gradients are clipped where they were sampled, and rates fall."""
    settings = toy_settings(
        optimizer="ivon", learning_rate=0.2, head_learning_rate=0.4, max_grad_norm=0.3, delta=0.1
    )
    tasks = toy_tasks()
    model, by_hand = toy_model(tasks, dropout=0.0), toy_model(tasks, dropout=0.0)
    result = finetune(model, tasks, WEIGHTS, settings)
    names = by_hand.trained_names()
    parameters = dict(by_hand.named_parameters())
    body = set(by_hand.shared_names())
    # Weights and biases are groups of their own: the noise is drawn in this order.
    names.sort(key=lambda name: (name not in body, parameters[name].ndim == 1))
    rates = {name: 0.2 if name in body else 0.4 for name in names}
    optimizer = IVON(
        [{"params": [parameters[name]], "lr": rates[name]} for name in names],
        0.2,
        ess=100 * 48,
        delta=0.1,
        initial_h=1.0,
        betas=(0.9, 1 - 4 / 7),
    )
    for step in range(settings.steps):
        torch.manual_seed(derived_seed("step", settings.seed, step))
        with optimizer.sampled():
            for task in tasks:
                rows = Order(task.name, 24, settings.batch_size, settings.seed).rows(step)
                batch = task.data("train")[rows]
                losses = cross_entropy(by_hand(batch, task.name), batch["labels"])
                (WEIGHTS[task.name] * losses.mean()).backward()
            nn.utils.clip_grad_norm_(by_hand.parameters(), settings.max_grad_norm)
        for name, group in zip(names, optimizer.param_groups):
            group["lr"] = rates[name] * settings.rate(step)
        optimizer.step()
    for name, tensor in model.state().items():
        torch.testing.assert_close(tensor, by_hand.state()[name], rtol=1e-4, atol=1e-6, msg=name)
    assert result.curvature is not None
    for name, h in zip(names, optimizer.curvature()):
        torch.testing.assert_close(result.curvature[name], h, rtol=1e-3, atol=1e-5, msg=name)


def ranks(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()]).argsort().argsort().double()


def test_a_short_run_s_curvature_ranks_parameters_as_squared_gradients_do() -> None:
    """Unless it is debiased and its decay fits the run, it stays where it began."""
    tasks = (toy_task("red", 1, classes=3), toy_task("blue", 2, classes=3))
    model = toy_model(tasks, dropout=0.0)
    settings = toy_settings(optimizer="ivon", steps=60, num_rungs=1, learning_rate=None)
    result = finetune(model, tasks, {"red": 1.0, "blue": 0.0}, settings)
    assert result.curvature is not None
    names = model.shared_names()
    fisher = squared_gradients(
        lambda parameters, batch: model.functional(parameters, batch, "red"),
        model.state(names),
        [tasks[0].data("train")[list(range(24))]] * 20,  # so many labels of each are drawn
        loss=cross_entropy,
        sample_labels=categorical_labels,
        generator=torch.Generator().manual_seed(0),
    )
    found = {name: result.curvature[name] for name in names}
    assert torch.corrcoef(torch.stack([ranks(found), ranks(fisher)]))[0, 1] > 0.5
    trained = result.evaluations["red"].loss.value
    model.reset()
    fresh = evaluate_tasks(model, tasks, task_batches(model, tasks))["red"].loss.value
    assert trained < 0.8 * fresh


def test_a_warning_is_logged_where_the_curvature_is_almost_constant(
    caplog: pytest.LogCaptureFixture,
) -> None:
    curvature = {"a": torch.ones(5, 2), "b": 1 + 0.01 * torch.arange(3.0)}
    warn_if_constant(curvature | {"c": torch.full((3,), 9.0)})
    assert not caplog.records
    warn_if_constant(curvature)
    assert "almost the same for all 13 parameters (relative standard deviation" in caplog.text
    caplog.clear()
    warn_if_constant({"a": torch.zeros(4)})
    assert "almost the same for all 4 parameters" in caplog.text
