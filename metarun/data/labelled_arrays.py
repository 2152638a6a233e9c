"""Splits from arrays of images and their labels, as caches of data sets hold them."""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from metarun.data import pickles
from metarun.data.large_array import large_array
from metarun.data.one_form import names_in_one_form, one_form
from metarun.data.split import Split, as_split
from metarun.data.statistics import channel_statistics
from metarun.errors import UserError
from metarun.tracking.progress import track

BLOCK = 1024  # images at once


class Labelled(NamedTuple):
    """One split: its N images a block [n, H, W, 3] at a time, their labels [N], and the name (and
    superclass, if there is one) of each label's class."""

    blocks: Iterable[np.ndarray]
    labels: np.ndarray
    names: Mapping[int, str]
    superclasses: Mapping[int, str] | None = None


def labelled_splits(splits: Mapping[str, Callable[[], Labelled]], size: int) -> dict[str, Split]:
    """The splits, images of `size` by `size` pixels, classes sorted by their labels.

    Each split is read when the one before is done with. Mean and deviation are the "train" split's.
    """
    filled = {name: fill(read(), size, f"Reading {name}") for name, read in splits.items()}
    x, first_row, _, _ = filled["train"]
    statistics = channel_statistics(x.split(first_row.diff().tolist()))
    return {
        name: as_split("images", x, first_row, classes, superclass_of, *statistics)
        for name, (x, first_row, classes, superclass_of) in filled.items()
    }


def fill(
    content: Labelled, size: int, description: str
) -> tuple[Tensor, Tensor, list[str], dict[str, str] | None]:
    """The images, uint8 [N, 3, size, size], in the order of their labels; each class's first row;
    its name; its superclass."""
    labels = content.labels
    place = np.empty(len(labels), np.int64)
    place[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    x, row = large_array((len(labels), 3, size, size)), 0
    for block in track(content.blocks, description, -(-len(labels) // BLOCK)):
        x[place[row : row + len(block)]] = resized(block, size).transpose(0, 3, 1, 2)
        row += len(block)
    ids, counts = np.unique(labels, return_counts=True)
    given = [content.names[label] for label in ids.tolist()]
    names_in_one_form(dict.fromkeys(given))  # no two that differ in their form alone
    classes, above = list(map(one_form, given)), content.superclasses
    superclass_of = (
        {name: one_form(above[i]) for name, i in zip(classes, ids.tolist(), strict=True)}
        if above
        else None
    )
    return (
        torch.from_numpy(x),
        torch.tensor([0, *counts.tolist()]).cumsum(0),
        classes,
        superclass_of,
    )


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [n, H, W, 3] with their middle squares made `size` by `size` pixels."""
    if images.shape[1:3] == (size, size):
        return images
    pictures = map(Image.fromarray, images)
    return np.stack(
        [np.asarray(ImageOps.fit(p, (size, size), Image.Resampling.BILINEAR)) for p in pictures]
    )


def in_blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images in memory, a block at a time."""
    return (images[i : i + BLOCK] for i in range(0, len(images), BLOCK))


def npz_blocks(path: Path, key: str) -> Iterator[np.ndarray]:
    """The images [N, H, W, 3] stored as `key` in the .npz file, a block at a time: they are never
    in memory together. Raises UserError when the file is damaged or holds something else."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                header = np.lib.format.read_array_header_2_0
            shape, by_columns, kind = header(file)
            refuse_no_images(path, key, shape, kind)
            if by_columns:
                raise ValueError("stored by columns")
            one = int(np.prod(shape[1:]))
            for start in range(0, shape[0], BLOCK):
                rows = min(BLOCK, shape[0] - start)
                content = file.read(rows * one)
                yield np.frombuffer(content, np.uint8).reshape(rows, *shape[1:])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}") from None


def refuse_no_images(path: Path, key: str, shape: tuple[int, ...], kind: np.dtype) -> None:
    """Raise UserError unless the array is of coloured images in bytes."""
    if len(shape) != 4 or shape[3] != 3 or kind != np.uint8:
        raise UserError(
            f"{path}: {key} is {kind} {list(shape)}, but images are uint8 [N, height, width, 3]"
        )


def read(path: Path) -> dict[str, Any]:
    """The arrays and lists, by name, in a pickle or an .npz file; UserError when there are none."""
    if path.suffix.lower() != ".npz":
        content = pickles.load(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no arrays by their names")
        return content
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def first_of(path: Path, content: Mapping[str, Any], *keys: str) -> Any:
    """What the content has by the first of the keys that it has; UserError when it has none."""
    for key in keys:
        if key in content:
            return content[key]
    raise UserError(f"{path} has no {' or '.join(keys)}, only {', '.join(map(str, content))}")


def decoded(path: Path, pictures: list[Any]) -> Iterator[np.ndarray]:
    """Blocks of images [n, H, W, 3] from encoded ones, each the bytes of a file as OpenCV wrote it.

    OpenCV takes channels for blue, green and red, and gives them back in that order, so that what
    it reads is what was written, whichever order that was; here likewise.
    """

    def decode(picture: Any) -> np.ndarray:
        encoded = np.asarray(picture).tobytes() if not isinstance(picture, bytes) else picture
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))[..., ::-1]

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pictures), BLOCK):
            try:
                yield np.stack(list(pool.map(decode, pictures[start : start + BLOCK])))
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f"{path} has a picture that cannot be read: {error}") from None
