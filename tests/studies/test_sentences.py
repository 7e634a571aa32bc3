"""Features of sentences, by the real MiniLM, and the adapter on top of them."""

from __future__ import annotations

import torch

from studies.fetch import default_cache
from studies.sentences import WIDTH, Adapter, adapted, features, sentence_tasks
from studies.text.data import labelled_texts

TEXTS = ["A film to love.", "Dull, and far too long for what it has to say.", "Never again!"]


def test_a_sentences_features_are_its_own() -> None:
    cache = default_cache()
    found = features(TEXTS, cache)
    assert found.shape == (3, WIDTH)
    torch.testing.assert_close(features(TEXTS[::-1], cache).flip(0), found, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(features(TEXTS, cache), found, atol=0, rtol=0)
    assert not torch.allclose(features(TEXTS, cache, max_length=4)[1], found[1], atol=1e-2)


def test_the_adapter_begins_near_the_identity() -> None:
    inputs = features(TEXTS, default_cache())
    standard = torch.nn.functional.layer_norm(inputs, (WIDTH,))
    torch.manual_seed(0)
    assert (Adapter()(inputs) - standard).std() < 0.2 * standard.std()


def test_tasks_share_one_head() -> None:
    rows = labelled_texts([(text, i % 2) for i, text in enumerate(TEXTS)], ("bad", "good"))
    splits = {name: dict.fromkeys(("train", "validation", "test"), rows) for name in ("a", "b")}
    tasks = sentence_tasks(splits, default_cache(), head="tone", classes=2)
    model = adapted(tasks, head="tone", classes=2)
    again = adapted(tasks, head="tone", classes=2)
    assert [task.head for task in tasks] == ["tone", "tone"]
    assert model.describe()["hash"] == again.describe()["hash"]
