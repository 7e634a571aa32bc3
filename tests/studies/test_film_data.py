"""The film study's data from the real archive, which the first run downloads."""

from __future__ import annotations

import pytest

from studies.fetch import default_cache
from studies.film import data


def test_the_target_has_little_training_data() -> None:
    tasks = data.load_tasks(default_cache())
    assert list(tasks) == [data.TARGET, "products", "tweets", "opinions"]
    target, *helpers = (
        [len(parts[part]) for part in ("train", "validation", "test")] for parts in tasks.values()
    )
    assert target == [150, 1500, 3000]
    assert all(sizes == pytest.approx([1500, 500, 500], abs=25) for sizes in helpers)
    for parts in tasks.values():
        texts = [text for rows in parts.values() for text in rows["text"]]
        assert len(texts) == len(set(texts))


def test_more_examples_of_the_target_leave_the_other_parts_as_they_are() -> None:
    few, more = (data.load_tasks(default_cache(), target=n)[data.TARGET] for n in (150, 300))
    assert few["validation"]["text"] == more["validation"]["text"]
    assert few["test"]["text"] == more["test"]["text"]
    assert few["train"]["text"][:] == more["train"]["text"][:150]
