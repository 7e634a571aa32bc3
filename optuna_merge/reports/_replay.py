"""The answer to "how much replay?" as text."""

from __future__ import annotations

from collections.abc import Sequence

from optuna_merge.surrogate import FinetunedShare, MetricCurve, Replay, Share

_ROWS = 10  # of the table of the curve


def format_replay(found: Replay) -> str:
    """What `optuna_merge.surrogate.replay` gives, as plain text."""
    lines = [
        _asked(found),
        "",
        *answer_told(found),
        "",
        *_finetuned(found),
        "",
        *_curve(found),
        "",
    ]
    return "\n".join([*lines, *_noise(found)])


def _asked(found: Replay) -> str:
    general = found.general
    if general.greater_is_better:
        bound = f"at least {found.bound:.4f}, {found.keep:g} times {found.alone:.4f}"
    else:
        bound = f"at most {found.bound:.4f}, {found.alone:.4f} divided by {found.keep:g}"
    return (
        f"How much {general.task} beside {found.own.task}? The metric of {general.task} must keep "
        f"{found.keep:g} of what it is alone{_sense(general)}: {bound}."
    )


def answer_told(found: Replay) -> list[str]:
    """The best and the cautious share, in sentences."""
    best, own, general = found.best, found.own.task, found.general.task
    if best is None:
        return [f"No share of {general} is expected to keep it, that of {general} alone neither."]
    lines = [
        f"Best share of {general}: {best.share:.2f} (task weights {own} {1 - best.share:.2f}, "
        f"{general} {best.share:.2f}){_close(found)}",
        f"Expected there: {_expected(found, best)}.",
        f"One finetune there keeps it with probability {best.chance:.2f}.",
    ]
    cautious = found.cautious
    if cautious is None:
        lines.append("No share keeps it with probability 0.9 in one finetune.")
    elif cautious.share != best.share:
        lines.append(
            f"To keep it with probability 0.9 take {cautious.share:.2f}: expected are "
            f"{_expected(found, cautious)}."
        )
    return lines


def _close(found: Replay) -> str:
    if found.close is None or found.close[0] == found.close[1]:
        return ""
    low, high = found.close
    return f"; from {low:.2f} to {high:.2f} {found.own.task} is as good within half a noise"


def _expected(found: Replay, at: Share) -> str:
    return (
        f"{found.own.task} {at.own:.4f} ± {at.own_std:.4f}, "
        f"{found.general.task} {at.general:.4f} ± {at.general_std:.4f}"
    )


def _finetuned(found: Replay) -> list[str]:
    names = (found.own.task, found.general.task)
    best = found.finetuned_best
    if best is None:
        first = "No finetune so far keeps it."
    else:
        first = f"Best finetune that keeps it: share {best.share:.2f} (trial {best.trial})."
    head = f"{'share':>7} {'finetunes':>10}" + "".join(f"  {name:>12}" for name in names)
    return [first, head, *(_row(of, names) for of in found.finetuned)]


def _row(of: FinetunedShare, tasks: Sequence[str]) -> str:
    kept = "keeps it" if of.keeps else "does not keep it"
    name = "" if of.name is None else f", {of.name}{' alone' if of.name in tasks else ''}"
    return f"{of.share:7.3f} {of.seeds:10d}  {of.own:12.4f}  {of.general:12.4f}  {kept}{name}"


def _curve(found: Replay) -> list[str]:
    curves = (found.own, found.general)
    head = f"{'share':>7}" + "".join(f"  {f'{c.task} (90 % interval)':>30}" for c in curves)
    rows = range(0, len(found.shares), max((len(found.shares) - 1) // _ROWS, 1))
    return [
        "Expected of the truth, by all previews and finetunes:",
        head,
        *(
            f"{found.shares[i]:7.2f}" + "".join(f"  {interval_told(c, i):>30}" for c in curves)
            for i in rows
        ),
    ]


def interval_told(curve: MetricCurve, i: int) -> str:
    """The expected value at a point of the curve, with its interval."""
    return f"{curve.mean[i]:.4f} ({curve.low[i]:.4f} to {curve.high[i]:.4f})"


def _noise(found: Replay) -> list[str]:
    curves = (found.own, found.general)
    return [f"Noise of one finetune, {c.task}{_sense(c)}: {c.noise.told}" for c in curves]


def _sense(curve: MetricCurve) -> str:
    return "" if curve.greater_is_better else " (lower is better)"
