"""Any folder of pictures in class folders, split by classes."""

import csv
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import PIL
import torch

from metarun.data.pictures import decode, picture_splits
from metarun.data.split import Split
from metarun.data.store import SPLITS, DataSet, prepare, refuse_shared_classes
from metarun.errors import UserError

FORMAT = "1"  # of the images below; a change to them needs a new number
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
OTHER_NAMES = {"valid": "val", "validation": "val"}  # of splits

Classes = dict[str, list[Path]]  # the pictures of each class, sorted


def load(
    root: str | None,
    size: int,
    grey: bool,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The pictures below `root`, uint8 [N, 3 or 1, size, size]; a class is a folder with pictures.

    Classes are named by their folder's path, and where all of them lie in folders of their own
    (`dogs/poodle`) those are the superclasses. Classes are split by `split_file` if given, else by
    the folders train/ val/ test/ if they are there, else at random by `fractions` and `split_seed`.
    Pictures that cannot be read are left out with a warning. Raises UserError when there are no
    pictures, the splits cannot be made, or a class has no picture that can be read.
    """
    if root is None:
        raise UserError("data=image_folder needs data.root=DIR, the folder of your class folders")
    if size < 1:
        raise UserError(f"data.size={size}: images need at least one pixel, the papers use 84")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root} is not a folder: give the folder of your class folders")
    splits = split_classes(folder, split_file, fractions, split_seed)
    key = f"format {FORMAT}, size {size}, grey {grey}, Pillow {PIL.__version__}, "
    return prepare(
        "image_folder", key + fingerprint(folder, splits), lambda: build(splits, size, grey)
    )


def split_classes(
    folder: Path, split_file: str | None, fractions: Sequence[float], split_seed: int
) -> dict[str, Classes]:
    """The classes of each split with their pictures, in the form that the user has them."""
    if split_file is not None:
        return by_list(find_classes(folder), read_split_file(folder, split_file))
    inner = {
        OTHER_NAMES.get(path.name, path.name): path for path in folder.iterdir() if path.is_dir()
    }
    there = [split for split in SPLITS if split in inner]
    if len(there) == len(SPLITS):
        splits = {split: find_classes(inner[split]) for split in SPLITS}
        refuse_shared_classes(splits)
        return splits
    if "train" in there and len(there) == 2:
        (lacking,) = set(SPLITS) - set(there)
        raise UserError(
            f"{folder} has {' and '.join(there)} but no {lacking}: make a folder {lacking} "
            "of other classes, or keep all classes in one folder"
        )
    return by_chance(find_classes(folder), fractions, split_seed)


def find_classes(folder: Path) -> Classes:
    """Every folder below `folder` that holds pictures, by its path from there, in sorted order."""
    found: Classes = {}
    for place, inner, files in os.walk(folder, followlinks=True):
        path = Path(place)
        real = path.resolve()
        above = {real, *real.parents}  # a link to one of these would go round for ever
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and (path / name).resolve() not in above
        ]
        pictures = sorted(
            path / name
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS
        )
        if pictures and path != folder:
            found[path.relative_to(folder).as_posix()] = pictures
    if not found:
        raise UserError(
            f"{folder} has no class folders with pictures ({', '.join(sorted(ENDINGS))}): "
            "put each class's pictures in a folder of its own"
        )
    return dict(sorted(found.items()))


def by_list(classes: Classes, listed: dict[str, list[str]]) -> dict[str, Classes]:
    """The classes as the split file lists them; those it does not name are left out."""
    for name in (name for names in listed.values() for name in names):
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0)[0]
            raise UserError(f"class {name!r} of data.split_file has no folder; is {near!r} meant?")
    splits = {split: {name: classes[name] for name in listed[split]} for split in SPLITS}
    refuse_shared_classes(splits)
    return splits


def by_chance(classes: Classes, fractions: Sequence[float], seed: int) -> dict[str, Classes]:
    """The classes split at random, each split getting one at least."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"data.fractions={list(fractions)} must be three positive shares that add up to 1, "
            "such as [0.64, 0.16, 0.2]"
        )
    if len(classes) < 3:
        raise UserError(
            f"{len(classes)} class folders cannot be split in three: train, val and test share "
            "no class, so at least 3 are needed"
        )
    generator = torch.Generator().manual_seed(seed)
    names = list(classes)
    order = torch.rand(len(names), generator=generator).argsort().tolist()
    val = max(1, round(fractions[1] * len(names)))
    test = max(1, min(round(fractions[2] * len(names)), len(names) - val - 1))
    val = min(val, len(names) - test - 1)
    parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    return {split: {names[i]: classes[names[i]] for i in sorted(parts[split])} for split in SPLITS}


def read_split_file(folder: Path, split_file: str) -> dict[str, list[str]]:
    """Class names of each split, from a CSV or JSON file; a relative path may start at `folder`."""
    path = Path(split_file).expanduser()
    if not path.is_file():
        path = folder / path
    if not path.is_file():
        raise UserError(f"data.split_file={split_file} is neither a file here nor in {folder}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark at the start
        pairs = json_pairs(text) if path.suffix.lower() == ".json" else csv_pairs(text)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise UserError(
            f"cannot read {path}: it must be a CSV file with the columns label (or class) and "
            'split, or a JSON file {"train": [classes], "val": [...], "test": [...]}'
        ) from None
    listed: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, given in dict.fromkeys(pairs):
        split = OTHER_NAMES.get(given, given)
        if split not in listed:
            raise UserError(f"{path} has the split {given!r}: use train, val and test")
        listed[split].append(name)
    for split, names in listed.items():
        if not names:
            raise UserError(f"{path} gives no class to {split}: train, val and test need some each")
    return listed


def csv_pairs(text: str) -> list[tuple[str, str]]:
    """(class, split) of every row, whether it stands for a class or for a picture."""
    rows = csv.DictReader(text.splitlines())
    column = next(name for name in ("label", "class") if name in (rows.fieldnames or ()))
    return [(row[column].strip(), row["split"].strip()) for row in rows]


def json_pairs(text: str) -> list[tuple[str, str]]:
    """(class, split) of a JSON object {split: [classes]}."""
    return [(str(name), split) for split, names in json.loads(text).items() for name in names]


def fingerprint(folder: Path, splits: dict[str, Classes]) -> str:
    """SHA-256 of what is in which split: name, size and time of change of every picture."""
    digest = hashlib.sha256()
    for split, classes in splits.items():
        for name, paths in classes.items():
            for path in paths:
                about = [split, name, str(path.relative_to(folder))]
                if path.exists():  # not a broken link
                    about += [str(path.stat().st_size), str(path.stat().st_mtime_ns)]
                digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def build(splits: dict[str, Classes], size: int, grey: bool) -> dict[str, Split]:
    """The three splits with their pictures decoded."""
    return picture_splits(splits, lambda path: decode(path, size, grey), superclass_of)


def superclass_of(classes: Iterable[str]) -> dict[str, str] | None:
    """The folder above each class's folder, if all have one: `dogs/poodle` -> `dogs`."""
    above = {name: name.rpartition("/")[0] for name in classes}
    return above if all(above.values()) else None
