"""The data of the mixture study: six kinds of text, a task each, and English to pretrain on.

python     The standard library of the running interpreter, so that it differs between versions.
german, french, spanish, italian
           The Debian Reference's translations (Aoki and its translators), without tables and
           without paragraphs that are left in English.
talk       20 Newsgroups, as in the text study: in lower case, without punctuation.

Italian has a tenth of the others' training data. English, for the pretraining, is the Debian
Reference's original and the reviews and editorials of vaderSentiment's archive (see
studies/sentiment/data.py); neither is in a task.

Splits: of the Debian Reference every paragraph stands at some share of its book, and the same
shares are validation and test data in all languages, English too, so that no passage is trained on
in one language and judged in another. Modules and posts go to the splits whole, by a
hash of their name; posts for the test come from the set's own test part.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from studies.fetch import Archive, fetch, read_member
from studies.text.data import VADER, newsgroup_posts

TASKS = ("python", "german", "french", "spanish", "italian", "talk")

Splits = dict[str, str]
"""Text by split: "train", "validation" and "test"."""

_LANGUAGES = {"german": "de", "french": "fr", "spanish": "es", "italian": "it"}
_REFERENCES = {
    "de": "3b0ce65fd63e75ddf8eb07ca36293425135080e690a07e06a6ac8bc8040ef0aa",
    "en": "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f",
    "es": "a59b68c96f83d3cf29a476c847aee38364764603ea62eee592791e0a843a269e",
    "fr": "01424cba9bfa2e13166da22d3d692d33a22ec7d8ef935ec81fd8802746087f65",
    "it": "7894062a5e9203a57ec6cb8d6a47d5ffb58c41dc004766522f1b4d78b2a8e0c6",
}
_REVIEWS = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
_SNIPPETS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

_SPLITS = ("validation", "test", *["train"] * 8)
_PASSAGES = 50
"""Into how many parts a book is cut; of ten in turn one is validated and one tested."""

_TABLE = re.compile(r"\s*(\||\+[-=]|\S*\+-)")
_ENGLISH = re.compile(r"\b(?:the|you|when|with|and|of|to|is|for)\b", re.IGNORECASE)
_FEWEST = 60
"""Characters of a paragraph that is no heading and no command."""


def load_texts(cache: Path, tasks: Sequence[str] = TASKS) -> dict[str, Splits]:
    """Return task -> "train", "validation", "test" -> one long text.

    Args:
        cache: Where the archives are, or are downloaded to; only those of the tasks.
        tasks: Names from `TASKS`.

    Raises:
        FetchError: an archive is neither in `cache` nor downloadable.
        CorruptFileError: an archive has another SHA-256 than the pinned one.
    """
    return {task: _text(cache, task) for task in tasks}


def _text(cache: Path, task: str) -> Splits:
    if task == "python":
        return by_hash(_modules())
    if task == "talk":
        posts = {str(i): post for i, (post, _) in enumerate(newsgroup_posts(cache, "train"))}
        later = [post for post, _ in newsgroup_posts(cache, "test")]
        return by_hash(posts) | {"test": "\n".join(later)}
    return _book(_paragraphs(_reference(cache, _LANGUAGES[task])), translated)


def english_text(cache: Path) -> str:
    """The text that the body is pretrained on, paragraphs of its two kinds in turn.

    Raises:
        FetchError, CorruptFileError: see `load_texts`.
    """
    book = _book(_paragraphs(_reference(cache, "en")))["train"].split("\n")
    reviews = list(_reviews(cache))
    step = max(1, len(reviews) // len(book))
    mixed = [[paragraph, *reviews[i * step : (i + 1) * step]] for i, paragraph in enumerate(book)]
    return "\n".join(line for lines in mixed for line in lines)


def by_hash(documents: Mapping[str, str]) -> Splits:
    """Each document in one split, by a hash of its name; within a split in the hash's order."""
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in sorted(documents, key=_hash):
        found[_SPLITS[int(_hash(name)[:8], 16) % len(_SPLITS)]].append(documents[name])
    return {split: "\n".join(texts) for split, texts in found.items()}


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def translated(paragraph: str) -> bool:
    """Whether a paragraph is not left in English, by the share of English words."""
    return len(_ENGLISH.findall(paragraph)) < 0.05 * len(paragraph.split())


def _book(paragraphs: list[str], wanted: Callable[[str], bool] = bool) -> Splits:
    """The wanted paragraphs by the share of the book that is before them."""
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for i, paragraph in enumerate(paragraphs):
        passage = i * _PASSAGES // len(paragraphs)
        if wanted(paragraph):
            found[_SPLITS[passage % len(_SPLITS)]].append(paragraph)
    return {split: "\n".join(texts) for split, texts in found.items()}


def _reference(cache: Path, code: str) -> str:
    archive = Archive(
        name=f"debian-reference-{code}",
        version="2.100",
        filename=f"debian-reference-{code}_2.100_all.deb",
        sha256=_REFERENCES[code],
        kind="deb",
    )
    member = f"usr/share/debian-reference/debian-reference.{code}.txt.gz"
    content = read_member(fetch(archive, cache), "data.tar.xz", member)
    return gzip.decompress(content).decode("utf-8")


def _paragraphs(text: str) -> list[str]:
    """The running text, a line each: no headings, commands, tables, nor lists of contents."""
    blocks = (block.split("\n") for block in re.split(r"\n\s*\n", text))
    lines = (
        " ".join(" ".join(block).split())
        for block in blocks
        if not any(_TABLE.match(line) for line in block)
    )
    return [line for line in lines if len(line) >= _FEWEST and not line.startswith(("$", "#"))]


def _modules() -> dict[str, str]:
    """The top modules of the standard library by name, without those of other projects."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.py"))}


def _reviews(cache: Path) -> Iterator[str]:
    for name in _REVIEWS:
        member = f"hutto_ICWSM_2014/{name}_GroundTruth.txt"
        table = read_member(fetch(VADER, cache), _SNIPPETS, member).decode("utf-8", "replace")
        for line in table.splitlines():
            yield line.split("\t")[-1].strip()
