"""Subsets of ImageNet, found in whatever form a user has them.

ImageNet may not be redistributed, so nothing is fetched: what is there is looked for, by the names
that the forms in use have. A class is named by its WordNet number (n01532829).
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from metarun.data.archives import is_beside
from metarun.data.pictures import decode, picture_splits
from metarun.data.split import Split
from metarun.data.store import SPLITS, DataSet, data_folder, prepare, sha256
from metarun.data.told import doubt
from metarun.errors import UserError

FORMAT = "1"  # of the images below; a change to them needs a new number
ENDINGS = (".jpg", ".jpeg", ".png")
WNID = re.compile(r"n\d{8}")
IMAGENET = ("imagenet", "imagenet1k", "ilsvrc", "ilsvrc2012", "ilsvrc2015")
# Within a folder, where class folders or loose pictures of every split may be, ...
SHARED = ("", "train", "images", "data", "ILSVRC2012_img_train", "Data/CLS-LOC/train")
# ... and those of one split. ImageNet's own val/ has every class: what train/ has comes first.
OWN = {"train": (), "val": ("val", "valid", "validation"), "test": ("test",)}

Pictures = Mapping[str, Sequence[str]]  # the files of each class


class Source(NamedTuple):
    """One form of the set: the files that it is read from, and how."""

    files: list[str]
    build: Callable[[], dict[str, Split]]


def load(
    name: str, root: str | None, size: int, forms: Sequence[Callable[[Path], Source | None]]
) -> DataSet:
    """The set in the first of its `forms` that is there below `root`; UserError when none is."""
    if size < 1:
        raise UserError(f"data.size={size}: images need at least one pixel, the papers use 84")
    folder = Path(root).expanduser() if root else data_folder()
    if root and not folder.is_dir():
        raise UserError(f"data.root={root} is not a folder: {wanted(name, folder)}")
    for place in places(folder, name):
        for form in forms:
            if source := form(place):
                key = f"format {FORMAT}, size {size}, Pillow {PIL.__version__}, "
                return prepare(name, key + fingerprint(folder, source.files), source.build)
    raise UserError(f"data={name}: not found in {folder}: {wanted(name, folder)}")


def wanted(name: str, folder: Path) -> str:
    """What to fetch by hand, and where to put it."""
    pickled = {
        "miniimagenet": "or mini-imagenet-cache-{train,val,test}.pkl, or "
        "miniImageNet_category_split_{train_phase_train,val,test}.pickle or .npz",
        "tieredimagenet": "or {train,val,test}_images_png.pkl (or _images.npz) and _labels.pkl",
    }[name]
    return (
        "ImageNet may not be redistributed, so fetch its training pictures (ILSVRC2012) from "
        f"https://image-net.org, or take the copy of {name} that you have, and put it into "
        f"{folder / name}, or say where it is, data.root=FOLDER; it may be class folders "
        "(n01532829/*.JPEG), in train/ or in train/, val/ and test/, or pictures in images/, with "
        f"or without train.csv, val.csv and test.csv, {pickled}"
    )


def places(folder: Path, name: str) -> Iterator[Path]:
    """Where the set may be, the likeliest first: folders of its name, `folder`, ImageNet's."""
    inner = sorted(path for path in subfolders(folder) if spelt(path) == name)
    for path in inner:
        yield path
        yield from sorted(below for below in subfolders(path) if spelt(below) == name)
    yield folder
    yield from sorted(path for path in subfolders(folder) if spelt(path) in IMAGENET)


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, if there is one."""
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def spelt(path: Path) -> str:
    """The path's last part in small letters and digits alone: mini-ImageNet is miniimagenet."""
    return re.sub(r"[^a-z0-9]", "", path.name.lower())


def class_pictures(place: Path, splits: Mapping[str, Iterable[str]]) -> dict[str, list[str]] | None:
    """Every picture of each class below `place`, sorted; None when no class is there, and UserError
    when only some of them are."""
    every = {wnid for classes in splits.values() for wnid in classes}
    found: dict[str, list[str]] = {}
    for inner in SHARED:
        found = pictures_in(place / inner, every) | found
    for split, classes in splits.items():
        for inner in OWN[split]:
            found = pictures_in(place / inner, set(classes) - set(found)) | found
    missing = [wnid for classes in splits.values() for wnid in classes if wnid not in found]
    if found and missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{place} has pictures of {len(found)} of the {len(every)} classes, but none of {shown}"
        )
    return {wnid: sorted(paths) for wnid, paths in found.items()} or None


def pictures_in(folder: Path, classes: set[str]) -> dict[str, list[str]]:
    """The pictures of each class in its own folder in `folder`, or loose there by their names."""
    found: dict[str, list[str]] = {}
    if not folder.is_dir():
        return found
    with os.scandir(folder) as entries:
        for entry in entries:
            wnid = entry.name[:9]
            if wnid not in classes:
                continue
            if entry.name == wnid:
                with os.scandir(entry) as inner:
                    paths = [file.path for file in inner if is_jpeg(file.name)]
            else:
                paths = [entry.path] if is_jpeg(entry.name) else []
            if paths:
                found.setdefault(wnid, []).extend(paths)
    return found


def is_jpeg(name: str) -> bool:
    """Whether a file of this name is a picture, and not what macOS puts beside one."""
    return name.lower().endswith(ENDINGS) and not is_beside(name)


def stem(path: str) -> str:
    """The file's name without folders and ending; much faster than pathlib's, for many files."""
    return os.path.splitext(os.path.basename(path))[0]


def picture_source(splits: Mapping[str, Pictures], size: int) -> Source:
    """The form of pictures in files."""
    return Source(
        [path for classes in splits.values() for paths in classes.values() for path in paths],
        lambda: picture_splits(splits, lambda path: decode(Path(path), size, grey=False)),
    )


def fingerprint(folder: Path, files: Iterable[str]) -> str:
    """SHA-256 of name, size and time of change of every file, with names from `folder` on."""
    start, lines = len(str(folder)), []
    for path in files:
        about = os.stat(path)
        lines.append(f"{path[start:]}\0{about.st_size}\0{about.st_mtime_ns}\n")
    return sha256("".join(lines).encode(errors="surrogateescape"))


def refuse_other_classes(
    path: Path, split: str, names: Iterable[str], splits: Mapping[str, Iterable[str]]
) -> None:
    """Raise UserError when `path` puts other classes into the split than the standard list does.

    Names that are no WordNet numbers say nothing but how many classes there are.
    """
    given, right = set(names), set(splits[split])
    known = all(WNID.fullmatch(name) for name in given)
    if len(given) == len(right) and (given == right or not known):
        return
    odd = f", such as {min(given - right)}" if known and given - right else ""
    raise UserError(
        f"{path} has other classes than the standard {split} split ({len(given)} for "
        f"{len(right)}{odd}): for a split of your own, data=image_folder"
    )


def warn_of_counts(counts: Mapping[str, int], standard: int) -> None:
    """Say which classes have another number of pictures than the `standard` one."""
    other = {name: count for name, count in counts.items() if count != standard}
    if other:
        some = ", ".join(f"{name} has {count}" for name, count in list(other.items())[:3])
        more = ", ..." if len(other) > 3 else ""
        doubt(
            f"not the standard set: {len(other)} of {len(counts)} classes have other than "
            f"{standard} pictures ({some}{more})"
        )


def counts(splits: Mapping[str, Split]) -> dict[str, int]:
    """The number of examples of every class."""
    return {
        name: int(size)
        for split in SPLITS
        for name, size in zip(splits[split].classes, np.diff(splits[split].first_row), strict=True)
    }
