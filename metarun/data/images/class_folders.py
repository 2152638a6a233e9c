"""Which folders of pictures are classes: those that have some, or those at one depth.

A tree does not always tell. `cat/0.png` beside `cat/young/0.png` may be one class or two, and
`cat/monday`, `dog/monday` may be two classes with their days, or four with their superclasses. Such
a tree is refused, with its two readings, until `data.depth` says which is meant.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from metarun.data import own_pictures
from metarun.data.one_form import names_in_one_form
from metarun.data.own_pictures import is_picture
from metarun.data.split_by_class import SplitList
from metarun.data.split_names import split_named
from metarun.data.store import data_folder
from metarun.data.told import doubt, few, shown, tell
from metarun.errors import UserError

EVERY = "every"  # a depth: each folder that has pictures is a class
NO_FILES = {"thumbs.db", "desktop.ini"}  # that a person put there

Classes = dict[str, list[Path]]  # the pictures of each class, sorted
Depth = int | str | None


class Found(NamedTuple):
    """What is below a folder."""

    classes: Classes
    loose: list[Path]  # pictures in no class folder
    others: list[Path]  # files that are no pictures, and no notes beside them
    empty: list[Path]  # folders that have files, but no pictures, and none below


class Place(NamedTuple):
    """A folder with pictures."""

    depth: int
    name: str  # its path
    split: str
    picture: Path  # its first

    @property
    def inner(self) -> tuple[str, str]:
        """Its own name, and the path above."""
        above, _, name = self.name.rpartition("/")
        return name, above


def find_classes(folder: Path, depth: Depth = None) -> Found:
    """Every class folder below `folder`, by its path from there, in sorted order.

    Those are `depth` folders down, with all the pictures below them. Without a number, they are all
    that have pictures in them.
    """
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
    if isinstance(depth, int):
        loose += [path for name in found if levels(name) < depth for path in found[name]]
        found = at_depth(found, depth)
    if not found:
        folders, deepest = max((len(p.relative_to(folder).parts) - 1, p) for p in loose)
        raise UserError(
            f"data.depth={depth}: no picture below {folder} lies in so many folders; {deepest} is "
            f"in {folders}"
        )
    classes = dict(zip(names_in_one_form(found), found.values(), strict=True))
    return Found(classes, loose, sorted(others), empty)


def levels(name: str) -> int:
    """How many folders down the class of this name is."""
    return name.count("/") + 1


def at_depth(found: Classes, depth: int) -> Classes:
    """The folders `depth` down, each with all the pictures below it."""
    merged: Classes = {}
    for name, pictures in found.items():
        if levels(name) >= depth:
            merged.setdefault(cut(name, depth), []).extend(pictures)
    return {name: sorted(merged[name]) for name in sorted(merged)}


def cut(name: str, depth: int) -> str:
    """The first `depth` folders of the path."""
    return "/".join(name.split("/")[:depth])


def refuse_two_readings(folder: Path, found: Mapping[str, Classes]) -> None:
    """Raise UserError when the tree does not tell which of its folders are classes.

    `found` has those with pictures of each split, or all of them under "" if no folders split them.
    """
    places = sorted(
        Place(levels(name), name, split, pictures[0])
        for split, classes in found.items()
        for name, pictures in classes.items()
    )
    seen = f"{folder} can be read in two ways"
    refuse_several_depths(seen, places)
    if places[0].depth > 1:
        if "" in found:
            refuse_splits_further_down(seen, folder, places)
        refuse_equal_names(seen, places)
        refuse_superclass_in_two_splits(seen, places)


def refuse_several_depths(seen: str, places: Sequence[Place]) -> None:
    """UserError when one is further down than others: a class of its own, or a part of one."""
    least = places[0].depth
    deep = [place for place in places if place.depth > least]
    if not deep:
        return
    top = {place.name: place for place in places if place.depth == least}
    one = next((place for place in deep if cut(place.name, least) in top), deep[0])
    other = top.get(cut(one.name, least), places[0])
    raise UserError(
        f"{seen}, {other.picture} is {least} folder{'s' * (least > 1)} down and {one.picture} "
        f"{one.depth}: data.depth={least} puts the latter into class {cut(one.name, least)!r}, "
        f"data.depth={EVERY} into a class {one.name!r} of its own"
    )


def refuse_splits_further_down(seen: str, folder: Path, places: Sequence[Place]) -> None:
    """UserError when all are in one folder, and there in some that are called like splits."""
    common = os.path.commonpath([place.name for place in places])
    inside = {Path(place.name).relative_to(common).parts[:-1] for place in places}
    splits = sorted({parts[0] for parts in inside if parts and split_named(parts[0])})
    if common and len({split_named(name) for name in splits}) > 1:
        raise UserError(
            f"{seen}, {common} in it has {' and '.join(splits)}: data.root={folder / common} "
            f"splits the classes so, data.depth={places[0].depth} takes these for superclasses"
        )


def refuse_equal_names(seen: str, places: Sequence[Place]) -> None:
    """UserError when inner folders have one name: parts of each class, or classes themselves."""
    for one, other in pairwise(sorted(places, key=lambda place: place.inner)):
        (leaf, above), (again, beside) = one.inner, other.inner
        if leaf == again and above != beside:
            raise UserError(
                f"{seen}, {one.picture} and {other.picture} are in folders of one name: "
                f"data.depth={one.depth - 1} puts them into classes {above!r} and {beside!r}, "
                f"data.depth={one.depth} into {one.name!r} and {other.name!r}, with those as "
                "superclasses"
            )


def refuse_superclass_in_two_splits(seen: str, places: Sequence[Place]) -> None:
    """UserError when classes of two splits are in one folder: their superclass, or one class."""
    above = {(place.inner[1], place.split): place for place in places}
    if len({name for name, _ in above}) == 1:  # one class would be none
        return
    for one, other in pairwise(above[key] for key in sorted(above)):
        if one.inner[1] == other.inner[1] and one.name != other.name:
            raise UserError(
                f"{seen}, {one.picture} and {other.picture} are in two splits: "
                f"data.depth={one.depth} puts them into classes {one.name!r} and {other.name!r} "
                f"of one superclass, data.depth={one.depth - 1} into one class, which must then be "
                "in one split"
            )


def refuse_unlisted_below(found: Classes, listed: SplitList) -> None:
    """Raise UserError when the list names a folder, and not those below it that have pictures."""
    names = {name for inside in listed.classes.values() for name in inside}
    for name in sorted(names):
        below = [c for c in found if c.startswith(f"{name}/") and c not in names]
        if below:
            alone = f", data.depth={EVERY} only those in the folder itself" * (name in found)
            raise UserError(
                f"data.split_file={listed.file} names {name!r}, and {found[below[0]][0]} lies "
                f"further down: data.depth={levels(name)} takes all below a folder for its "
                f"class{alone}"
            )


def superclasses(names: Iterable[str]) -> dict[str, str] | None:
    """The folder above each class's folder, if all have one: `dogs/poodle` -> `dogs`."""
    above = {name: name.rpartition("/")[0] for name in names}
    return above if all(above.values()) else None


def tell_of_depth(names: Sequence[str], depth: Depth) -> None:
    """Tell which folders are classes, unless they are the top ones and nothing else was asked."""
    deepest = max(names, key=levels)
    if depth is None and levels(deepest) == 1:
        return
    above = superclasses(names)
    which = f"{depth} down" if isinstance(depth, int) else "each with pictures"
    of = f" of superclass {above[deepest]}" if above else ""
    tell("class_folders", f"{which}, such as {deepest}{of}")


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


def read_depth(depth: Depth) -> Depth:
    """What data.depth says; UserError when it is neither a number of folders nor "every"."""
    number = isinstance(depth, int) and not isinstance(depth, bool) and depth >= 1
    if not number and depth not in (None, EVERY):
        raise UserError(
            f"data.depth={depth}: give how many folders down classes are, 1 for data.root=DIR's "
            f"own folders, or {EVERY} for each folder that has pictures"
        )
    return depth
