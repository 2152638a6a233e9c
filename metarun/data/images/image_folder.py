"""Any folder of pictures in class folders, split by classes."""

import os
from collections.abc import Sequence
from pathlib import Path

import PIL

from metarun.data import own_pictures
from metarun.data.images.class_folders import (
    Classes,
    Depth,
    find_classes,
    read_depth,
    refuse_two_readings,
    refuse_unlisted_below,
    superclasses,
    tell_left_out,
    tell_of_depth,
)
from metarun.data.own_pictures import is_picture
from metarun.data.split_by_class import (
    large_enough,
    read_split_file,
    refuse_incomplete,
)
from metarun.data.split_by_class import split_classes as split_by
from metarun.data.split_names import split_named, splits_named
from metarun.data.store import (
    SPLITS,
    DataSet,
    fingerprint,
    prepare,
    refuse_shared_classes,
)
from metarun.data.told import few, listening, tell
from metarun.errors import UserError

FORMAT = "4"  # of the images below; a change to them needs a new number


def load(
    root: str | None,
    size: int,
    grey: bool,
    range: Sequence[float] | None,
    depth: Depth,
    min_examples: int,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
) -> DataSet:
    """The pictures below `root`, uint8 [N, 3 or 1, size, size]; a class is a folder with pictures.

    Or it is a folder so many folders down (`depth`), with all that is below it. Classes are named
    by their folder's path, and where all of them lie in folders of their own (`dogs/poodle`) those
    are the superclasses. Those with fewer than `min_examples` pictures are left out.

    Classes are split by `split_file` if given, else by the folders train/ val/ test/ if one of them
    is there, else at random by `fractions` and `split_seed`. Pictures of more than 8 bits are
    scaled from `range`, or from what all of them have. What is no picture, or cannot be read, is
    left out and told of.

    Raises UserError when there are no pictures, the splits cannot be made, the tree does not tell
    which folders are classes, or a class has no picture that can be read.
    """
    if root is None:
        raise UserError("data=image_folder needs data.root=DIR, the folder of your class folders")
    if size < 1:
        raise UserError(f"data.size={size}: images need at least one pixel, the papers use 84")
    folder = Path(str(root)).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root} is not a folder: give the folder of your class folders")
    with listening() as told:
        splits = split_classes(
            *(folder, split_file, fractions, split_seed, min_examples, read_depth(depth))
        )
    above = superclasses(name for classes in splits.values() for name in classes)
    key = f"format {FORMAT}, size {size}, grey {grey}, range {range}, Pillow {PIL.__version__}, "
    return prepare(
        "image_folder",
        key + fingerprint(folder, splits),
        lambda: own_pictures.build(splits, size, grey, range, lambda classes: above),
        told,
    )


def split_classes(
    folder: Path,
    split_file: str | None,
    fractions: Sequence[float],
    split_seed: int,
    min_examples: int = 0,
    depth: Depth = None,
) -> dict[str, Classes]:
    """The classes of each split with their pictures, in the form that the user has them."""
    named = {} if split_file else split_folders(folder)
    listed = read_split_file(folder, split_file)
    found = {s: find_classes(place, depth) for s, place in (named or {"": folder}).items()}
    every = {split: one.classes for split, one in found.items()}
    if depth is None and listed:
        refuse_unlisted_below(every[""], listed)
    elif depth is None:
        refuse_two_readings(folder, every)
    tell_left_out(list(found.values()))
    tell_of_depth([name for classes in every.values() for name in classes], depth)
    if not named:
        return split_by(every[""], listed, fractions, split_seed, min_examples)
    tell("split", f"by folders {', '.join(place.name for place in named.values())}")
    splits = {
        split: large_enough(every[split], min_examples) if split in every else {}
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
