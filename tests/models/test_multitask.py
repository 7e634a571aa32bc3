from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    FEATURES,
    bert_model,
    image_tasks,
    same,
    save_bert,
    tiny_vit,
    token_task,
    toy_body,
    toy_model,
    toy_task,
    toy_tasks,
)
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from optuna_merge.models import (
    LastLayers,
    Matching,
    MultitaskModel,
    evaluate_tasks,
    from_module,
    from_timm,
    task_batches,
)
from optuna_merge.tasks import Task


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_own_heads_are_trained_but_not_merged() -> None:
    model = toy_model(toy_tasks())
    assert model.tasks == ("red", "blue")
    assert model.shared_names() == [f"body.{i}.{part}" for i in (0, 3) for part in PARTS]
    assert model.own_names("blue") == [f"heads.blue.head.{part}" for part in PARTS]
    assert model.trained_names(["red"]) == model.shared_names() + model.own_names("red")
    assert model.trained_names() == model.trained_names(["red", "blue"])


PARTS = ("weight", "bias")


def test_shared_heads_are_merged() -> None:
    tasks = [toy_task("red", head="both"), toy_task("green"), toy_task("blue", 2, head="both")]
    model = toy_model(tasks)
    shared_head = [f"heads.both.head.{part}" for part in PARTS]
    assert model.shared_names()[-2:] == shared_head
    assert model.own_names("red") == model.own_names("blue") == []
    assert model.own_names("green") == [f"heads.green.head.{part}" for part in PARTS]
    batch = tasks[0].data("train")[[0, 1]]
    assert torch.equal(model(batch, "red"), model(batch, "blue"))
    assert not torch.equal(model(batch, "red"), model(batch, "green"))


def test_a_shared_head_alone_may_be_merged() -> None:
    tasks = [toy_task("red", head="both"), toy_task("blue", 2, head="both")]
    body = nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)])
    model = from_module(body, tasks, features=6, inputs=["x"], trainable=LastLayers(0))
    assert model.shared_names() == [f"heads.both.head.{part}" for part in PARTS]


def test_only_what_is_trained_requires_gradients() -> None:
    model = toy_model(toy_tasks(), trainable=Matching("^3"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(model.trained_names())
    assert "body.0.weight" not in trained and "body.3.weight" in trained


def test_heads_are_the_same_for_the_same_seed() -> None:
    states = [toy_model(toy_tasks(), seed=seed).state() for seed in (0, 0, 1)]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    before = torch.get_rng_state()
    toy_model(toy_tasks())
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_is_reset_to_what_it_was_made_with() -> None:
    model = toy_model(toy_tasks())
    before = model.state()
    model.load({name: tensor + 1 for name, tensor in before.items()})
    assert torch.equal(model.state()["body.0.bias"], before["body.0.bias"] + 1)
    assert same(model.initial(model.trained_names()), before)
    model.reset()
    assert same(model.state(), before)


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        ("body.9.weight", torch.zeros(1), "run 7: the model has no parameter 'body.9.weight'"),
        (
            "body.3.weight",
            torch.zeros(9, 9),
            "run 7: 'body.3.weight' has shape (9, 9), expected (8, 8); was it made "
            "with another body?",
        ),
    ],
)
def test_tensors_of_another_model_are_refused_and_nothing_is_copied(
    name: str, tensor: Tensor, message: str
) -> None:
    model = toy_model(toy_tasks())
    before = model.state()
    with pytest.raises(ValueError, match=re.escape(message)):
        model.load({"body.0.bias": torch.ones(FEATURES), name: tensor}, source="run 7")
    assert same(model.state(), before)


