"""How many previews may be promoted, and what their finetunes may cost."""

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
    """How many previews may be promoted, and what their finetunes may cost.

    Attributes:
        fraction: Promotions per preview, in [0, 1]; None: one at a time, when another preview is
            not worth its price (`optuna_merge.pruners.is_time`).
        max_promotions: Cap on all promotions of the study; None for none.
        warmup: Number of previews before anything is promoted.
        max_steps: Training steps of all promoted finetunes together; None for no cap. Needs
            `finetune_steps`.
        max_seconds: Seconds of all promoted finetunes together; None for no cap.
        finetune_steps: Training steps of one finetune: a promotion reserves them all, and gives
            back what is left when its finetune is pruned at a rung.
        finetunes: What the whole study may cost, in finetunes at uniform weights: task runs,
            posteriors, previews and baselines included (`Spending`); None for no cap.
    """

    fraction: float | None = FRACTION
    max_promotions: int | None = None
    warmup: int = WARMUP
    max_steps: int | None = None
    max_seconds: float | None = None
    finetune_steps: int | None = None
    finetunes: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0.0 <= self.fraction <= 1.0:  # also refuses NaN
            raise ValueError(
                f"fraction is {self.fraction}, expected promotions per preview between 0 and 1, "
                f"or None for automatic pacing"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}, expected a number of previews, 0 or more")
        for name in ("max_promotions", "max_steps", "max_seconds", "finetunes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # also refuses NaN
                raise ValueError(f"{name} is {value}, expected 0 or more, or None for no cap")
        if self.finetune_steps is not None and self.finetune_steps < 1:
            raise ValueError(
                f"finetune_steps is {self.finetune_steps}, expected the training steps of one "
                f"finetune, 1 or more"
            )

    @property
    def is_zero(self) -> bool:
        """Whether nothing may ever be promoted."""
        caps = (self.max_promotions, self.max_steps, self.max_seconds, self.finetunes)
        return 0 in (self.fraction, *caps)

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
        """How many more may be promoted beside the claims of these lineages.

        Steps: a claim whose finetune is under way, or failed, counts with all of its steps.
        Seconds: it counts with the longest finetune that the study has seen, and so does the one
        to promote; while none has been seen there is only one at a time. So the cap on steps is
        never passed, that on seconds only by a finetune that takes longer than all before it.
        Finetunes: a claim that is under way counts as one, and so do baselines; another one is
        begun where at least half of it fits.

        Raises:
            ValueError: a cap on steps, but `finetune_steps` is not known.
        """
        held = frozenset(claims)
        free = self.cap(len(ledger.previews)) - len(held)
        if self.max_steps is not None:
            if self.finetune_steps is None:
                raise ValueError(
                    "max_steps needs the number of training steps of one finetune, which this "
                    "study's definition does not say; give PromotionPruner(finetune_steps=...)"
                )
            whole = self.finetune_steps
            spent = sum(min(ledger.steps.get(lineage, whole), whole) for lineage in held)
            free = min(free, (self.max_steps - spent) // whole)
        if self.max_seconds is not None:
            free = min(free, self._free_by_time(ledger, held, self.max_seconds))
        return int(max(0, min(free, self.fitting(ledger, held))))

    def fitting(self, ledger: Ledger, claims: Iterable[int]) -> float:
        """How many more the cap on the study's whole cost lets begin beside these claims."""
        if self.finetunes is None:
            return math.inf
        under_way = len(ledger.under_way.intersection(claims)) + ledger.baselines_under_way
        return max(0, math.floor(self.finetunes - ledger.spent - under_way + 0.5 + _ROUNDING))

    def left(self, ledger: Ledger) -> int | None:
        """How many more may be promoted, however many previews come; None: no cap says it."""
        caps = (self.max_promotions, self.max_steps, self.max_seconds, self.finetunes)
        if all(cap is None for cap in caps):
            return None
        endless = replace(self, fraction=1.0, warmup=0)
        more = replace(ledger, previews=frozenset(range(len(ledger.claims) + _MANY)))
        return endless.free(more, ledger.claims)

    def is_spent(self, ledger: Ledger) -> bool:
        """Whether nothing more may be promoted, however many previews come.

        While finetunes are under way that is not settled: they may give steps back.
        """
        if self.is_zero:
            return True
        return self.left(ledger) == 0

    @staticmethod
    def _free_by_time(ledger: Ledger, held: frozenset[int], limit: float) -> int:
        longest = ledger.longest_seconds
        if longest is None:
            return 1 if limit > 0 and not held else 0
        spent = sum(ledger.seconds.get(lineage, longest) for lineage in held)
        if longest <= 0:
            return len(ledger.previews) if spent < limit else 0
        return math.floor((limit - spent) / longest + _ROUNDING)
