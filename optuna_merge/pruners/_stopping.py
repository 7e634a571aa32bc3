"""When a search has come to its end: nothing worth its cost is expected any more."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from optuna_merge.pruners._prospect import prospect


@dataclass(frozen=True)
class Stopping:
    """When workers stop.

    Attributes:
        when_flat: Where the study is flat, see `Prospect`.
        until: Where another finetune is expected to be better by less than this share of the
            noise; None for never.
    """

    when_flat: bool = False
    until: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not self.until > 0:  # also refuses NaN
            raise ValueError(
                f"until is {self.until}, expected a share of a finetune's noise above 0, such as "
                f"0.25, or None"
            )

    def reason(self, study: optuna.Study) -> str | None:
        """Why the search is to stop now, or None: it goes on."""
        if not self.when_flat and self.until is None:
            return None
        found = prospect(study)
        if found is None:
            return None
        if self.when_flat and found.is_flat:
            return f"the score is flat: {found.told} (--keep-going searches on)"
        if self.until is not None and found.improvement < self.until * found.noise:
            return f"another finetune promises less than {self.until:g} of the noise: {found.told}"
        return None
