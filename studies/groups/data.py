"""The data of the groups study: 20 Newsgroups as eight tasks, whose groups overlap.

Each task is what one circle of readers reads: three or four newsgroups. Most groups are read in
two circles; of such a group each of the two has half of the posts. So tasks help each other where
they share a group, and compete for the head where they don't. `security`, the target, has few
examples and shares every group with another task.

Labels are numbers in one list of all 20. Posts as in the text study (studies/text/data.py); test
data are from the set's own later part.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from studies.kept import Splits, kept_splits
from studies.text import data
from studies.text.data import (
    NEWSGROUPS,
    Example,
    labelled_texts,
    newsgroup_posts,
    split_examples,
    unique_examples,
)

TARGET = "security"
GROUPS = {
    "security": ("sci.crypt", "talk.politics.guns", "talk.politics.misc", "sci.electronics"),
    "politics": ("talk.politics.guns", "talk.politics.mideast", "talk.politics.misc"),
    "religion": ("alt.atheism", "soc.religion.christian", "talk.religion.misc"),
    "hardware": ("comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware", "sci.electronics"),
    "software": ("comp.graphics", "comp.os.ms-windows.misc", "comp.windows.x", "sci.crypt"),
    "vehicles": ("rec.autos", "rec.motorcycles", "misc.forsale", "sci.space"),
    "sports": ("rec.sport.baseball", "rec.sport.hockey", "rec.motorcycles"),
    "science": ("sci.med", "sci.space", "sci.electronics", "talk.religion.misc"),
}
"""By task, its newsgroups."""

SIZES = {"security": 120, "politics": 600, "religion": 500, "hardware": 700} | {
    "software": 900, "vehicles": 800, "sports": 700, "science": 500
}  # fmt: skip
"""By task, training examples."""


def load_tasks(cache: Path) -> dict[str, dict[str, Dataset]]:
    """Return task -> {"train", "validation", "test"} -> Dataset with columns `text` and `label`.

    A task has 300 validation examples and up to 400 test examples.

    Args:
        cache: where the archive is, or is downloaded to.

    Raises:
        FetchError: the archive is neither in `cache` nor downloadable.
        CorruptFileError: it has another SHA-256 than the pinned one.
    """
    splits = kept_splits(cache, [__file__, str(data.__file__)], {}, lambda: _splits(cache))
    return {
        task: {part: labelled_texts(rows, NEWSGROUPS) for part, rows in parts.items()}
        for task, parts in splits.items()
    }


def _splits(cache: Path) -> Splits:
    known, new = (unique_examples(newsgroup_posts(cache, part)) for part in ("train", "test"))
    posts = list(known.values())
    later = [post for key, post in new.items() if key not in known]  # of any task
    splits = {}
    for task, size in SIZES.items():
        sizes = {"train": size, "validation": 300, "test": 400}
        splits[task] = split_examples(task, _read_in(task, posts), _read_in(task, later), sizes)
    return splits


def _read_in(task: str, posts: list[Example]) -> list[Example]:
    """The task's share of the posts of its groups, in turn with the other readers."""
    found = []
    for name in GROUPS[task]:
        readers = [reader for reader, names in GROUPS.items() if name in names]
        label = NEWSGROUPS.index(name)
        mine = [post for post in posts if post[1] == label]
        found += mine[readers.index(task) :: len(readers)]
    return found