BAD_MODELS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: from_module(toy_body(), toy_tasks(), features=8, trainable=Matching("none")),
        "no parameter of Sequential matches 'none'",
    ),
    (lambda: from_module(toy_body(), toy_tasks()), "give either features=, for linear heads, or"),
    (
        lambda: from_module(toy_body(), toy_tasks(), features=8, heads={}),
        "give either features=, for linear heads, or",
    ),
    (
        lambda: from_module(toy_body(), toy_tasks(), heads={"red": nn.Linear(8, 2)}),
        "task 'blue' uses the head 'blue', but the model has only ['red']",
    ),
    (
        lambda: from_module(
            nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)]),
            toy_tasks(),
            features=6,
            trainable=LastLayers(0),
        ),
        "nothing to merge: trainable=LastLayers(count=0) trains no parameter of the body",
    ),
    (lambda: toy_model([toy_task("red"), toy_task("red", 1)]), "two tasks have the name 'red'"),
]


@pytest.mark.parametrize("make, message", BAD_MODELS)
def test_bad_models_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_heads_may_be_modules_of_your_own() -> None:
    heads = {name: nn.Sequential(nn.Tanh(), nn.Linear(8, 2)) for name in ("red", "spare")}
    model = from_module(toy_body(), [toy_task("red")], heads=heads, inputs=["x"])
    batch = toy_task("red").data("train")[[0, 1]]
    assert torch.equal(model(batch, "red"), heads["red"](model.body(batch["x"])))
    assert model.own_names("red") == ["heads.red.head.1.weight", "heads.red.head.1.bias"]


class Normed(nn.Module):
    """A frozen layer with dropout, a batch norm, and a trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5))
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


def test_frozen_modules_and_batch_norms_stay_in_evaluation_mode() -> None:
    tasks = toy_tasks()
    model = from_module(
        Normed(), tasks, features=8, inputs=["x"], trainable=Matching("^last|^norm")
    )
    assert not any(module.training for module in model.modules())
    model.train()
    body = model.body
    assert not body.first.training and not body.first[1].training and not body.norm.training
    assert body.last.training and body.last[1].training and body.training
    statistics = {name: buffer.clone() for name, buffer in body.named_buffers()}
    model(tasks[0].data("train")[[0, 1, 2]], "red")
    assert same(dict(body.named_buffers()), statistics)
    model.eval()
    assert not any(module.training for module in model.modules())


def check_functional(model: MultitaskModel, task: Task) -> None:
    """Per-example gradients of the shared parameters; then the model must be as it was."""
    parameters = dict(model.named_parameters())
    holders = {
        (id(module), name): parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    batch = task.data("train")[[0, 1, 2]]
    expected = model(batch, task.name)
    names = model.shared_names()
    values = model.state(names)
    torch.testing.assert_close(model.functional(values, batch, task.name), expected)

    def loss(values: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
        one = {column: row.unsqueeze(0) for column, row in x.items()}
        return model.functional(values, one, task.name).logsumexp(-1).squeeze()

    if "attention_mask" in batch:  # looked into by BERT, so not fit for vmap
        gradients = grad(loss)(values, {column: rows[0] for column, rows in batch.items()})
    else:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            gradients = vmap(grad(loss), (None, 0))(values, batch)
    assert all(tensor.abs().sum() > 0 for name, tensor in gradients.items() if "key" not in name)

    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameter for name, parameter in parameters.items())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            assert type(parameter) is nn.Parameter
            assert parameter is holders[id(module), name]
    assert torch.equal(model(batch, task.name), expected)
    # The outputs follow the values that are given, for each task's head.
    moved = {name: value + 0.1 for name, value in values.items()}
    for name in model.tasks:
        model.load(values)
        other = model.functional(moved, batch, name)
        model.load(moved)
        torch.testing.assert_close(other, model(batch, name))


def test_functional_leaves_a_toy_intact() -> None:
    tasks = toy_tasks()
    check_functional(toy_model(tasks), tasks[0])


def test_functional_leaves_bert_intact(bert_folder: str) -> None:
    tasks = (token_task("one", 1), token_task("two", 2, classes=3))
    check_functional(bert_model(bert_folder, tasks, trainable="all"), tasks[1])


def test_functional_leaves_a_vit_intact() -> None:
    tasks = image_tasks()
    check_functional(from_timm(tiny_vit(), tasks), tasks[0])


class Tied(nn.Module):
    """Two modules that hold one weight, as embeddings and decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 6)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).tanh())


