from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor

from optuna_merge.tasks import (
    Measurement,
    Metric,
    accuracy,
    bleu,
    chrf,
    macro_f1,
    matthews,
    negative_squared_error,
    pearson,
    perplexity,
    squared_error,
    text_metric,
    token_accuracy,
)
from optuna_merge.tasks._metrics._standard_errors import jackknife_measurement

Example = tuple[Tensor, Tensor]


def classified(classes: int, count: int = 300, seed: int = 0) -> Example:
    """Logits that favour the label, and unbalanced labels."""
    random = torch.Generator().manual_seed(seed)
    shares = 1.0 / torch.arange(1, classes + 1)
    labels = torch.multinomial(shares, count, replacement=True, generator=random)
    outputs = torch.randn(count, classes, generator=random)
    outputs[torch.arange(count), labels] += 1.0
    return outputs, labels


def regressed(count: int = 300, seed: int = 0) -> Example:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randn(count, generator=random).abs()  # not normal, for pearson's sake
    return 0.7 * labels[:, None] + torch.randn(count, 1, generator=random), labels


def tagged(count: int = 300, tokens: int = 9, classes: int = 5, seed: int = 0) -> Example:
    """Tokens whose difficulty is their example's, and -100 for a part of every example."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count, tokens), generator=random)
    outputs = torch.randn(count, tokens, classes, generator=random)
    ease = 3 * torch.rand(count, 1, 1, generator=random)
    outputs += ease * torch.nn.functional.one_hot(labels, classes)
    lengths = torch.randint(0, tokens + 1, (count, 1), generator=random)
    return outputs, labels.where(torch.arange(tokens) < lengths, -100)


def classes_of(example: Example) -> tuple[np.ndarray, np.ndarray]:
    return example[1].numpy(), example[0].argmax(-1).numpy()


def token_losses(example: Example) -> np.ndarray:
    outputs, labels = example
    log_probabilities = outputs.double().log_softmax(-1)
    rows, places = (labels >= 0).nonzero(as_tuple=True)
    return -log_probabilities[rows, places, labels[rows, places]].numpy()


VALUES: list[tuple[Metric, Example, Callable[[Example], float]]] = [
    (accuracy, classified(2), lambda e: reference.accuracy_score(*classes_of(e))),
    (accuracy, classified(5), lambda e: reference.accuracy_score(*classes_of(e))),
    (macro_f1, classified(2), lambda e: reference.f1_score(*classes_of(e), average="macro")),
    (macro_f1, classified(5), lambda e: reference.f1_score(*classes_of(e), average="macro")),
    (matthews, classified(2), lambda e: reference.matthews_corrcoef(*classes_of(e))),
    (matthews, classified(5), lambda e: reference.matthews_corrcoef(*classes_of(e))),
    (squared_error, regressed(), lambda e: reference.mean_squared_error(e[1], e[0][:, 0])),
    (negative_squared_error, regressed(), lambda e: -((e[0][:, 0] - e[1]) ** 2).mean().item()),
    (pearson, regressed(), lambda e: stats.pearsonr(e[1], e[0][:, 0]).statistic),
    (perplexity, tagged(), lambda e: np.exp(token_losses(e).mean())),
    (
        token_accuracy,
        tagged(),
        lambda e: reference.accuracy_score(*(x[e[1].numpy() >= 0] for x in classes_of(e))),
    ),
]
IDS = [f"{metric.name}-{number}" for number, (metric, _, _) in enumerate(VALUES)]


@pytest.mark.parametrize(("metric", "example", "expected"), VALUES, ids=IDS)
def test_values_are_those_of_the_reference(
    metric: Metric, example: Example, expected: Callable[[Example], float]
) -> None:
    assert metric(*example).value == pytest.approx(expected(example), rel=1e-5)


@pytest.mark.parametrize(("metric", "example", "expected"), VALUES, ids=IDS)
def test_standard_errors_are_those_of_a_bootstrap(
    metric: Metric, example: Example, expected: object
) -> None:
    del expected
    outputs, labels = metric.condense(*example)
    random = np.random.default_rng(0)
    values = []
    for _ in range(1000):
        rows = torch.from_numpy(random.integers(len(labels), size=len(labels)))
        values.append(metric.function(outputs[rows], labels[rows]).value)
    # 1000 resamples know a standard error to 2 %; the linearisation costs some more.
    assert metric(*example).standard_error == pytest.approx(np.std(values), rel=0.1)


@pytest.mark.parametrize(("metric", "example", "expected"), VALUES, ids=IDS)
def test_batches_are_condensed_apart_to_the_same_measurement(
    metric: Metric, example: Example, expected: object
) -> None:
    del expected
    whole = metric(*example)
    pieces = [metric.condense(o, y) for o, y in zip(example[0].split(64), example[1].split(64))]
    outputs, labels = (torch.cat(part) for part in zip(*pieces))
    found = metric.function(outputs, labels)
    assert found.value == pytest.approx(whole.value, rel=1e-6)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-6)


@pytest.mark.parametrize("metric", [perplexity, token_accuracy])
def test_batches_of_tokens_may_differ_in_length(metric: Metric) -> None:
    outputs, labels = tagged()
    short = (labels[:, 4:] < 0).all(1)
    pieces = [
        metric.condense(outputs[~short], labels[~short]),
        metric.condense(outputs[short, :4], labels[short, :4]),
    ]
    found = metric.function(*(torch.cat(part) for part in zip(*pieces)))
    assert found.value == pytest.approx(metric(outputs, labels).value, rel=1e-6)


def test_a_class_that_only_predictions_have_counts_in_macro_f1() -> None:
    outputs = torch.eye(4)[[0, 0, 3, 1]]  # class 2 of the head occurs nowhere
    labels = torch.tensor([0, 0, 1, 1])
    # F1 is 1 for class 0, 2/3 for class 1 and 0 for class 3.
    assert macro_f1(outputs, labels).value == pytest.approx((1 + 2 / 3) / 3)


def test_right_answers_have_no_standard_error() -> None:
    outputs, labels = torch.eye(3)[[0, 1, 2, 1]], torch.tensor([0, 1, 2, 1])
    for metric in (accuracy, macro_f1, matthews):
        measured = metric(outputs, labels)
        assert measured.value == pytest.approx(1.0)
        assert measured.standard_error == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "outputs", "labels"),
    [
        (matthews, torch.eye(2)[[1, 1, 1]], torch.tensor([0, 1, 1])),
        (matthews, torch.eye(2)[[0, 1, 1]], torch.tensor([1, 1, 1])),
        (pearson, torch.full((3, 1), 0.1), torch.tensor([0.0, 1.0, 2.0])),
        (pearson, torch.arange(3.0)[:, None], torch.full((3,), 0.1)),
    ],
)
def test_a_constant_is_uncorrelated(metric: Metric, outputs: Tensor, labels: Tensor) -> None:
    measured = metric(outputs, labels)
    assert measured.value == 0.0
    assert math.isnan(measured.standard_error)


def test_perplexity_of_a_ruined_model_is_infinite() -> None:
    outputs = torch.tensor([[[0.0, 2000.0]]] * 2)
    measured = perplexity(outputs, torch.zeros(2, 1).long())
    assert measured.value == math.inf
    assert math.isnan(measured.standard_error)


def test_perplexity_of_half_precision_outputs_is_computed_in_full() -> None:
    outputs, labels = tagged()
    rounded = outputs.bfloat16()
    assert perplexity(rounded, labels) == perplexity(rounded.float(), labels)


@pytest.mark.parametrize("metric", [perplexity, token_accuracy])
def test_tokens_without_any_label_are_an_error(metric: Metric) -> None:
    with pytest.raises(ValueError, match="none of the 2 examples has a labelled token"):
        metric(torch.zeros(2, 3, 4), torch.full((2, 3), -100))


@pytest.mark.parametrize("metric", [accuracy, macro_f1, matthews])
def test_metrics_of_classes_refuse_tokens(metric: Metric) -> None:
    with pytest.raises(ValueError, match="token_accuracy"):
        metric(*tagged())


def test_pearson_refuses_several_outputs() -> None:
    with pytest.raises(ValueError, match="one output and one label"):
        pearson(torch.zeros(3, 2), torch.zeros(3, 2))


def test_directions() -> None:
    smaller = {metric.name for metric, _, _ in VALUES if not metric.greater_is_better}
    assert smaller == {"squared_error", "perplexity"}


def test_the_jackknife_of_a_mean_with_a_group_an_example_is_its_standard_error() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    measured = jackknife_measurement(lambda rows: values[rows].mean().item(), 40, groups=40)
    assert measured.value == pytest.approx(values.mean().item())
    assert measured.standard_error == pytest.approx(values.std().item() / math.sqrt(40))


def test_the_jackknife_does_not_take_neighbours_for_a_group() -> None:
    values = torch.arange(400).double()  # as if sorted by length
    measured = jackknife_measurement(lambda rows: values[rows].mean().item(), 400, groups=20)
    exact = values.std().item() / 20
    assert measured.standard_error == pytest.approx(exact, rel=0.4)


WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "lay",
    "on",
    "under",
    "a",
    "mat",
    "tree",
    "and",
    "it",
    "slept",
]


def texts(count: int = 80) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(0)
    references = [" ".join(random.choice(WORDS, random.integers(5, 15))) for _ in range(count)]
    noise = random.uniform(0.05, 0.5, count)
    hypotheses = [
        " ".join(w if random.random() > p else random.choice(WORDS) for w in text.split())
        for text, p in zip(references, noise)
    ]
    return hypotheses, references


@pytest.mark.parametrize(("score", "name"), [(bleu, "corpus_bleu"), (chrf, "corpus_chrf")])
def test_bleu_and_chrf_are_those_of_sacrebleu_with_a_bootstrapped_standard_error(
    score: Callable[..., Measurement], name: str
) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses, references = texts()
    found = score(hypotheses, references)
    expected = getattr(sacrebleu, name)
    assert found.value == pytest.approx(expected(hypotheses, [references]).score)
    random = np.random.default_rng(0)
    values = []
    for _ in range(100):
        rows = random.integers(len(hypotheses), size=len(hypotheses))
        resampled = [hypotheses[i] for i in rows], [[references[i] for i in rows]]
        values.append(expected(*resampled).score)
    assert found.standard_error == pytest.approx(np.std(values), rel=0.35)


def test_scores_of_texts_take_sacrebleus_options_and_need_as_many_references() -> None:
    pytest.importorskip("sacrebleu")
    hypotheses, references = texts(20)
    plain = bleu(hypotheses, [text.upper() for text in references], groups=0)
    assert plain.value < 1.0
    assert math.isnan(plain.standard_error)
    lowered = bleu(hypotheses, [text.upper() for text in references], lowercase=True)
    assert lowered.value == pytest.approx(bleu(hypotheses, references).value)
    with pytest.raises(ValueError, match="20 hypotheses and 19 references"):
        chrf(hypotheses, references[1:])
    with pytest.raises(ValueError, match="0 hypotheses"):
        chrf([], [])


def decode(rows: list[list[int]]) -> list[str]:
    return [" ".join(WORDS[token] for token in row if token < len(WORDS)) for row in rows]


def test_generated_tokens_are_scored_as_texts() -> None:
    pytest.importorskip("sacrebleu")
    end = len(WORDS)  # a special token, which is not decoded
    generated = torch.tensor([[0, 1, 3, 5, 7, 8, end], [0, 2, 4, 6, 7, 9, 8]])
    labels = torch.tensor([[0, 1, 4, 5, 7, 8], [0, 2, 4, 6, 7, -100]])
    metric = text_metric("bleu", partial(bleu, groups=2), decode, length=8)
    assert metric.generated
    expected = bleu(
        ["the cat sat on a mat", "the dog lay under a tree mat"],
        ["the cat lay on a mat", "the dog lay under a"],
        groups=2,
    )
    assert metric(generated, labels) == expected
    assert 0 < expected.value < 100
    pieces = [
        metric.condense(generated[:1, :6], labels[:1]),
        metric.condense(generated[1:], labels[1:, :5]),
    ]
    assert metric.function(*(torch.cat(part) for part in zip(*pieces))) == expected
    behind_a_prompt = torch.nn.functional.pad(labels, (9, 0), value=-100)
    assert metric(generated, behind_a_prompt) == expected
    with pytest.raises(ValueError, match="generated token ids"):
        metric(torch.zeros(2, 7, 20), labels)
    with pytest.raises(ValueError, match="length 4, but an example has more generated tokens"):
        text_metric("bleu", bleu, decode, length=4)(generated, labels)


def test_a_metric_of_ones_own_gets_outputs_and_labels_as_they_are() -> None:
    metric = Metric("gap", lambda outputs, labels: Measurement(float((outputs - labels).sum()), 0))
    assert metric(torch.tensor([3.0]), torch.tensor([1.0])) == Measurement(2.0, 0)
    assert replace(metric, greater_is_better=False).greater_is_better is False
