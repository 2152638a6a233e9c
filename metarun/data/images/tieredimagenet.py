"""tieredImageNet: 608 classes of ImageNet, split where they are far apart in meaning.

Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", 2018: 351 / 97 / 160
classes of 20 / 6 / 8 categories, all their pictures (779,165), 84×84 pixels.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metarun.data import pickles
from metarun.data.class_lists import read_list
from metarun.data.images import imagenet
from metarun.data.images.imagenet import Source
from metarun.data.labelled_arrays import (
    Labelled,
    decoded,
    first_of,
    labelled_splits,
    npz_blocks,
)
from metarun.data.store import SPLITS, DataSet
from metarun.errors import UserError

PREFIX = r"(tiered[-_]?imagenet[-_])?"

CLASSES: dict[str, list[str]] = read_list("tieredimagenet")


def load(root: str | None, size: int) -> DataSet:
    """tieredImageNet, uint8 [N, 3, size, size]; the categories are superclasses where the form has
    them.

    Read from whichever form is found in `root`, or in a folder tieredimagenet (however spelt)
    there: ImageNet's class folders, in train/ or in train/, val/ and test/; the authors'
    `{train,val,test}_images.npz` or `_images_png.pkl` with `_labels.pkl`. The pictures are never in
    memory together, but for the list of the .pkl file, which is as large as that file. Raises
    UserError when no form is there, or one that is not whole.
    """
    forms = [partial(pictures, size), partial(caches, size)]
    return imagenet.load("tieredimagenet", root, size, forms)


def pictures(size: int, place: Path) -> Source | None:
    """The form of pictures in files."""
    found = imagenet.class_pictures(place, CLASSES)
    if found is None:
        return None
    splits = {split: {wnid: found[wnid] for wnid in CLASSES[split]} for split in SPLITS}
    return imagenet.picture_source(splits, size)


def caches(size: int, place: Path) -> Source | None:
    """The form of two files a split, images and labels."""
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    found: dict[str, tuple[Path, Path]] = {}
    missing = []
    for split in SPLITS:
        images = named(names, rf"{PREFIX}{split}_images(\.npz|_png\.pkl)")
        labels = named(names, rf"{PREFIX}{split}_labels\.pkl")
        if images and labels:
            found[split] = place / images, place / labels
        else:
            missing.append(f"{split}_labels.pkl" if images else f"{split}_images.npz (or _png.pkl)")
    if not found:
        return None
    if missing:
        raise UserError(f"{place} has a part of tieredimagenet, but no {', no '.join(missing)}")
    contents = {split: partial(labelled, *paths, split) for split, paths in found.items()}
    return Source(
        [str(path) for paths in found.values() for path in paths],
        lambda: labelled_splits(contents, size),
    )


def named(names: list[str], pattern: str) -> str | None:
    """The first of the names that is like the pattern."""
    return next((name for name in names if re.fullmatch(pattern, name, re.IGNORECASE)), None)


def labelled(images: Path, about: Path, split: str) -> Labelled:
    """The images of one file, with the labels of the other."""
    content = pickles.load(about)
    if not isinstance(content, dict):
        raise UserError(f"{about} holds no labels by their names")
    labels = np.asarray(first_of(about, content, "label_specific"))
    names = named_labels(labels, content.get("label_specific_str"), split)
    imagenet.refuse_other_classes(about, split, names.values(), CLASSES)
    superclasses = None
    if "label_general" in content:
        general = np.asarray(content["label_general"])
        texts = content.get("label_general_str")
        called = dict(enumerate(map(pickles.text, texts))) if texts is not None else {}
        superclasses = {
            label: called.get(above, f"category {above}")
            for label, above in zip(labels.tolist(), general.tolist(), strict=True)
        }
    return Labelled(blocks_of(images, len(labels)), labels, names, superclasses)


def named_labels(labels: np.ndarray, texts: Any, split: str) -> dict[int, str]:
    """A name for each label: its text when that is a WordNet number, else one that tells apart the
    two cranes, which have the same text."""
    every = np.unique(labels).tolist()
    called = dict(enumerate(map(pickles.text, texts))) if texts is not None else {}
    if all(imagenet.WNID.fullmatch(called.get(label, "")) for label in every):
        return {label: called[label] for label in every}
    return {label: f"{called.get(label, 'class')} ({split} {label})" for label in every}


def blocks_of(path: Path, count: int) -> Any:
    """The images of the file, a block at a time; UserError unless there are `count` of them."""
    if path.suffix.lower() == ".npz":
        blocks = npz_blocks(path, "images")
    else:
        pictures = pickles.load(path)
        if not isinstance(pictures, list):
            raise UserError(f"{path} holds no list of pictures")
        blocks = decoded(path, pictures)
    total = 0
    for block in blocks:
        total += len(block)
        if total > count:
            break
        yield block
    if total != count:
        raise UserError(f"{path} has not one picture for each of its {count} labels")