def test_tied_parameters_are_one_and_are_replaced_in_both_places() -> None:
    tasks = toy_tasks()
    model = from_module(Tied(), tasks, features=6, inputs=["x"])
    assert model.shared_names() == ["body.down.weight", "body.down.bias", "body.up.bias"]
    check_functional(model, tasks[0])
    assert model.body.up.weight is model.body.down.weight


def test_transformers_heads_share_one_body(bert_folder: str) -> None:
    tasks = (token_task("one", 1), token_task("two", 2, classes=3))
    model = bert_model(bert_folder, tasks)
    assert model.heads["one"].bert is model.heads["two"].bert is model.body
    layers = {".".join(name.split(".")[:4]) for name in model.shared_names()}
    assert layers == {
        "body.encoder.layer.2",
        "body.pooler.dense.weight",
        "body.pooler.dense.bias",
    }
    assert model.own_names("two") == ["heads.two.classifier.weight", "heads.two.classifier.bias"]
    batch = tasks[1].data("train")[[0, 1]]
    assert model(batch, "two").shape == (2, 3)
    assert same(bert_model(bert_folder, tasks).state(), model.state())
    assert not same(bert_model(bert_folder, tasks, seed=1).state(), model.state())
    # Padding is masked out.
    short = {name: column[:, :9] if column.ndim > 1 else column for name, column in batch.items()}
    wide = {
        name: nn.functional.pad(column, (0, 4)) if column.ndim > 1 else column
        for name, column in short.items()
    }
    torch.testing.assert_close(model(short, "two"), model(wide, "two"))


def test_timm_heads_stand_on_pooled_features() -> None:
    tasks = image_tasks()
    model = from_timm(tiny_vit(), tasks, trainable=LastLayers(1))
    assert {".".join(name.split(".")[:3]) for name in model.shared_names()} == {
        "body.blocks.2",
        "body.norm.weight",
        "body.norm.bias",
    }
    batch = tasks[0].data("train")[[0, 1]]
    features = model.body(batch["pixel_values"])
    assert features.shape == (2, 16)
    torch.testing.assert_close(model(batch, "left"), model.heads["left"].head(features))


def test_timm_models_are_made_by_name() -> None:
    model = from_timm("test_vit", image_tasks(), pretrained=False, trainable=Matching("^norm"))
    assert model.shared_names() == ["body.norm.weight", "body.norm.bias"]


def test_the_description_changes_with_the_body_and_not_with_training() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks, trainable=Matching("^3"))
    before = model.describe()
    assert before == toy_model(tasks, trainable=Matching("^3")).describe()
    model.load({name: tensor + 1 for name, tensor in model.state().items()})
    assert model.describe() == before
    assert toy_model(tasks, trainable="all").describe()["trainable"] == "'all'"
    body = toy_body()
    with torch.no_grad():
        body[0].bias[0] += 1e-6  # frozen
    other = from_module(
        body, tasks, features=FEATURES, inputs=["x"], trainable=Matching("^3")
    ).describe()
    assert {key for key in before if before[key] != other[key]} == {"hash"}


def test_all_tasks_are_evaluated_with_their_own_heads_on_the_first_examples() -> None:
    tasks = toy_tasks()
    model = toy_model(tasks)
    model.train()
    found = evaluate_tasks(model, tasks, task_batches(model, tasks, batch_size=4, limit=5))
    assert not model.training
    for task in tasks:
        batch = task.data("validation")[list(range(5))]
        losses = nn.functional.cross_entropy(model(batch, task.name), batch["labels"])
        assert found[task.name].loss.value == pytest.approx(losses.item(), rel=1e-6)
        assert found[task.name].num_examples == 5
    assert (
        evaluate_tasks(model, tasks[:1], task_batches(model, tasks, "train", limit=99))[
            "red"
        ].num_examples
        == 24
    )
