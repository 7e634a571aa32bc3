"""Image classification tasks from `datasets.Dataset`s."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optuna_merge.tasks._data import LABELS, Data
from optuna_merge.tasks._splits import classification, tables_of
from optuna_merge.tasks._task import Task


def image_task(
    name: str,
    splits: Any,
    transform: Callable[[Any], Tensor],
    *,
    train_transform: Callable[[Any], Tensor] | None = None,
    num_labels: int | None = None,
    image: str = "image",
    label: str = "label",
    **options: Any,
) -> Task:
    """A `Task` that classifies images; each is decoded and transformed when it is read.

    A column `datasets.Image(mode="RGB")`, or another mode of 8 bits, gives all images in that
    mode: grey images of 16 bits are scaled to 8, transparency is left out, the orientation that
    cameras note is heeded, of an animation the first picture is taken. Those of 32 bits or of
    floats, whose range no file tells, are refused. Without a mode the transform gets images as
    their files have them.

    Args:
        name: The task's name.
        splits: As in `text_task`.
        transform: Image to tensor of one shape, such as `timm.data.create_transform(...)`.
        train_transform: For the training data; default `transform`.
        num_labels: Classes; default: the label feature's, or else the largest training label + 1.
        image: Column of the images.
        label: Column of the integer labels.
        **options: Further fields of `Task`, such as `head` and `metrics`.

    Raises:
        ValueError: a split or column that is missing; or, when it is read, an image that is
            damaged, or can't be had in the column's mode.
    """
    data: dict[str, Data] = {}
    for split, where, table in tables_of(name, splits, (image, label)):
        chosen = train_transform if split == "train" and train_transform else transform
        data[split] = _ImageData(where, table, chosen, image, label)
    return classification(name, data, splits["train"], label, num_labels, options)


class _ImageData:
    def __init__(
        self, where: str, table: Any, transform: Callable[[Any], Tensor], image: str, label: str
    ) -> None:
        from datasets import Image

        self._where, self._transform, self._image = where, transform, image
        self.columns = {LABELS: torch.as_tensor(list(table[label]))}
        feature = table.features[image]
        # As files, to be decoded here; but not under a format or transform of the user's own.
        self._decodes = (
            isinstance(feature, Image) and feature.decode and table.format["type"] is None
        )
        self._mode = feature.mode if self._decodes else None
        self._table = table.cast_column(image, Image(decode=False)) if self._decodes else table
        self._hash: str | None = None

    def __len__(self) -> int:
        return len(self._table)

    def content_hash(self) -> str:
        """SHA-256 of the untransformed pixels, the labels, and the transform's repr; read once."""
        if self._hash is None:
            shown = re.sub(r" at 0x[0-9a-f]+", "", repr(self._transform))
            digest = hashlib.sha256(shown.encode())
            labels = self.columns[LABELS].tolist()
            for index, (row, label) in enumerate(zip(self._table, labels)):
                picture = self._picture(row[self._image], index)
                digest.update(f"{picture.mode}{picture.size}{label};".encode())
                digest.update(picture.tobytes())
            self._hash = digest.hexdigest()
        return self._hash

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        images = self._table[indices][self._image]
        pictures = [self._picture(image, index) for image, index in zip(images, indices)]
        return {
            "pixel_values": torch.stack([self._transform(picture) for picture in pictures]),
            LABELS: self.columns[LABELS][torch.as_tensor(indices)],
        }

    def _picture(self, image: Any, index: int) -> Any:
        if not self._decodes:
            return image
        from datasets import Image

        advice = "; replace it by a sound one, or remove it"
        try:
            picture = Image().decode_example(image)
            advice = ""
            return _in_mode(picture, self._mode)
        except Exception as error:  # PIL's readers raise what they like, SyntaxError among it
            name = image["path"] if image and image["path"] else f"image {index}"
            raise ValueError(f"{self._where}: can't read {name}: {error}{advice}") from error


def _in_mode(picture: Any, mode: str | None) -> Any:
    """A picture of PIL's in a mode of 8 bits; PIL's `convert` alone clips what has more."""
    if mode is None or picture.mode == mode:
        return picture
    tags = getattr(picture, "tag_v2", {})  # TIFF's
    if picture.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        picture = _eight_bits(picture, 2**bits - 1, inverted=tags.get(_PHOTOMETRIC) == 0)
    elif picture.mode == "I" and picture.format in ("PNG", "PPM"):  # of 16 bits, in a wider mode
        picture = _eight_bits(picture, 65535)
    elif picture.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'integers' if picture.mode == 'I' else 'floats'} of 32 bits, whose "
            f"range is not known; save it with 8 or 16 bits"
        )
    return picture.convert(mode)


_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


def _eight_bits(picture: Any, largest: int, *, inverted: bool = False) -> Any:
    """Grey values from 0 to `largest` as 0 to 255, rounded; inverted where 0 is white."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(picture).astype(np.int64).clip(0, largest)
    if inverted:
        grey = largest - grey
    return Image.fromarray(((grey * 255 + largest // 2) // largest).astype(np.uint8))
