"""The data of the sentiment study: is a sentence positive, in four domains?

tweets       Tweets.
amazon       Sentences of product reviews.
movies       Sentences of film reviews.
news         Sentences of opinion pieces.

The label is the sign of the mean of twenty people's ratings from -4 to 4; ratings nearer to 0
than 0.5 are left out. From the source archive of vaderSentiment: Hutto and Gilbert, "VADER",
ICWSM 2014.

Splits depend on nothing but the texts. All sentences of one review or opinion piece are in one
split, in an order by a hash: validation comes first, then test, then training data. A text
(compared without case, punctuation and links) occurs once; one with two labels is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from datasets import Dataset

from studies.fetch import fetch, read_member
from studies.text.data import VADER, Example, labelled_texts, plain_text, unique_examples

_FILES = {
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
    "movies": "movieReviewSnippets",
    "news": "nytEditorialSnippets",
}
CLASSES = ("negative", "positive")
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def load_tasks(
    cache: Path, *, train: int = 1500, validation: int = 400, test: int = 500
) -> dict[str, dict[str, Dataset]]:
    """Return {"tweets", "amazon", "movies", "news"} -> {"train", "validation", "test"} -> Dataset.

    A Dataset has the columns `text` and `label` (0: negative, 1: positive).

    Args:
        cache: where the archive is, or is downloaded to.
        train: training examples per task.
        validation: validation examples per task.
        test: test examples per task.

    Raises:
        FetchError: the archive is neither in `cache` nor downloadable.
        CorruptFileError: it has another SHA-256 than the pinned one.
        ValueError: a task has fewer examples than asked for.
    """
    sizes = {"validation": validation, "test": test, "train": train}
    return {
        task: {
            part: labelled_texts(rows, CLASSES)
            for part, rows in split_task(task, cache, sizes).items()
        }
        for task in _FILES
    }


def split_task(task: str, cache: Path, sizes: dict[str, int]) -> dict[str, list[Example]]:
    """One of the four domains in parts of these sizes, in their order."""
    source_of = {text: source for source, text, _ in _sentences(task, cache)}
    examples = unique_examples((text, label) for _, text, label in _sentences(task, cache))
    rows = sorted(
        examples.values(),
        key=lambda row: hashlib.sha256(f"{task}\n{source_of[row[0]]}".encode()).digest(),
    )
    if sum(sizes.values()) > len(rows):
        raise ValueError(f"task {task!r} has {len(rows)} examples, too few for {sizes}")
    ends = [0, *accumulate(sizes.values())]
    parts = {}
    used: set[str] = set()
    for part, (start, end) in zip(sizes, pairwise(ends)):
        # A review at a border belongs to the split before it.
        mine = [row for row in rows[start:end] if source_of[row[0]] not in used]
        used |= {source_of[text] for text, _ in mine}
        parts[part] = mine
    return parts


def _sentences(task: str, cache: Path) -> Iterator[tuple[str, str, int]]:
    """Review, sentence and label; the number of a sentence is its review's, `_` and its own."""
    lines = read_member(
        fetch(VADER, cache), _ARCHIVE, f"hutto_ICWSM_2014/{_FILES[task]}_GroundTruth.txt"
    )
    for line in lines.decode("utf-8").splitlines():
        number, score, text = line.split("\t")
        if abs(float(score)) >= 0.5:
            yield number.partition("_")[0], plain_text(text), int(float(score) > 0)
