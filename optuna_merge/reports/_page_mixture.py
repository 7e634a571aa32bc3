"""The page's lines for other trainers, as `optuna-merge export --mixture` prints them."""

from __future__ import annotations

from optuna_merge.reports._reading import Reading

_NAMES = {
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl",
    "torchtitan": "torchtitan",
    "datasets": "Hugging Face datasets",
    "json": "JSON",
}
"""What they call themselves, in the order in which they are offered."""


def mixtures(reading: Reading) -> list[tuple[str, str, str]]:
    """Of each trainer its word for `--mixture`, its name, and the lines or why there are none."""
    from optuna_merge.trainers import study_mixture

    best = reading.findings.best
    if best is None:
        return []
    found = []
    for form, name in _NAMES.items():
        try:
            lines = study_mixture(reading.study, form, weights=best.weights)
        except ValueError as error:  # sizes that the study does not know
            lines = f"{error} (optuna-merge export --mixture {form} --examples TASK=NUMBER,...)"
        found.append((form, name, lines))
    return found
