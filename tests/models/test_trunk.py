from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers import (
    bert_model,
    files_below,
    flip_byte,
    image_tasks,
    save_bert,
    tiny_vit,
    token_task,
    toy_model,
    toy_tasks,
)
from torch import Tensor

from optuna_merge.finetuning import FinetuneSettings, finetune
from optuna_merge.models import (
    LastLayers,
    Matching,
    MultitaskModel,
    cache_trunk,
    evaluate_tasks,
    from_timm,
    task_batches,
)
from optuna_merge.models._multitask import TRUNK
from optuna_merge.models._trainable import find_layers
from optuna_merge.posteriors import squared_gradients
from optuna_merge.tasks import Loss, Task, TensorData

Make = Callable[[], tuple[MultitaskModel, Sequence[Task]]]


@pytest.fixture(scope="module", params=["bert", "vit"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    if request.param == "vit":

        def vit() -> tuple[MultitaskModel, Sequence[Task]]:
            tasks = image_tasks()
            return from_timm(tiny_vit(), tasks, trainable=LastLayers(1)), tasks

        return vit
    folder = save_bert(tmp_path_factory.mktemp("bert"), dropout=0.3)

    def bert() -> tuple[MultitaskModel, Sequence[Task]]:
        tasks = (token_task("one", 1), token_task("two", 2, classes=3))
        return bert_model(folder, tasks), tasks

    return bert


def columns(task: Task, split: str = "train") -> dict[str, Tensor]:
    data = task.data(split)
    assert isinstance(data, TensorData)
    return data.columns


def test_outputs_and_losses_are_the_same(make: Make) -> None:
    model, tasks = make()
    rows = [4, 1, 7]
    expected = [model(task.data("train")[rows], task.name) for task in tasks]
    before = evaluate_tasks(model, tasks, task_batches(model, tasks))
    cached = cache_trunk(model, tasks, batch_size=5)
    for task, old, outputs in zip(cached, tasks, expected):
        batch = task.data("train")[rows]
        assert TRUNK in batch
        torch.testing.assert_close(model(batch, task.name), outputs, rtol=1e-5, atol=1e-6)
        # The same model still takes what isn't cached.
        assert torch.equal(model(old.data("train")[rows], task.name), outputs)
        found = evaluate_tasks(model, cached, task_batches(model, cached, batch_size=4))[task.name]
        assert found.loss.value == pytest.approx(before[task.name].loss.value, rel=1e-5)
        assert found.metric == before[task.name].metric
    # It is the trunk's output that is used, not the inputs beside it.
    batch = cached[0].data("train")[rows]
    moved = model(batch | {TRUNK: -batch[TRUNK]}, cached[0].name)
    assert not torch.allclose(moved, expected[0], rtol=1e-2)


def test_finetunes_are_close(make: Make) -> None:
    settings = FinetuneSettings(steps=5, batch_size=6, learning_rate=1e-3, num_rungs=1)
    states = []
    for cache in (False, True):
        model, tasks = make()
        if cache:
            tasks = cache_trunk(model, tasks)
        weights = {tasks[0].name: 0.4, tasks[1].name: 0.6}
        finetune(model, tasks, weights, settings)
        states.append(model.state())
        start = model.initial(model.trained_names())
    for name, tensor in states[0].items():
        if "key.bias" in name:  # no gradient but rounding, which AdamW blows up
            continue
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=2e-4, msg=name)
        assert not torch.equal(tensor, start[name])


def test_squared_gradients_are_the_same(make: Make) -> None:
    model, tasks = make()
    task = tasks[1]
    (cached,) = (t for t in cache_trunk(model, tasks) if t.name == task.name)

    def curvature(task: Task) -> dict[str, Tensor]:
        loss = task.loss
        assert isinstance(loss, Loss)
        return squared_gradients(
            lambda params, batch: model.functional(params, batch, task.name),
            model.state(model.shared_names()),
            (task.data("train")[rows] for rows in ([0, 1, 2, 3, 4], [5, 6, 7])),
            loss=loss,
            sample_labels=loss.sample_labels,
            generator=torch.Generator().manual_seed(0),
        )

    expected, found = curvature(task), curvature(cached)
    assert max(float(h.max()) for h in expected.values()) > 1e-4
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-8, msg=name)


