"""How a study is searched, as its definition says: it changes no preview and no truth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """Choices of a search that stand in a definition; flags of the commands override them.

    They are no part of the study's fingerprint: another run of the study may have others.

    Attributes:
        second_seed: Finetune uniform weights a second time, with another seed, which tells the
            noise of one finetune.
    """

    second_seed: bool = True
