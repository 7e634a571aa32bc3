"""What is loaded by a name on the Hugging Face hub or from a folder; the error if it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def loading(what: str, name: str | os.PathLike[str]) -> Iterator[None]:
    """Within this block something is loaded by name or from a folder; the error if it isn't."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        if Path(name).exists() or "does not appear to have a file" in reason:
            raise  # it is there, and the error tells what it lacks
        # Of what can't be a name on the hub, its rules for names say nothing of use.
        why = "" if reason.startswith("Repo id must") else f" ({reason})"
        raise FileNotFoundError(
            f"there is neither a folder {os.fspath(name)!r} (looked for in {Path.cwd()}) nor a "
            f"{what} of that name on the Hugging Face hub or in its cache{why}; give a folder "
            f"made by save_pretrained, or a name such as 'bert-base-uncased'"
        ) from error


def load_tokenizer(tokenizer: Any) -> Any:
    """A Hugging Face tokenizer as it is, or by its name or folder."""
    if not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    from transformers import AutoTokenizer

    with loading("tokenizer", tokenizer):
        return AutoTokenizer.from_pretrained(tokenizer)
