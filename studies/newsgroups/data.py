"""The data of the newsgroups study: 20 Newsgroups in four groups, each a task.

computers    Five groups on graphics, systems, hardware and X.
recreation   Cars, motorcycles, two sports, and things for sale.
science      Cryptography, electronics, medicine, space.
society      Six groups on politics and religion.

Labels are numbers in one list of all 20, for one head that the tasks share; none has examples of
another's. Posts as in the text study (studies/text/data.py): first 400 characters, attribution
lines and group names taken out, test data from the set's own later part, splits by a hash.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from studies.kept import Splits, kept_splits
from studies.text import data
from studies.text.data import (
    NEWSGROUPS,
    labelled_texts,
    newsgroup_posts,
    split_examples,
    unique_examples,
)

_PREFIXES = {
    "computers": ("comp.",),
    "recreation": ("rec.", "misc.forsale"),
    "science": ("sci.",),
    "society": ("alt.", "soc.", "talk."),
}
GROUPS = {
    task: tuple(i for i, name in enumerate(NEWSGROUPS) if name.startswith(prefixes))
    for task, prefixes in _PREFIXES.items()
}
"""By task, the labels of its newsgroups."""


def load_tasks(
    cache: Path, *, train: int = 1500, validation: int = 400, test: int = 500
) -> dict[str, dict[str, Dataset]]:
    """Return task -> {"train", "validation", "test"} -> Dataset with columns `text` and `label`.

    Args:
        cache: where the archive is, or is downloaded to.
        train: training examples per task.
        validation: validation examples per task.
        test: test examples per task at most; where fewer are left, all of them.

    Raises:
        FetchError: the archive is neither in `cache` nor downloadable.
        CorruptFileError: it has another SHA-256 than the pinned one.
        ValueError: a task has fewer examples than asked for.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    sources = [__file__, str(data.__file__)]
    splits = kept_splits(cache, sources, sizes, lambda: _splits(cache, sizes))
    return {
        task: {part: labelled_texts(rows, NEWSGROUPS) for part, rows in parts.items()}
        for task, parts in splits.items()
    }


def _splits(cache: Path, sizes: dict[str, int]) -> Splits:
    # Over all groups at once: a post that was sent to two of them has two labels and is left out.
    posts, later = (
        list(unique_examples(newsgroup_posts(cache, part)).values()) for part in ("train", "test")
    )
    splits = {}
    for task, labels in GROUPS.items():
        mine = [post for post in posts if post[1] in labels]
        tests = [post for post in later if post[1] in labels]
        splits[task] = split_examples(task, mine, tests, sizes)
    return splits
