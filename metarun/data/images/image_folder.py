"""Any folder of pictures in class folders, split by classes."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL

from metarun.data import own_pictures
from metarun.data.own_pictures import is_picture
from metarun.data.split_by_class import (
    large_enough,
    names_in_one_form,
    read_split_file,
    refuse_incomplete,
)
from metarun.data.split_by_class import split_classes as split_by
from metarun.data.split_names import split_named, splits_named
from metarun.data.store import (
    SPLITS,
    DataSet,
    data_folder,
    fingerprint,
    prepare,
    refuse_shared_classes,
)
from metarun.data.told import doubt, few, listening, shown, tell
from metarun.errors import UserError

FORMAT = "2"  # of the images below; a change to them needs a new number
NO_FILES = {"thumbs.db", "desktop.ini"}  # that a person put there

Classes = dict[str, list[Path]]  # the pictures of each class, sorted


class Found(NamedTuple):
    """What is below a folder."""

    classes: Classes
    loose: list[Path]  # pictures in no class folder
    others: list[Path]  # files that are no pictures, and no notes beside them
    empty: list[Path]  # folders that have files, but no pictures, and none below


def load(
    root: str | None,
    size: int,
    grey: bool,
    range: Sequence[float] | None,
    min_examples: int,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The pictures below `root`, uint8 [N, 3 or 1, size, size]; a class is a folder with pictures.

    Classes are named by their folder's path, and where all of them lie in folders of their own
    (`dogs/poodle`) those are the superclasses. Those with fewer than `min_examples` pictures are
    left out. Classes are split by `split_file` if given, else by the folders train/ val/ test/ if
    one of them is there, else at random by `fractions` and `split_seed`. Pictures of more than 8
    bits are scaled from `range`, or from what all of them have. What is no picture, or cannot be
    read, is left out and told of. Raises UserError when there are no pictures, the splits cannot be
    made, or a class has no picture that can be read.
    """
    if root is None:
        raise UserError("data=image_folder needs data.root=DIR, the folder of your class folders")
    if size < 1:
        raise UserError(f"data.size={size}: images need at least one pixel, the papers use 84")
    folder = Path(str(root)).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root} is not a folder: give the folder of your class folders")
    with listening() as told:
        splits = split_classes(folder, split_file, fractions, split_seed, min_examples)
    key = f"format {FORMAT}, size {size}, grey {grey}, range {range}, Pillow {PIL.__version__}, "
    return prepare(
        "image_folder",
        key + fingerprint(folder, splits),
        lambda: own_pictures.build(splits, size, grey, range, superclass_of),
        told,
    )


def split_classes(
    folder: Path,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
    min_examples: int = 0,
) -> dict[str, Classes]:
    """The classes of each split with their pictures, in the form that the user has them."""
    named = {} if split_file else split_folders(folder)
    if not named:
        found = find_classes(folder)
        tell_left_out([found])
        listed = read_split_file(folder, split_file)
        return split_by(found.classes, listed, fractions, split_seed, min_examples)
    each = {split: find_classes(place) for split, place in named.items()}
    tell_left_out(list(each.values()))
    tell("split", f"by folders {', '.join(place.name for place in named.values())}")
    splits = {
        split: large_enough(each[split].classes, min_examples) if split in each else {}
        for split in SPLITS
    }
    refuse_shared_classes(splits)
    refuse_incomplete(splits, str(folder))
    return splits


def split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split; empty if no top folder is called like one.

    Raises UserError when some are, but not all that are needed, or others have pictures beside.
    """
    inside = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    inside = {name: path for name, path in inside.items() if not name.startswith(".")}
    names = splits_named(filter(split_named, inside))
    if not names:
        return {}
    seen = f"{folder} has {' and '.join(names.values())}"
    beside = [name for name in inside if name not in names.values() and has_pictures(inside[name])]
    need = "for a split by folders, all classes lie in train, val and test"
    if beside:
        raise UserError(
            f"{seen}, which mean splits, but also {few(beside)}: {need}; data.split_file=FILE "
            "splits classes that are called so"
        )
    if lacking := [split for split in SPLITS if split not in names and list(names) != ["test"]]:
        raise UserError(
            f"{seen} but no {' and no '.join(lacking)}: {need}, each with other classes (test "
            "alone will do for mode=test and mode=embed)"
        )
    return {split: inside[names[split]] for split in SPLITS if split in names}


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture below."""
    places = os.walk(folder)
    return any(is_picture(Path(place) / name) for place, _, files in places for name in files)


def find_classes(folder: Path) -> Found:
    """Every folder below `folder` that holds pictures, by its path from there, in sorted order."""
    found: Classes = {}
    loose: list[Path] = []
    others: list[Path] = []
    without: list[Path] = []
    prepared = (data_folder() / "prepared").resolve()
    for place, inner, files in os.walk(folder, followlinks=True):
        path = Path(place)
        real = path.resolve()
        # A link to one of these would go round for ever; the last is where prepared data is.
        above = {real, *real.parents, prepared}
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".") and (path / name).resolve() not in above
        ]
        ours = sorted(n for n in files if not n.startswith(".") and n.lower() not in NO_FILES)
        pictures: list[Path] = []
        for file in (path / name for name in ours):
            if is_picture(file):
                pictures.append(file)
            elif file.suffix.lower() not in own_pictures.BESIDE:
                others.append(file)
        if path == folder:
            loose = pictures
        elif pictures:
            found[path.relative_to(folder).as_posix()] = pictures
        elif ours:
            without.append(path)
    if not found:
        raise UserError(
            f"{folder} has no class folders with pictures (such as .jpg, .png, .tif, .webp): put "
            "each class's pictures in a folder of its own"
        )
    found = dict(sorted(found.items()))
    above_classes = {folder / name for name in found}
    above_classes |= {place for path in above_classes for place in path.parents}
    empty = sorted(path for path in without if path not in above_classes)
    classes = dict(zip(names_in_one_form(found), found.values(), strict=True))
    return Found(classes, loose, sorted(others), empty)


def tell_left_out(found: Sequence[Found]) -> None:
    """Tell of what is no picture, or in no class, and of folders that have none."""
    if loose := [str(path) for one in found for path in one.loose]:
        count = f"{len(loose)} picture{'s' * (len(loose) > 1)}"
        doubt(f"left out {count} in no class folder: {few(loose)}")
    if others := [str(path) for one in found for path in one.others]:
        one, many = "1 file that is no picture", f"{len(others)} files that are no pictures"
        files = one if len(others) == 1 else many
        doubt(f"left out {files}: {few(others)}")
    if empty := [str(path) for one in found for path in one.empty]:
        doubt(f"no class, since they have files but no picture: {shown(empty, 'folder')}")


def superclass_of(classes: Iterable[str]) -> dict[str, str] | None:
    """The folder above each class's folder, if all have one: `dogs/poodle` -> `dogs`."""
    above = {name: name.rpartition("/")[0] for name in classes}
    return above if all(above.values()) else None
