"""Pictures of one's own: which files are some, how deep ones are scaled, which stand twice."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from metarun.data.odd import refuse_one_colour
from metarun.data.pictures import DAMAGED, decode, in_order, is_deep, picture_splits
from metarun.data.split import Split
from metarun.data.statistics import channel_statistics
from metarun.data.told import doubt, tell
from metarun.errors import UserError

# Pillow only knows these when it sees them, or needs other programs: it does not read them.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# What lies beside pictures and is none.
BESIDE = {".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".html", ".ini", ".db"}
# Kinds that may have several pages; a phone's MPO is a JPEG, whose others only go with the first.
PAGED = {"TIFF", "GIF", "WEBP", "AVIF", "PNG", "FLI", "DCX"}
TOPS = (255, 1023, 4095, 16383, 65535)  # the highest values of 8, 10, 12, 14 and 16 bits

Pictures = Mapping[str, Mapping[str, Sequence[Path]]]  # of each class of each split


def build(
    splits: Pictures,
    size: int,
    grey: bool,
    range: Sequence[float] | None,
    superclass_of: Callable[[Iterable[str]], dict[str, str] | None],
) -> dict[str, Split]:
    """The three splits with their pictures decoded; those with more than 8 bits are scaled from
    `range` or, without one, from what the whole set has.

    Without training pictures, mean and deviation are the test's. Raises UserError when a picture
    stands in two splits.
    """
    look_for_copies(splits)
    every = [path for c in splits.values() for paths in c.values() for path in paths]
    tell_of_pages(every)
    deep = deep_range(every) if range is None else checked(range)
    read = partial(decode, size=size, grey=grey, deep=deep)
    made = picture_splits(splits, read, superclass_of)
    refuse_one_colour(made)
    if splits["train"] or not splits["test"]:
        return made
    mean, std = channel_statistics(made["test"].x.split(made["test"].first_row.diff().tolist()))
    doubt("there are no training pictures: all are normalised by the mean of the test's own")
    return {name: replace(split, mean=mean, std=std) for name, split in made.items()}


@cache
def kinds() -> tuple[str, ...]:
    """The kinds of picture that Pillow reads by itself."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in NOT_READ)


@cache
def endings() -> frozenset[str]:
    """What the names of such files end in."""
    known = set(kinds())
    return frozenset(e for e, kind in Image.registered_extensions().items() if kind in known)


def is_picture(path: Path) -> bool:
    """Whether the file is one, by its ending or, without one that is known, by how it begins."""
    ending = path.suffix.lower()
    if ending in endings() or ending in BESIDE:
        return ending in endings()
    try:
        with Image.open(path, formats=kinds()):
            return True
    except (*DAMAGED, Image.DecompressionBombError):
        return False


def tell_of_pages(paths: Iterable[Path]) -> None:
    """Tell of pictures with more pages than one, as stacks and animations have."""
    ending_in = {e for e, kind in Image.registered_extensions().items() if kind not in PAGED}
    paths = [path for path in paths if path.suffix.lower() not in ending_in]
    with ThreadPoolExecutor() as pool:
        several = [
            path for path, more in zip(paths, in_order(pool, has_pages, paths), strict=True) if more
        ]
    if several:
        count = "1 picture has" if len(several) == 1 else f"{len(several)} pictures have"
        doubt(f"{count} more pages than one, such as {several[0]}: the first is read")


def has_pages(path: Path) -> bool:
    """Whether the picture has more pages than one; not so of one that cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.format in PAGED and getattr(picture, "n_frames", 1) > 1
    except (*DAMAGED, Image.DecompressionBombError):
        return False


def deep_range(paths: Iterable[Path]) -> tuple[float, float] | None:
    """From where to where values go in the pictures that have more than 8 bits, and it is told;
    None if there are none.

    From 0 to the end of as many bits as are used; floats from 0 to 1 if they are there. What goes
    below 0 or beyond goes from the lowest to the highest.
    """
    with ThreadPoolExecutor() as pool:
        found = [one for one in in_order(pool, extremes, paths) if one is not None]
    if not found:
        return None
    low, high = min(one[0] for one in found), max(one[1] for one in found)
    tops = (1, *TOPS) if any(floats for *_, floats in found) else TOPS
    if low >= 0 and high <= TOPS[-1]:
        low, high = 0.0, float(next(top for top in tops if high <= top))
    tell(
        "deep_pictures",
        f"{len(found)} have more than 8 bits: {low:g} to {high:g} became 0 to 255; "
        "data.range=[LOW,HIGH] says otherwise",
    )
    return low, high


def extremes(path: Path) -> tuple[float, float, bool] | None:
    """The lowest and the highest value of a picture of more than 8 bits, and whether it has
    fractions; None for another, or one that cannot be read."""
    try:
        with Image.open(path) as picture:
            if not is_deep(picture):
                return None
            values = np.asarray(picture, np.float64)
    except (*DAMAGED, Image.DecompressionBombError):
        return None
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return float(values.min()), float(values.max()), bool((values != values.round()).any())


def checked(range: Sequence[float]) -> tuple[float, float]:
    """The range that the person gave."""
    numbers = isinstance(range, list) and all(isinstance(end, int | float) for end in range)
    if not numbers or len(range) != 2 or not range[0] < range[1]:
        raise UserError(
            f"data.range={range}: give the value that is black and the one that is white, such as "
            "[0,4095]"
        )
    low, high = map(float, range)
    tell("deep_pictures", f"{low:g} to {high:g} became 0 to 255, as data.range says")
    return low, high


def look_for_copies(splits: Pictures) -> None:
    """Raise UserError when files in two splits are the same, byte for byte; tell of those in two
    classes of one split."""
    by_size: dict[int, list[tuple[str, str, Path]]] = {}
    for split, classes in splits.items():
        for name, path in ((name, path) for name, paths in classes.items() for path in paths):
            with suppress(OSError):  # a broken link
                by_size.setdefault(os.stat(path).st_size, []).append((split, name, path))
    by_content: dict[bytes, list[tuple[str, str, Path]]] = {}
    for size, places in by_size.items():
        if size and len({place[:2] for place in places}) > 1:
            for place in places:
                with suppress(OSError), open(place[2], "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                    by_content.setdefault(digest, []).append(place)
    copies = [c for c in by_content.values() if len({place[:2] for place in c}) > 1]
    across = [c for c in copies if len({split for split, *_ in c}) > 1]
    if across:
        raise UserError(
            f"{several(across)} in two splits, byte for byte, {pair(across[0], 0)}: a test on them "
            "would be none; remove one of each"
        )
    if copies:
        doubt(f"{several(copies)} in two classes, byte for byte, such as {pair(copies[0], 1)}")


def several(copies: list[list[tuple[str, str, Path]]]) -> str:
    """How many pictures stand twice."""
    return "1 picture stands" if len(copies) == 1 else f"{len(copies)} pictures stand"


def pair(copies: list[tuple[str, str, Path]], by: int) -> str:
    """Two of the copies, which differ in their split (by=0) or class (by=1)."""
    other = next(place for place in copies if place[by] != copies[0][by])
    return f"{copies[0][2]} and {other[2]}"
