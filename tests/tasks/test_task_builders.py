from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from optuna_merge.tasks import Task, TensorData, fingerprint, image_task, text_task

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "very"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    )


def reviews(*, declared: bool = False, **extra: list[Any]) -> Dataset:
    columns = {"text": ["good film", "very very bad film"], "label": [1, 0]}
    label = ClassLabel(names=["bad", "good", "mixed"]) if declared else Value("int64")
    features = {"text": Value("string"), "label": label}
    features |= {name: Value("string") for name in extra}
    return Dataset.from_dict(columns | extra, features=Features(features))


def test_texts_are_tokenised_once(tokenizer: Any) -> None:
    task = text_task(
        "films",
        DatasetDict(train=reviews(), validation=reviews(), test=reviews()),
        tokenizer,
        max_length=3,
        head="shared",
    )
    assert (task.num_outputs, task.head) == (2, "shared")
    data = task.data("test")
    assert isinstance(data, TensorData)
    assert data.columns["input_ids"].tolist() == [[2, 4, 0], [5, 5, 3]]
    assert data.columns["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert data.columns["labels"].tolist() == [1, 0]
    assert data[[0]]["input_ids"].tolist() == [[2, 4]]


def test_pairs_of_texts_and_a_saved_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    splits = {s: reviews(other=["bad", "unheard"]) for s in ("train", "validation")}
    task = text_task("pairs", splits, str(tmp_path), text=("text", "other"))
    data = task.data("train")
    assert isinstance(data, TensorData)
    assert data.columns["input_ids"].tolist() == [[2, 4, 3, 0, 0], [5, 5, 3, 4, 1]]
    assert task.test is None


def test_classes_are_those_declared_or_given_or_seen(tokenizer: Any) -> None:
    def classes(declared: bool, **options: Any) -> int:
        splits = {s: reviews(declared=declared) for s in ("train", "validation")}
        return text_task("films", splits, tokenizer, **options).num_outputs

    assert classes(declared=True) == 3
    assert classes(declared=False) == 2
    assert classes(declared=True, num_labels=7) == 7


def pictures(count: int = 4) -> Dataset:
    images = [Pictures.new("L", (2, 2), color=60 * i) for i in range(count)]
    return Dataset.from_dict(
        {"image": images, "label": [i % 2 for i in range(count)]},
        features=Features({"image": Image(), "label": Value("int64")}),
    )


def brightness(picture: Any) -> Tensor:
    return torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(1, 2, 2)


def test_images_are_transformed_when_they_are_read() -> None:
    splits = {"train": pictures(), "validation": pictures(2)}
    task = image_task(
        "shades", splits, brightness, train_transform=lambda picture: -brightness(picture)
    )
    assert task.num_outputs == 2
    batch = task.data("validation")[[1, 0]]
    assert batch["pixel_values"].shape == (2, 1, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [60.0, 0.0]
    assert batch["labels"].tolist() == [1, 0]
    assert task.data("train")[[3]]["pixel_values"].unique().tolist() == [-180.0]


def test_random_transforms_leave_the_fingerprint_alone_but_pixels_do_not() -> None:
    def task(train: Dataset) -> Task:
        return image_task("shades", {"train": train, "validation": pictures(2)}, _noise)

    one = fingerprint(task(pictures()).data("train"))
    assert one == fingerprint(task(pictures()).data("train"))
    other = pictures()
    lighter = [Pictures.new("L", (2, 2), color=61 * i) for i in range(4)]
    other = Dataset.from_dict({"image": lighter, "label": other["label"]}).cast(other.features)
    assert one != fingerprint(task(other).data("train"))


def _noise(picture: Any) -> Tensor:
    return brightness(picture) + torch.randn(1, 2, 2)


def build_text(splits: Any, tokenizer: Any) -> Task:
    return text_task("films", splits, tokenizer)


def build_image(splits: Any, tokenizer: Any) -> Task:
    return image_task("films", splits, brightness)


@pytest.mark.parametrize("build, table", [(build_text, reviews), (build_image, pictures)])
def test_bad_splits_are_named(
    build: Callable[[Any, Any], Task], table: Callable[[], Dataset], tokenizer: Any
) -> None:
    def refused(message: str, **splits: Dataset) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            build(splits, tokenizer)

    refused("task 'films': no split 'validation' among ['train']", train=table())
    refused("task 'films': no split 'train' among ['dev']", dev=table())
    unlabelled = table().remove_columns("label")
    refused(
        f"task 'films', validation data: no column 'label' among {unlabelled.column_names}",
        train=table(),
        validation=unlabelled,
    )
    refused("task 'films', train data: no examples", train=table().select([]), validation=table())
    one_class = table().select([0])
    refused("task 'films', train data: all 1 examples", train=one_class, validation=one_class)
