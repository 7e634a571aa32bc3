"""Metrics of generated texts: BLEU and chrF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from optuna_merge._base.labels import IGNORED
from optuna_merge.tasks._metrics._metric import Measurement, Metric
from optuna_merge.tasks._metrics._standard_errors import jackknife_measurement


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, groups: int = 20, **options: Any
) -> Measurement:
    """Corpus BLEU by sacrebleu, from 0 to 100 (greater is better).

    Args:
        hypotheses: One text an example.
        references: One text an example.
        groups: Of the delete-a-group jackknife (Kott 2001), by which the standard error over
            examples is; fewer than 2 for one of NaN and no further cost.
        **options: Of `sacrebleu.BLEU`, such as `tokenize`.

    Raises:
        ImportError: sacrebleu isn't installed.
        ValueError: no examples, or not as many references as hypotheses.
    """
    return _corpus_score("BLEU", hypotheses, references, groups, options)


def chrf(
    hypotheses: Sequence[str], references: Sequence[str], *, groups: int = 20, **options: Any
) -> Measurement:
    """Corpus chrF by sacrebleu, from 0 to 100 (greater is better); otherwise as `bleu`.

    `word_order=2` among the options, those of `sacrebleu.CHRF`, makes it chrF++.
    """
    return _corpus_score("CHRF", hypotheses, references, groups, options)


def text_metric(
    name: str,
    measure: Callable[[list[str], list[str]], Measurement],
    decode: Callable[[list[list[int]]], list[str]],
    *,
    length: int,
    greater_is_better: bool = True,
) -> Metric:
    """A metric of the texts that a model generates, with the labels as the references.

    Outputs are token ids as the model's `generate` returns them, without a prompt, and labels the
    reference's tokens: (batch, tokens). -100 is ignored in both.

    Args:
        name: Stands in the study's definition and in tables.
        measure: Of hypotheses and references: `bleu`, `chrf` or your own.
        decode: Lists of token ids to texts, without special tokens, such as
            `partial(tokenizer.batch_decode, skip_special_tokens=True)`.
        length: Most tokens that are generated, or labelled, in an example; more are an error.
        greater_is_better: Decides the direction of the study.
    """

    def condense(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if outputs.ndim != 2 or outputs.is_floating_point():
            raise ValueError(
                f"metric {name!r} takes generated token ids (batch, tokens), got "
                f"{outputs.dtype} {tuple(outputs.shape)}"
            )
        return _packed(outputs, length + 1), _packed(labels, length + 1)

    def function(outputs: Tensor, labels: Tensor) -> Measurement:
        texts = []
        for what, ids in (("generated", outputs), ("labelled", labels)):
            rows = [[token for token in row if token != IGNORED] for row in ids.tolist()]
            if max(map(len, rows)) > length:
                raise ValueError(
                    f"metric {name!r} has length {length}, but an example has more {what} tokens; "
                    f"raise it"
                )
            texts.append(decode(rows))
        return measure(*texts)

    return Metric(name, function, greater_is_better, condense, generated=True)


def _packed(ids: Tensor, width: int) -> Tensor:
    """Each row's tokens in front, -100 behind, cut or padded to the width."""
    if ids.shape[1] > width:  # such as behind a prompt
        ids = ids.gather(1, (ids == IGNORED).long().argsort(dim=1, stable=True))[:, :width]
    return functional.pad(ids, (0, width - ids.shape[1]), value=IGNORED)


def _corpus_score(
    scorer: str,
    hypotheses: Sequence[str],
    references: Sequence[str],
    groups: int,
    options: dict[str, Any],
) -> Measurement:
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("BLEU and chrF need sacrebleu: pip install sacrebleu") from error
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"expected one reference for each of at least one hypothesis, got {len(hypotheses)} "
            f"hypotheses and {len(references)} references"
        )
    corpus = getattr(sacrebleu, scorer)(**options)

    def score(rows: list[int]) -> float:
        chosen = [hypotheses[i] for i in rows], [[references[i] for i in rows]]
        return float(corpus.corpus_score(*chosen).score)

    return jackknife_measurement(score, len(hypotheses), groups)
