"""Pictures from files to splits: decoded in threads, straight into one tensor a split."""

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from metarun.data.large_array import large_array
from metarun.data.split import Split, as_split
from metarun.data.statistics import channel_statistics
from metarun.data.told import doubt, shown
from metarun.errors import UserError
from metarun.tracking.progress import track

# What Pillow raises: the last two for odd tags.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, struct.error)
TURNS = {  # what makes a picture upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
AHEAD = 1000  # pictures that may wait to be taken

Picture = TypeVar("Picture")
Source = TypeVar("Source")  # where a picture is: a path, a name in an archive, its bytes


def picture_splits(
    splits: Mapping[str, Mapping[str, Sequence[Source]]],
    read: Callable[[Source], np.ndarray | None],
    superclass_of: Callable[[Iterable[str]], dict[str, str] | None] = lambda classes: None,
) -> dict[str, Split]:
    """The splits whose classes have the pictures at these sources, in the order given.

    `read` gives a picture, uint8 [C, H, W], and is called in threads; a picture for which it gives
    None is left out, and told of. Mean and deviation are the "train" split's. `superclass_of`
    gives each class's superclass, if the data has them. Raises UserError when no picture of a class
    can be read.
    """
    every = [s for classes in splits.values() for sources in classes.values() for s in sources]
    pool = ThreadPoolExecutor()  # threads: Pillow decodes and resizes without Python's lock
    try:
        pictures = track(in_order(pool, read, every), "Reading pictures", len(every))
        filled = {split: fill(classes, iter(pictures)) for split, classes in splits.items()}
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, do not read the rest first
    if unreadable := [str(source) for _, _, missing in filled.values() for source in missing]:
        doubt(f"left out {shown(unreadable, 'unreadable picture')}")
    shape = max(x.shape[1:] for x, _, _ in filled.values())  # that of an empty split, too
    x, first_row, _ = filled["train"]
    statistics = (0.0,) * shape[0], (1.0,) * shape[0]
    if len(x):
        statistics = channel_statistics(x.split(first_row.diff().tolist()))
    return {
        split: as_split(
            *("images", x.view(-1, *shape), first_row, splits[split]),
            superclass_of(splits[split]),
            *statistics,
        )
        for split, (x, first_row, _) in filled.items()
    }


def in_order(
    pool: ThreadPoolExecutor,
    read: Callable[[Source], Picture],
    sources: Iterable[Source],
    ahead: int = AHEAD,
) -> Iterator[Picture]:
    """What `read` gives for each source, computed at most `ahead` of what has been taken."""
    waiting: deque[Future[Picture]] = deque()
    for source in sources:
        waiting.append(pool.submit(read, source))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def fill(
    classes: Mapping[str, Sequence[Source]], pictures: Iterator[np.ndarray | None]
) -> tuple[Tensor, Tensor, list[Source]]:
    """The next pictures in one tensor, uint8 [N, C, H, W], each class's first row, and the sources
    whose picture is None."""
    x, row, first_row, missing = np.empty((0, 0, 0, 0), np.uint8), 0, [0], []
    for name, sources in classes.items():
        for source in sources:
            picture = next(pictures)
            if picture is None:
                missing.append(source)
                continue
            if not row:
                x = large_array((sum(map(len, classes.values())), *picture.shape))
            x[row] = picture
            row += 1
        if row == first_row[-1]:
            raise UserError(
                f"no picture of class {name!r} can be read: repair or remove {sources[0]}"
            )
        first_row.append(row)
    return torch.from_numpy(x[:row]), torch.tensor(first_row), missing


def decode(
    file: Path | IO[bytes],
    size: int,
    grey: bool,
    crop: Callable[[Image.Image], Image.Image] | None = None,
    deep: tuple[float, float] | None = None,
) -> np.ndarray | None:
    """The middle square of a picture, or of what `crop` makes of it, uint8 [3 or 1, size, size].

    Of a picture of more than 8 bits the values `deep` become 0 and 255; without them, 16 bits are
    taken to be used to the full. None when it cannot be read.
    """
    mode = "L" if grey else "RGB"
    try:
        with Image.open(file) as picture:
            # JPEG can decode at a fraction of its size, which is most of the time saved; twice what
            # is needed leaves the antialiased resize below to decide the pixels.
            if crop is None:  # which knows places in pixels of the whole
                picture.draft(mode, (2 * size, 2 * size))
            image = upright(picture)
            if crop is not None:
                image = crop(image)
            if deep is not None and is_deep(image):
                image = scaled(image, *deep)
            elif image.mode.startswith("I;16"):  # Pillow would clip it to 255, all white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:  # drawn on white, not on what hides below
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            square = ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR)
    except (*DAMAGED, Image.DecompressionBombError):
        return None
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1)


def is_deep(image: Image.Image) -> bool:
    """Whether its values have more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def scaled(image: Image.Image, low: float, high: float) -> Image.Image:
    """The grey picture whose values `low` and `high` have become 0 and 255."""
    values = (np.asarray(image, np.float64) - low) / (max(high - low, 1e-30) / 255)
    if not np.isfinite(values).all():
        raise ValueError("not all of its values are numbers")
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def upright(picture: Image.Image) -> Image.Image:
    """The picture as cameras and viewers mean it."""
    # Not ImageOps.exif_transpose: it writes the other tags anew, and fails when one of them is odd.
    turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def stretched(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """What is within `box` (left, upper, right, lower, in pixels), [size, size] whatever its shape.

    So does Meta-Dataset with every picture (Triantafillou et al. 2020).
    """
    left, upper, right, lower = box
    within = (max(left, 0), max(upper, 0), min(right, image.width), min(lower, image.height))
    return image.convert("RGB").crop(within).resize((size, size), Image.Resampling.BILINEAR)
