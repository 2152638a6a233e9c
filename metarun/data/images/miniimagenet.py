"""miniImageNet: 100 classes of ImageNet with 600 pictures each, 84×84 pixels.

Vinyals et al., "Matching Networks for One Shot Learning", 2016; classes and pictures as chosen by
Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", 2017: 64 / 16 / 20 classes.
"""

import base64
import csv
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from metarun.data.class_lists import read_list
from metarun.data.images import imagenet
from metarun.data.images.imagenet import Source, stem
from metarun.data.labelled_arrays import (
    Labelled,
    first_of,
    in_blocks,
    labelled_splits,
    read,
    refuse_no_images,
)
from metarun.data.split import Split
from metarun.data.store import SPLITS, DataSet
from metarun.errors import UserError

PICTURES = 600  # of each class
CSV_FOLDERS = ("", "split", "splits", "splits/ravi", "csv_files", "images")
CACHES = (  # names of files, without regard to large and small letters
    r"mini[-_]?imagenet[-_]cache[-_]{split}\.(pkl|pickle)",
    r"miniimagenet_category_split_(train_phase_(?=train))?{split}\.(pkl|pickle|npz)",
)

# The classes of each split. The pictures of a class are counted from 1 in the order of their
# ImageNet numbers (the 5 of n0153282900000005.jpg); those of the set are the bits that are 1, the
# lowest of the first byte being picture 1.
CLASSES: dict[str, dict[str, str]] = read_list("miniimagenet")


def load(root: str | None, size: int) -> DataSet:
    """miniImageNet, uint8 [N, 3, size, size]; classes are WordNet numbers where the form has them.

    Read from whichever form is found in `root`, or in a folder miniimagenet (however spelt) there:
    ImageNet's class folders, in train/ or in train/, val/ and test/; loose pictures in images/;
    `mini-imagenet-cache-*.pkl`; `miniImageNet_category_split_*.pickle` or `.npz`. Which pictures of
    a class are meant is told by train.csv, val.csv and test.csv, or else by the published lists.
    Raises UserError when no form is there, or one that is not whole.
    """
    return imagenet.load(
        "miniimagenet", root, size, [partial(pictures, size), partial(caches, size)]
    )


def pictures(size: int, place: Path) -> Source | None:
    """The form of pictures in files."""
    found = imagenet.class_pictures(place, CLASSES)
    if found is None:
        return None
    listed = csv_lists(place) or published_lists()
    splits = {
        split: {wnid: chosen(wnid, found[wnid], names) for wnid, names in listed[split].items()}
        for split in SPLITS
    }
    source = imagenet.picture_source(splits, size)
    return source._replace(build=lambda: counted(source.build()))


def published_lists() -> dict[str, dict[str, list[str]]]:
    """The pictures of each class, named as in the lists of Ravi and Larochelle, without ending."""
    return {
        split: {wnid: [f"{wnid}{n:08}" for n in numbers(bits)] for wnid, bits in classes.items()}
        for split, classes in CLASSES.items()
    }


def numbers(bits: str) -> list[int]:
    """Which pictures of a class are in the set, from 1 on."""
    ones = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), bitorder="little")
    return (np.flatnonzero(ones) + 1).tolist()


def csv_lists(place: Path) -> dict[str, dict[str, list[str]]] | None:
    """The pictures of each class as train.csv, val.csv and test.csv (filename,label) name them,
    without ending; None when they are not there."""
    for inner in CSV_FOLDERS:
        paths = {split: place / inner / f"{split}.csv" for split in SPLITS}
        if all(path.is_file() for path in paths.values()):
            return {split: csv_list(path, split) for split, path in paths.items()}
    return None


def csv_list(path: Path, split: str) -> dict[str, list[str]]:
    """The pictures of each class that one of the CSV files names."""
    names: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            heads = next(rows)
            filename, label = heads.index("filename"), heads.index("label")
            for row in rows:
                names.setdefault(row[label].strip(), []).append(stem(row[filename]))
    except (StopIteration, IndexError, ValueError, csv.Error):
        raise UserError(f"{path} must be a CSV file with the columns filename and label") from None
    imagenet.refuse_other_classes(path, split, names, CLASSES)
    return names


def chosen(wnid: str, paths: list[str], names: list[str]) -> list[str]:
    """Those of a class's pictures that the names mean; all of them when none can be told."""
    by_stem = {stem(path): path for path in paths}
    if there := [by_stem[name] for name in names if name in by_stem]:
        return there
    # ImageNet's own names, n01532829_123.JPEG: the lists count them in the order of their numbers.
    own_name = re.compile(rf"{wnid}_(\d+)")
    matches = map(own_name.fullmatch, by_stem)
    numbered = {int(found[1]): by_stem[found[0]] for found in matches if found}
    in_order = [numbered[number] for number in sorted(numbered)]
    places = [int(name[9:]) for name in names if re.fullmatch(r"\d+", name[9:])]
    if places and min(places) >= 1 and max(places) <= len(in_order):
        return [in_order[n - 1] for n in places]
    return paths


def caches(size: int, place: Path) -> Source | None:
    """The form of one file of arrays a split."""
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    for pattern in CACHES:
        found = {}
        for split in SPLITS:
            wanted = re.compile(pattern.format(split=split), re.IGNORECASE)
            if fitting := [name for name in names if wanted.fullmatch(name)]:
                found[split] = place / max(fitting, key=len)  # train_phase_train before train
        if len(found) == len(SPLITS):
            return cache_source(found, size)
        if found:
            lacking = " and ".join(split for split in SPLITS if split not in found)
            raise UserError(f"{place} has {next(iter(found.values())).name} but none of {lacking}")
    return None


def cache_source(paths: dict[str, Path], size: int) -> Source:
    """The set in these files, one a split."""
    contents = {split: partial(labelled, path, split) for split, path in paths.items()}
    files = [str(path) for path in paths.values()]
    return Source(files, lambda: counted(labelled_splits(contents, size)))


def labelled(path: Path, split: str) -> Labelled:
    """The images of a file, with their labels and the names of these."""
    content = read(path)
    images = np.asarray(first_of(path, content, "image_data", "data", "images"))
    refuse_no_images(path, "its content", images.shape, images.dtype)
    if "class_dict" in content:
        labels = np.full(len(images), -1)
        names = dict(enumerate(sorted(content["class_dict"])))
        for label, name in names.items():
            labels[np.asarray(content["class_dict"][name])] = label
    else:
        labels = np.asarray(first_of(path, content, "labels", "targets"))
        names = {label: f"{split}/{label}" for label in np.unique(labels).tolist()}
        names |= {int(label): name for name, label in content.get("catname2label", {}).items()}
        names = {label: names[label] for label in np.unique(labels).tolist()}
    if labels.shape != images.shape[:1] or labels.min(initial=0) < 0:
        raise UserError(f"{path} has {len(images)} images, but not a label for each")
    imagenet.refuse_other_classes(path, split, names.values(), CLASSES)
    return Labelled(in_blocks(images), labels, names)


def counted(splits: Mapping[str, Split]) -> dict[str, Split]:
    """The splits, after a warning when they are not the standard ones."""
    imagenet.warn_of_counts(imagenet.counts(splits), PICTURES)
    return dict(splits)
