from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from helpers import same, toy_model, toy_task
from language_helpers import (
    END,
    PAD,
    SETTINGS,
    chrf_metric,
    language_model,
    save_language_model,
    translation_tasks,
)
from torch import Tensor

from optuna_merge.models import (
    GenerationSettings,
    LastLayers,
    MultitaskModel,
    cache_trunk,
    evaluate_tasks,
    from_language_model,
    task_batches,
)
from optuna_merge.models._generation import prompts
from optuna_merge.posteriors import squared_gradients
from optuna_merge.tasks import Task, TensorData, token_cross_entropy

KINDS = ("llama", "t5")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {k: save_language_model(k, tmp_path_factory.mktemp(k)) for k in KINDS}


def disturbed(model: MultitaskModel) -> MultitaskModel:
    """Random parameters large enough that texts differ from one another."""
    generator = torch.Generator().manual_seed(3)
    model.load(
        {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in model.state().items()
        }
    )
    return model.eval()


def greedy(model: MultitaskModel, batch: dict[str, Tensor], row: int, steps: int) -> list[int]:
    """The most probable token each time, by one whole forward pass per token, without padding."""
    ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
    written: list[int] = []
    if "decoder_input_ids" not in batch:
        ids = ids[: int((batch["labels"][row] != -100).nonzero()[0]) + 1]
    while len(written) < steps and END not in written:
        new = torch.tensor(written, dtype=torch.long)
        if "decoder_input_ids" in batch:
            decoder = torch.cat([torch.tensor([PAD]), new])
            one = {"input_ids": ids[None], "decoder_input_ids": decoder[None]}
        else:
            one = {"input_ids": torch.cat([ids, new])[None]}
        written.append(int(model(one, "next")[0, -1].argmax()))
    return written


def test_generation_is_greedy_and_padding_does_not_matter(
    kind: str, folders: dict[str, str]
) -> None:
    tasks = translation_tasks(kind, size=12)
    model = disturbed(language_model(folders[kind], tasks))
    batch = tasks[1].data("validation")[list(range(20))]
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    written = model.generate(batch, "next")
    expected = [greedy(model, batch, row, SETTINGS.max_new_tokens) for row in range(20)]
    assert [[token for token in row if token != -100] for row in written.tolist()] == expected
    assert len(set(map(tuple, expected))) > 3
    assert any(END in row for row in expected) and any(END not in row for row in expected)
    before = model.heads["next"].network.generation_config
    assert torch.equal(model.generate(batch, "next"), written)
    assert model.heads["next"].network.generation_config is before, "an export writes it"
    assert before.max_new_tokens != SETTINGS.max_new_tokens


def test_beams_are_another_search_and_part_of_the_description(
    kind: str, folders: dict[str, str]
) -> None:
    tasks = translation_tasks(kind, size=12)
    beams = dataclasses.replace(SETTINGS, num_beams=3)
    model = disturbed(language_model(folders[kind], tasks, generation=beams))
    described = model.describe()["generation"]["same"]
    assert described["num_beams"] == 3 and described["max_new_tokens"] == 4
    assert described["eos_token_id"] == END
    plain = from_language_model(folders[kind], tasks).describe()["generation"]["next"]
    assert plain["num_beams"] == 1 and plain["max_new_tokens"] == 128
    batch = tasks[0].data("validation")[list(range(20))]
    found = model.generate(batch, "same")
    assert torch.equal(found, model.generate(batch, "same"))
    greedy = disturbed(language_model(folders[kind], tasks, generation=SETTINGS))
    other = greedy.generate(batch, "same")
    assert found.shape != other.shape or not torch.equal(found, other)


def test_the_whole_model_is_the_shared_body(kind: str, folders: dict[str, str]) -> None:
    tasks = translation_tasks(kind, size=12)
    model = language_model(folders[kind], tasks)
    assert model.own_names("same") == model.own_names("next") == []
    assert model.shared_names() == [name for name, _ in model.named_parameters()]
    assert all(name.startswith("body.") for name in model.shared_names())
    batch = tasks[0].data("train")[[0, 1]]
    outputs = model(batch, "same")
    assert outputs.shape == (*batch["labels"].shape, tasks[0].num_outputs)
    assert torch.equal(outputs, model(batch, "next"))
    # Labels that are drawn for the curvature must not change what the decoder is given.
    drawn = batch | {"labels": torch.ones_like(batch["labels"])}
    assert torch.equal(model(drawn, "same"), outputs)


