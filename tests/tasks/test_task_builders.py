from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
GREY = (RAMP / 257).round().astype(np.uint8)
"""The same as eight bits have it, black to white."""


def files_task(*files: Path, mode: str | None = "RGB") -> Task:
    """Reads these files, as its validation data, in that mode."""
    table = Dataset.from_dict(
        {"image": [str(file) for file in files], "label": [0] * len(files)},
        features=Features({"image": Image(mode=mode), "label": Value("int64")}),
    )
    return image_task("shades", {"train": pictures(), "validation": table}, pixels, num_labels=2)


def pixels(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture).astype(np.int64))


def read(file: Path, mode: str | None = "RGB") -> Tensor:
    found: Tensor = files_task(file, mode=mode).data("validation")[[0]]["pixel_values"][0]
    return found


def _pgm(path: Path) -> None:
    path.write_bytes(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())


def _twelve_bits(path: Path) -> None:
    """A TIFF of 12 bits a pixel, which Pillow reads but doesn't write."""
    values = (RAMP >> 4).flatten().tolist()
    packed = bytearray()
    for first, second in zip(values[::2], values[1::2]):
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    Pictures.fromarray(RAMP).save(path)
    with Pictures.open(path) as found:
        tags = found.tag_v2  # type: ignore[attr-defined]
    start = tags[273][0]
    raw = bytearray(path.read_bytes())
    raw[start : start + len(packed)] = packed
    for tag, value in ((258, 12), (279, len(packed))):
        at = raw.index(tag.to_bytes(2, "little"), 4, start if start > 8 else len(raw))
        raw[at + 8 : at + 10] = value.to_bytes(2, "little")
    path.write_bytes(raw)


def _white_is_zero(path: Path) -> None:
    Pictures.fromarray(65535 - RAMP).save(path, tiffinfo={262: 0})


DEEP: dict[str, Callable[[Path], object]] = {
    "a.png": lambda path: Pictures.fromarray(RAMP).save(path),
    "a.tif": lambda path: Pictures.fromarray(RAMP).save(path),
    "big_endian.tif": lambda path: Pictures.fromarray(RAMP.astype(">u2")).save(path),
    "twelve.tif": _twelve_bits,
    "inverted.tif": _white_is_zero,
    "a.pgm": _pgm,
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", DEEP)
def test_images_of_more_than_eight_bits_are_scaled(tmp_path: Path, name: str, mode: str) -> None:
    DEEP[name](tmp_path / name)
    with Pictures.open(tmp_path / name) as found:
        assert found.mode.startswith("I")
    grey = read(tmp_path / name, mode)
    if mode == "RGB":
        assert grey.shape == (8, 8, 3)
        assert (grey == grey[..., :1]).all()
        grey = grey[..., 0]
    assert (grey - torch.from_numpy(GREY.astype(np.int64))).abs().max() <= (name == "twelve.tif")
    assert (grey.min(), grey.max()) == (0, 255)


def test_without_a_mode_the_transform_gets_all_bits(tmp_path: Path) -> None:
    Pictures.fromarray(RAMP).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", None).numpy() == RAMP).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_whose_range_is_unknown_are_refused_by_name(tmp_path: Path, kind: Any) -> None:
    Pictures.fromarray(RAMP.astype(kind)).save(tmp_path / "a.tif")
    told = r"task 'shades', validation data: can't read .*a\.tif: its pixels are .* of 32 bits"
    with pytest.raises(ValueError, match=told):
        read(tmp_path / "a.tif")


def test_other_modes_keep_their_colours(tmp_path: Path) -> None:
    colours = Pictures.new("RGB", (4, 4), (10, 200, 30))
    clear = colours.convert("RGBA")
    clear.putalpha(0)
    palette = colours.quantize(4)
    saved: dict[str, tuple[Any, dict[str, Any]]] = {
        "rgba.png": (clear, {}),
        "palette.png": (palette, {"transparency": 0}),
        "bytes.png": (palette, {"transparency": b"\0"}),
        "palette.gif": (palette, {}),
        "cmyk.tif": (colours.convert("CMYK"), {}),
        "ycbcr.jpg": (colours, {"quality": 100, "subsampling": 0}),
        "animated.gif": (
            palette,
            {"save_all": True, "append_images": [Pictures.new("RGB", (4, 4)).quantize(4)]},
        ),
    }
    for name, (picture, options) in saved.items():
        picture.save(tmp_path / name, **options)
        found = read(tmp_path / name)
        assert found.shape == (4, 4, 3), name
        assert (found - torch.tensor([10, 200, 30])).abs().max() <= 2, name
    for mode in ("1", "L", "LA"):
        Pictures.new("L", (4, 4), 255).convert(mode).save(tmp_path / f"{mode}.png")
        assert (read(tmp_path / f"{mode}.png") == 255).all(), mode


def test_orientation_is_heeded(tmp_path: Path) -> None:
    picture = Pictures.fromarray(np.array([[0, 80], [160, 240]], dtype=np.uint8))
    exif = Pictures.Exif()
    exif[274] = 6  # to be turned clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png", "L").tolist() == [[160, 0], [240, 80]]


def test_damaged_images_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for name in ("a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif"):
        Pictures.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for damage, content in (
            ("half", whole[: len(whole) // 2]),
            ("empty", b""),
            ("text", b"<html>404: not found</html>"),
        ):
            file = tmp_path / f"{damage}-{name}"
            file.write_bytes(content)
            data = files_task(tmp_path / name, file).data("validation")
            told = f"task 'shades', validation data: can't read .*{damage}-{name}: .*; replace it"
            for look in (lambda data=data: data[[1]], lambda data=data: fingerprint(data)):
                with pytest.raises(ValueError, match=told):
                    look()
    table = Dataset.from_dict(
        {"image": [{"bytes": b"no", "path": None}], "label": [0]},
        features=Features({"image": Image(), "label": Value("int64")}),
    )
    splits = {"train": pictures(), "validation": table}
    with pytest.raises(ValueError, match="validation data: can't read image 0: "):
        image_task("shades", splits, pixels).data("validation")[[0]]


def test_a_format_or_transform_of_the_users_own_is_left_alone() -> None:
    negative = pictures().with_transform(
        lambda rows: {
            "image": [
                Pictures.eval(picture, lambda value: 255 - value) for picture in rows["image"]
            ],
            "label": rows["label"],
        }
    )
    task = image_task("shades", {"train": negative, "validation": negative}, brightness)
    assert task.data("train")[[1]]["pixel_values"].unique().tolist() == [195.0]


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
