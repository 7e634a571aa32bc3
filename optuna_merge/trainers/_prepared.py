"""Training data as a Trainer's collator takes them, of Trainers that tokenise by themselves."""

from __future__ import annotations

from typing import Any

from optuna_merge.trainers._data import rows_of


def prepared(trainer: Any, task: str, data: Any) -> Any:
    """The data as they are, or what the Trainer's own `evaluate` makes of them.

    A plain Trainer takes rows that are tokenised. Others, as TRL's SFTTrainer, tokenise texts and
    chats when they are made and when they evaluate; a mixture is sampled after that. So data of
    which the Trainer can't make a batch are given to its `evaluate`, which is ended where it has
    prepared them.
    """
    refused = _refusal(trainer, data)
    if refused is None:
        return data
    found = _prepared_by_evaluate(trainer, data)
    if found is None or _refusal(trainer, found) is not None:
        columns = getattr(data, "column_names", None) or type(data[0]).__name__
        raise ValueError(
            f"task {task!r}: the Trainer can't make a batch of the training data, whose rows have "
            f"{columns}: {refused}. Expected rows as its collator takes them, or as its evaluate "
            f"prepares them"
        ) from refused
    return found


def _refusal(trainer: Any, data: Any) -> Exception | None:
    """Why no batch of the first row can be made; None: it can."""
    try:
        next(iter(trainer.get_eval_dataloader(rows_of(data, [0]))))
    except Exception as error:  # of collators, tokenizers and transforms
        return error
    return None


class _Prepared(Exception):
    """Ends an evaluation that has prepared its data."""


def _prepared_by_evaluate(trainer: Any, data: Any) -> Any:
    found: list[Any] = []

    def kept(data: Any = None) -> Any:
        found.append(data)
        raise _Prepared

    trainer.get_eval_dataloader = kept  # hides the method, and is taken away again
    try:
        trainer.evaluate(data)
    except _Prepared:
        return found[0]
    except Exception:  # it doesn't take such data either
        return None
    finally:
        del trainer.get_eval_dataloader
    return None
