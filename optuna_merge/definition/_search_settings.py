"""How a study is searched, as its definition says: it changes no preview and no truth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search in a definition; flags of the commands override them.

    They are no part of the study's fingerprint: another run of the study may have others.

    Attributes:
        second_seed: Finetune uniform weights a second time, with another seed, which tells the
            noise of one finetune.
        stop_when_flat: Stop where nothing above the noise is expected.
        until: Stop once another finetune is expected to be better than the best by less than this
            share of the noise; None for never.
        budget: What the whole study may cost, in finetunes; None for no cap.
    """

    second_seed: bool = True
    stop_when_flat: bool = True
    until: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not self.until > 0:
            raise ValueError(f"until is {self.until}, expected a share of the noise above 0")
        if self.budget is not None and not self.budget >= 0:
            raise ValueError(f"budget is {self.budget}, expected a number of finetunes")
