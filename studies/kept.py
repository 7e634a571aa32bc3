"""Splits that a study has made of its archives, kept in the cache: cleaning takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from optuna_merge._base.files import atomic_path

Splits = Mapping[str, Mapping[str, Sequence[tuple[str, int]]]]
"""By task and split, texts with their labels."""


def kept_splits(
    cache: Path, sources: Sequence[str], sizes: Mapping[str, int], make: Callable[[], Splits]
) -> Splits:
    """The splits, made once for the same code and sizes.

    Args:
        cache: Where they are kept, in a folder `splits`.
        sources: Files of the code that makes them, which name the archives, too: after any change
            of these they are made again.
        sizes: What else they depend on.
        make: Makes them. What it raises is raised, and nothing is kept.
    """
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for source in sources:
        digest.update(hashlib.sha256(Path(source).read_bytes()).digest())
    path = cache / "splits" / f"{digest.hexdigest()[:24]}.json"
    if not path.exists():
        made = make()
        with atomic_path(path) as part:
            part.write_text(json.dumps(made), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        task: {split: [(text, label) for text, label in rows] for split, rows in splits.items()}
        for task, splits in found.items()
    }
