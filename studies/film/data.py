"""The data of the film study: is a sentence positive? One target, three helpers.

film      Sentences of film reviews; the target, with few examples to train on.
products  Sentences of product reviews.
tweets    Tweets.
opinions  Sentences of opinion pieces.

Labels, archive and splits are those of the sentiment study (studies/sentiment/data.py), but that
the target has little training data and much validation and test data: what it gains is small, and
must be seen.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from studies.sentiment.data import CLASSES, split_task
from studies.text.data import labelled_texts

TARGET = "film"
_DOMAINS = {"film": "movies", "products": "amazon", "tweets": "tweets", "opinions": "news"}


def load_tasks(
    cache: Path, *, target: int = 150, helpers: int = 1500
) -> dict[str, dict[str, Dataset]]:
    """Return {"film", "products", ...} -> {"train", "validation", "test"} -> Dataset.

    A Dataset has the columns `text` and `label` (0: negative, 1: positive). The target has 1500
    validation and 3000 test examples, each helper 500 and 500.

    Args:
        cache: where the archive is, or is downloaded to.
        target: training examples of the target.
        helpers: training examples of each other task.

    Raises:
        FetchError: the archive is neither in `cache` nor downloadable.
        CorruptFileError: it has another SHA-256 than the pinned one.
        ValueError: a task has fewer examples than asked for.
    """
    tasks = {}
    for task, domain in _DOMAINS.items():
        sizes = {"validation": 500, "test": 500, "train": helpers}
        if task == TARGET:
            sizes = {"validation": 1500, "test": 3000, "train": target}
        tasks[task] = {
            part: labelled_texts(rows, CLASSES)
            for part, rows in split_task(domain, cache, sizes).items()
        }
    return tasks
