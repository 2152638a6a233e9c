"""Any folder of pictures in class folders, split by classes."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import PIL

from metarun.data.pictures import decode, picture_splits
from metarun.data.split import Split
from metarun.data.split_by_class import OTHER_NAMES, by_chance, by_list, read_split_file
from metarun.data.store import SPLITS, DataSet, fingerprint, prepare, refuse_shared_classes
from metarun.errors import UserError

FORMAT = "1"  # of the images below; a change to them needs a new number
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

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


def build(splits: dict[str, Classes], size: int, grey: bool) -> dict[str, Split]:
    """The three splits with their pictures decoded."""
    return picture_splits(splits, lambda path: decode(path, size, grey), superclass_of)


def superclass_of(classes: Iterable[str]) -> dict[str, str] | None:
    """The folder above each class's folder, if all have one: `dogs/poodle` -> `dogs`."""
    above = {name: name.rpartition("/")[0] for name in classes}
    return above if all(above.values()) else None