def test_a_model_may_be_cached_again(make: Make) -> None:
    model, tasks = make()
    first, second = cache_trunk(model, tasks), cache_trunk(model, tasks)
    for one, other in zip(first, second):
        torch.testing.assert_close(columns(one)[TRUNK], columns(other)[TRUNK])
        outputs = [model(task.data("train")[[0, 1]], task.name) for task in (one, other)]
        torch.testing.assert_close(*outputs)


def test_padding_is_cut_from_the_activations_too(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tasks = (token_task("one", 1),)
    model = bert_model(save_bert(tmp_path_factory.mktemp("bert")), tasks)
    (cached,) = cache_trunk(model, tasks)
    data = cached.data("train")
    assert isinstance(data, TensorData) and data.lengths is not None
    shortest = int(data.lengths.argmin())
    length = int(data.lengths[shortest])
    assert length < 9
    assert data[[shortest]][TRUNK].shape == (1, length, 16)


def test_the_splits_that_a_task_has_are_cached() -> None:
    tasks = image_tasks()
    left = Task("left", tasks[0].train, tasks[0].validation, 2, test=tasks[1].train)
    model = from_timm(tiny_vit(), tasks, trainable=LastLayers(2))
    cached = cache_trunk(model, (left, tasks[1]))
    assert columns(cached[0], "test")[TRUNK].shape == (12, 5, 16)
    assert cached[1].test is None


def test_where_it_does_not_apply_the_tasks_come_back_as_they_were() -> None:
    tasks = image_tasks()

    def vit(trainable: object) -> MultitaskModel:
        return from_timm(tiny_vit(), tasks, trainable=trainable)  # type: ignore[arg-type]

    for trainable in ("all", Matching("blocks.2"), LastLayers(3), LastLayers(0)):
        assert cache_trunk(vit(trainable), tasks) == tasks
    needed = (12 + 10) * 2 * 5 * 16 * 4  # examples of both tasks, tokens, features, bytes
    assert cache_trunk(vit(LastLayers(1)), tasks, max_bytes=needed - 1) == tasks
    assert cache_trunk(vit(LastLayers(1)), tasks, max_bytes=needed) != tasks
    toys = toy_tasks()
    assert cache_trunk(toy_model(toys), toys) == toys


def test_activations_for_another_model_are_refused() -> None:
    tasks = image_tasks()
    cached = cache_trunk(from_timm(tiny_vit(), tasks, trainable=LastLayers(1)), tasks)
    other = from_timm(tiny_vit(), tasks, trainable=LastLayers(1))
    with pytest.raises(ValueError, match=r"column 'trunk_activations' .*cache_trunk was not call"):
        other(cached[0].data("train")[[0]], "left")


def test_activations_are_kept_in_files(make: Make, tmp_path: Path) -> None:
    model, tasks = make()
    folder = tmp_path / "trunk"
    expected = cache_trunk(model, tasks)
    cached = cache_trunk(make()[0], make()[1], folder=folder)
    before = files_below(folder)
    assert len(before) == 4  # two tasks, training and validation data
    again = cache_trunk(*make(), folder=folder)
    assert files_below(folder) == before
    for made in (cached, again):
        for task, other in zip(made, expected):
            assert torch.equal(columns(task)[TRUNK], columns(other)[TRUNK])
    flip_byte(folder / next(iter(before)))
    repaired = cache_trunk(*make(), folder=folder)
    assert files_below(folder) != before
    for task, other in zip(repaired, expected):
        assert torch.equal(columns(task)[TRUNK], columns(other)[TRUNK])


def test_dropout_between_frozen_modules_is_off() -> None:
    vit = tiny_vit()
    vit.pos_drop.p = 0.5
    model = from_timm(vit, image_tasks(), trainable=LastLayers(1)).train()
    assert not model.body.pos_drop.training
    assert model.body.blocks[-1].mlp.drop1.training


def test_no_trained_layer_runs_while_activations_are_computed(make: Make) -> None:
    model, tasks = make()
    *frozen, trained = find_layers(model.body)[1].children()
    calls: list[str] = []
    frozen[-1].register_forward_hook(lambda *_: calls.append("frozen"))
    trained.register_forward_hook(lambda *_: calls.append("trained"))
    batch = tasks[0].data("train")[[0]]
    cache_trunk(model, tasks)
    assert set(calls) == {"frozen"}
    model(batch, tasks[0].name)  # afterwards the whole model runs again
    assert calls[-1] == "trained"
