"""Language models as networks of a multitask model, and what they write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from optuna_merge._base.labels import IGNORED
from optuna_merge._base.swapped import swapped
from optuna_merge.tasks import Batch

_KEPT = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "pad_token_id",
    "repetition_penalty",
    "suppress_tokens",
)
"""Of a model's own generation settings those that leave nothing to chance."""


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are generated: by the most probable tokens, never by chance.

    What else the model's own generation settings say (end and start tokens, penalties,
    suppressed tokens) holds, but for sampling.

    Attributes:
        max_new_tokens: Most tokens, the end token included.
        num_beams: Width of the beam search; 1: the most probable token each time.
    """

    max_new_tokens: int = 128
    num_beams: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@runtime_checkable
class Writer(Protocol):
    """A network of a multitask model that can generate tokens."""

    def write(self, batch: Batch) -> Tensor:
        """Generated token ids (batch, tokens), without a prompt; -100 behind the end."""
        ...

    def describe_generation(self) -> dict[str, Any]:
        """How it does so, as JSON values."""
        ...


class LanguageModel(nn.Module):
    """A transformers model with `generate`, causal or encoder-decoder; several may share one."""

    def __init__(self, network: nn.Module, settings: GenerationSettings) -> None:
        super().__init__()
        self.network: Any = network
        self._settings = settings
        own = network.generation_config.to_dict()  # type: ignore[operator, union-attr]
        self._kept = {name: own[name] for name in _KEPT if own.get(name) is not None}

    def forward(self, **columns: Tensor) -> Any:
        return self.network(**columns, use_cache=False)

    def describe_generation(self) -> dict[str, Any]:
        """Settings and what is kept of the model's own."""
        return self._kept | asdict(self._settings)

    @contextmanager
    def greedy(self) -> Iterator[Any]:
        """The transformers model, for others to use: it generates greedily unless told not to."""
        from transformers import GenerationConfig

        config = GenerationConfig(**self._kept, do_sample=False)
        with swapped(self.network, "generation_config", config):
            yield self.network

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text."""
        ends = self._kept.get("eos_token_id", [])
        return list(ends) if isinstance(ends, list | tuple) else [int(ends)]

    @torch.no_grad()
    def write(self, batch: Batch) -> Tensor:
        """Generated token ids (batch, tokens), without a prompt; -100 behind the end."""
        from transformers import GenerationConfig

        decoder = self.network.config.is_encoder_decoder
        inputs: dict[str, Tensor]
        if decoder:
            inputs = {
                name: batch[name] for name in ("input_ids", "attention_mask") if name in batch
            }
            skipped = 1
        else:
            ids, mask = prompts(batch)
            inputs, skipped = {"input_ids": ids, "attention_mask": mask}, ids.shape[1]
        kept = {"pad_token_id": (self.ends or [0])[0]} | self._kept
        config = GenerationConfig(
            **kept, **asdict(self._settings), do_sample=False, use_cache=True
        )
        # What `config` leaves open would be filled in from the network's own.
        with swapped(self.network, "generation_config", config):
            found: Tensor = self.network.generate(**inputs, generation_config=config)
        written = found[:, skipped:]
        over = torch.isin(written, torch.tensor(self.ends, device=written.device)).long()
        return written.masked_fill((over.cumsum(1) - over) > 0, IGNORED)


def prompts(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The prompts of a batch for a causal model, padded on the left: token ids and mask.

    An example's prompt is everything up to the first labelled position, of which the label is the
    first token to be generated (see `tasks.token_cross_entropy`); without labels, all of it.
    """
    ids, labelled = batch["input_ids"], batch["labels"] != IGNORED
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    positions = torch.arange(ids.shape[1], device=ids.device)
    end = (mask * positions).amax(1)
    end = torch.where(labelled.any(1), labelled.long().argmax(1), end)
    longest = int(end.max()) + 1
    source = positions[:longest] + (end - longest + 1)[:, None]
    place = source.clamp(min=0)
    return ids.gather(1, place), mask.gather(1, place) * (source >= 0)