def test_per_example_gradients_are_those_of_single_examples(
    kind: str, folders: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    tasks = translation_tasks(kind, size=12)
    model = language_model(folders[kind], tasks)
    names = model.shared_names()[-2:]
    data = tasks[0].data("train")
    rows = [i for i in range(12) if int(data.lengths[i]) == int(data.lengths[0])]  # type: ignore[attr-defined]
    batch = {k: v for k, v in data[rows].items() if k != "attention_mask"}
    with caplog.at_level(logging.INFO):
        found = squared_gradients(
            lambda parameters, batch: model.functional(parameters, batch, "same"),
            model.state(names),
            [batch],
            loss=token_cross_entropy,
        )
    assert "vmapped" not in caplog.text
    expected = {name: torch.zeros_like(tensor) for name, tensor in found.items()}
    for i in range(len(rows)):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        model.zero_grad()
        token_cross_entropy(model(one, "same"), one["labels"]).sum().backward()
        for name in names:
            expected[name] += model.get_parameter(name).grad.square() / len(rows)
    for name in names:
        torch.testing.assert_close(found[name], expected[name])


def test_prompts_end_before_the_first_label_and_are_padded_on_the_left() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 2], [5, 9, 2, 0, 0], [7, 8, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[-100, -100, 8, 2, -100], [9, 2, -100, -100, -100], [-100] * 5]),
    }
    ids, mask = prompts(batch)
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert (ids * mask).tolist() == [[5, 6, 7], [0, 0, 5], [0, 7, 8]]
    del batch["attention_mask"]
    assert prompts({k: v[:1] for k, v in batch.items()})[1].tolist() == [[1, 1, 1]]


def test_the_frozen_trunk_is_cached_for_causal_models_only(folders: dict[str, str]) -> None:
    for kind in KINDS:
        tasks = translation_tasks(kind, size=12)
        model = disturbed(language_model(folders[kind], tasks, trainable=LastLayers(1)))
        expected = evaluate_tasks(model, tasks, task_batches(model, tasks, batch_size=16))
        cached = cache_trunk(model, tasks)
        assert (cached != tasks) == (kind == "llama")
        found = evaluate_tasks(model, cached, task_batches(model, cached, batch_size=16))
        for name, evaluation in found.items():
            assert evaluation.metrics == expected[name].metrics
            assert evaluation.loss.value == pytest.approx(expected[name].loss.value, rel=1e-6)


def test_heads_are_evaluated_alike_in_every_process(kind: str, folders: dict[str, str]) -> None:
    tasks = translation_tasks(kind, size=12)
    models = [language_model(folders[kind], tasks) for _ in range(2)]
    assert models[0].describe() == models[1].describe()
    assert same(models[0].state(), models[1].state())
    found = [evaluate_tasks(m, tasks, task_batches(m, tasks)) for m in models]
    assert found[0] == found[1]
    assert set(found[0]["same"].metrics) == {"chrf", "token_accuracy"}


def without_end(task: Task) -> Task:
    data = task.data("train")
    assert isinstance(data, TensorData)
    labels = data.columns["labels"]
    cut = TensorData(data.columns | {"labels": labels.masked_fill(labels == END, -100)})
    return dataclasses.replace(task, train=cut)


def test_targets_without_an_end_are_warned_of(
    folders: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    tasks = translation_tasks("llama", size=12)
    language_model(folders["llama"], tasks)
    assert not caplog.text
    language_model(folders["llama"], (without_end(tasks[0]),))
    assert "no target ends with one of the model's end tokens [2]" in caplog.text


def test_bad_language_models_are_named(folders: dict[str, str]) -> None:
    llama, t5 = (translation_tasks(kind, size=4) for kind in KINDS)
    with pytest.raises(
        ValueError, match=r"'same' lacks a column 'decoder_input_ids'.*seq2seq_task"
    ):
        language_model(folders["t5"], llama)
    with pytest.raises(
        ValueError, match=r"'same' has a column 'decoder_input_ids'.*language_task"
    ):
        language_model(folders["llama"], t5)
    with pytest.raises(ValueError, match="start with token 2, but the model starts with 0"):
        language_model(folders["t5"], translation_tasks("t5", size=4, start=END))
    wide = dataclasses.replace(llama[0], num_outputs=99)
    with pytest.raises(ValueError, match="has 99 tokens, but the model's output layer 11"):
        language_model(folders["llama"], (wide,))
    together = tuple(dataclasses.replace(task, head="one") for task in llama)
    assert from_language_model(folders["llama"], together).tasks == ("same", "next")
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        GenerationSettings(max_new_tokens=0)


def test_models_that_cannot_generate_say_so() -> None:
    task = toy_task("red")
    model = toy_model([task])
    with pytest.raises(ValueError, match="network of task 'red' can't generate; make the model"):
        model.generate(task.data("train")[[0]], "red")
    with pytest.raises(ValueError, match="metric 'chrf' of generated texts, but its network"):
        toy_model([toy_task("red", metrics=(chrf_metric(),))])
