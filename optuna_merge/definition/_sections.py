"""What may stand in a YAML definition, by the kind of its model."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from optuna_merge.definition._definition import PosteriorSettings, SearchSettings
from optuna_merge.finetuning import FinetuneSettings
from optuna_merge.goals import Constraint
from optuna_merge.previews import PreviewSettings


class Section(BaseModel):
    """No keys but those below; numbers are numbers, texts texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """What the file says, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class _Settings(Section):
    """A section that is one of the package's settings, checked by that as well."""

    @classmethod
    def made_of(cls, values: Any) -> Any:
        raise NotImplementedError

    @model_validator(mode="after")
    def _make(self) -> Any:
        self.made_of(self.given())
        return self

    def make(self) -> Any:
        """The settings."""
        return self.made_of(self.given())


def _section(settings: type[Any]) -> type[_Settings]:
    """The section of a dataclass of settings: the same fields, and its own checks."""
    hints = get_type_hints(settings)
    columns: dict[str, Any] = {}
    for column in fields(settings):
        default: Any = column.default
        factory: Any = column.default_factory
        if default is MISSING:
            default = ... if factory is MISSING else factory()
        columns[column.name] = (hints[column.name], default)
    base = type(
        f"_{settings.__name__}",
        (_Settings,),
        {"made_of": classmethod(lambda cls, values: settings(**values)), "__module__": __name__},
    )
    return create_model(settings.__name__, __base__=base, **columns)


Finetuning = _section(FinetuneSettings)
Posterior = _section(PosteriorSettings)
Preview = _section(PreviewSettings)
Search = _section(SearchSettings)
OneConstraint = _section(Constraint)

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Sources(Section):
    """Where examples are, for one task or as the default of all."""

    dataset: str | None = None
    config: str | None = None
    train: str | None = None
    validation: str | Share | None = None
    test: str | Share | None = None


class Data(Sources):
    """Of classification."""

    text: str | tuple[str, str] = "text"
    label: str = "label"
    max_length: Count = 128
    augment: bool = False
    metric: Literal["accuracy", "macro_f1", "matthews"] = "accuracy"


class OneTask(Data):
    """A task: a name, and what differs from `data`."""

    name: str
    head: str | None = None


class LanguageData(Sources):
    """Of a language model: columns of prompts and answers, of messages, or of texts."""

    prompt: str = "prompt"
    answer: str = "answer"
    messages: str | None = None
    text: str | None = None
    separator: str = "\n"
    chat: bool = False
    max_length: Count = 1024
    max_prompt_length: Count = 256
    max_answer_length: Count = 128
    metric: Literal["token_loss", "perplexity", "token_accuracy"] = "token_loss"


class LanguageTask(LanguageData):
    """A task: a name, and what differs from `data`."""

    name: str


class LastLayersOf(Section):
    last_layers: Annotated[int, Field(ge=0)]


class MatchingOf(Section):
    matching: str


class Lora(Section):
    r: Count = 8
    alpha: Count = 16
    target_modules: str | tuple[str, ...] | None = None


class _Body(Section):
    """The pretrained body."""

    name: str
    trainable: Literal["all"] | LastLayersOf | MatchingOf = "all"
    lora: Lora | None = None
    seed: int = 0


class Model(_Body):
    """A body with heads."""

    kind: Literal["text", "image", "language"]
    pretrained: bool = True
    batch_norm: Literal["pretrained", "reestimated"] = "pretrained"

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.kind == "image" and self.lora is not None:
            raise ValueError("lora is for models of kind: text")
        if self.kind != "image":
            for name in ("pretrained", "batch_norm"):
                if name in self.model_fields_set:
                    raise ValueError(f"{name} is for models of kind: image")
        return self


class LanguageModelOf(_Body):
    """A causal or encoder-decoder language model."""

    kind: Literal["language"]


class _Searched(Section):
    """What all files have."""

    runs: dict[str, str] = {}
    search: Search | None = None  # type: ignore[valid-type]
    score: str = "mean"
    constraints: float | list[OneConstraint] | None = None  # type: ignore[valid-type]


class _Study(_Searched):
    """What all files of the own training loop have."""

    finetuning: Finetuning | None = None  # type: ignore[valid-type]
    posterior: Posterior | None = None  # type: ignore[valid-type]
    preview: Preview | None = None  # type: ignore[valid-type]


class Study(_Study):
    """The whole file, of classification."""

    model: Model
    data: Data = Data()
    tasks: Annotated[list[OneTask], Field(min_length=1)]


class LanguageStudy(_Study):
    """The whole file, of a language model."""

    model: LanguageModelOf
    data: LanguageData = LanguageData()
    tasks: Annotated[list[LanguageTask], Field(min_length=1)]


class UnitOf(Section):
    """What a program's weights are, where its loss is averaged over label tokens."""

    kind: Literal["losses", "examples", "tokens"]
    label_tokens: dict[str, Annotated[float, Field(gt=0)]] | None = None
    batch: Count | None = None


class Command(Section):
    """A program that trains."""

    kind: Literal["command"]
    train: str | list[str]
    evaluate: str | list[str]
    steps: Count
    unit: Literal["losses", "examples", "tokens"] | UnitOf
    metric: str = "{task}"
    checkpoint: str = "model"
    seed: int = 0
    time_limit: Annotated[float, Field(gt=0)] | None = None
    grace: Annotated[float, Field(ge=0)] = 30.0
    greater_is_better: bool | None = None
    about: dict[str, Any] = {}


class CommandStudy(_Searched):
    """The whole file, of a program that trains."""

    trainer: Command
    tasks: Annotated[list[str], Field(min_length=1)]
