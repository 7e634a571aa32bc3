"""How many previews may be promoted, and what the study may cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from optuna_merge.pruners._ledger import Ledger

FRACTION = 0.25
WARMUP = 8

_MANY = 1000  # finetunes that are left are counted up to here
_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996, and 29 is meant


@dataclass(frozen=True)
class Budget:
    """How many previews may be promoted, and what the study may cost.

    Attributes:
        fraction: Promotions per preview, in [0, 1]; None: one at a time, when another preview is
            not worth its price (`optuna_merge.pruners.is_time`).
        max_promotions: Cap on all promotions of the study; None for none.
        warmup: Number of previews before anything is promoted.
        finetunes: What the whole study may cost, in finetunes at uniform weights: task runs,
            posteriors, previews and baselines included (`Spending`); None for no cap.
    """

    fraction: float | None = FRACTION
    max_promotions: int | None = None
    warmup: int = WARMUP
    finetunes: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0.0 <= self.fraction <= 1.0:  # also refuses NaN
            raise ValueError(
                f"fraction is {self.fraction}, expected promotions per preview between 0 and 1, "
                f"or None for automatic pacing"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}, expected a number of previews, 0 or more")
        for name in ("max_promotions", "finetunes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # also refuses NaN
                raise ValueError(f"{name} is {value}, expected 0 or more, or None for no cap")

    @property
    def is_zero(self) -> bool:
        """Whether nothing may ever be promoted."""
        return 0 in (self.fraction, self.max_promotions, self.finetunes)

    @property
    def is_automatic(self) -> bool:
        """Whether promotions come when another preview is not worth its price."""
        return self.fraction is None

    def cap(self, n_previews: int) -> int:
        """Promotions allowed after `n_previews` previews: floor(fraction x previews).

        With automatic pacing as many as there are previews: what comes when is `is_time`'s.
        """
        if n_previews < self.warmup:
            return 0
        fraction = 1.0 if self.fraction is None else self.fraction
        cap = math.floor(fraction * n_previews + _ROUNDING)
        return cap if self.max_promotions is None else min(cap, self.max_promotions)

    def free(self, ledger: Ledger, claims: Iterable[int]) -> int:
        """How many more may be promoted beside the claims of these lineages."""
        held = frozenset(claims)
        free = self.cap(len(ledger.previews)) - len(held)
        return int(max(0, min(free, self.fitting(ledger, held))))

    def fitting(self, ledger: Ledger, claims: Iterable[int]) -> float:
        """How many more the cap on the study's whole cost lets begin beside these claims.

        A claim that is under way counts as a finetune, and so do baselines; another finetune is
        begun where at least half of it fits.
        """
        if self.finetunes is None:
            return math.inf
        under_way = len(ledger.under_way.intersection(claims)) + ledger.baselines_under_way
        return max(0, math.floor(self.finetunes - ledger.spent - under_way + 0.5 + _ROUNDING))

    def left(self, ledger: Ledger) -> int | None:
        """How many more may be promoted, however many previews come; None: no cap says it."""
        if self.max_promotions is None and self.finetunes is None:
            return None
        endless = replace(self, fraction=1.0, warmup=0)
        more = replace(ledger, previews=frozenset(range(len(ledger.claims) + _MANY)))
        return endless.free(more, ledger.claims)

    def is_spent(self, ledger: Ledger) -> bool:
        """Whether nothing more may be promoted, however many previews come."""
        return self.is_zero or self.left(ledger) == 0
