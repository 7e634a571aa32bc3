"""What is known of the pretrained body: its name, its licence, its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna_merge.models import MultitaskModel

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a body is from: name, licence (None: unknown), and what transformers loads it from."""

    name: str
    licence: str | None = None
    path: str | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether others find it by its name."""
        return self.path is not None and self.path == self.name

    def processors(self) -> Sequence[Any]:
        """Tokenizer and image processor of a transformers model, as far as it has them."""
        from transformers import AutoImageProcessor, AutoTokenizer

        if self.path is None:
            return ()
        found: list[Any] = []
        tokens = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")
        for kind, files in ((AutoTokenizer, tokens), (AutoImageProcessor, _IMAGES)):
            if any(_file(self.path, file) for file in files):
                try:
                    found.append(kind.from_pretrained(self.path))
                except (OSError, ValueError, ImportError) as error:
                    _logger.warning("no %s of %s: %s", kind.__name__, self.name, error)
        return found


_IMAGES = ("preprocessor_config.json",)


def find_source(model: MultitaskModel) -> Source:
    """The source of the model's body."""
    body: Any = model.body
    config = getattr(body, "config", None)
    name = getattr(config, "name_or_path", "")
    if name:
        shown = Path(name).name if Path(name).is_dir() else name  # no paths of this machine
        return Source(shown, _licence(name), name)
    timm = getattr(body, "pretrained_cfg", None)
    if isinstance(timm, dict) and timm.get("architecture"):
        tag = f".{timm['tag']}" if timm.get("tag") else ""
        return Source(f"timm/{timm['architecture']}{tag}", timm.get("license"))
    return Source(type(body).__name__)


def _file(name: str, file: str) -> str | None:
    """A file of a model on the hub (or its copy here) or in a folder; None if it has none."""
    from transformers.utils import cached_file

    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    try:
        return cached_file(name, file)  # type: ignore[no-any-return]
    except OSError:
        return None


def _licence(name: str) -> str | None:
    from huggingface_hub import ModelCard

    path = _file(name, "README.md")
    if path is None:
        return None
    try:
        licence = ModelCard.load(path, ignore_metadata_errors=True).data.license
    except (ValueError, OSError):
        return None
    return str(licence) if licence else None
