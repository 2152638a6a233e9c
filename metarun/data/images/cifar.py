"""CIFAR-FS and FC100: CIFAR-100's classes, split for few-shot learning; 600 pictures each.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. CIFAR-FS splits them at
random (Bertinetto et al. 2019, arXiv:1805.08136), FC100 by superclasses, which makes it harder
(Oreshkin et al. 2018, arXiv:1805.10123).
"""

import io
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from metarun.data import pickles
from metarun.data.archives import data_root, find, fingerprint, members, read_pictures
from metarun.data.class_lists import by_class, read_list
from metarun.data.download import download
from metarun.data.pictures import decode, picture_splits
from metarun.data.split import Split
from metarun.data.store import SPLITS, DataSet, prepare
from metarun.errors import UserError

FORMAT = "1"  # of the images below; a change to them needs a new number
ARCHIVE = "cifar-100-python.tar.gz"
URLS = (
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
    f"https://cave.cs.toronto.edu/kriz/{ARCHIVE}",
)
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
PICKLED = re.compile(r"(?:.*/)?(train|test|meta)")
PICTURE = re.compile(r"(?:.*/)?([^/]+)/[^/.][^/]*\.(?:png|jpg)")
COUNT = 60000

Listed = dict[str, dict[str, list[str]]]  # the classes of each superclass of each split


def cifar_fs(root: str | None, size: int) -> DataSet:
    """CIFAR-FS, uint8 [N, 3, size, size]; 64 / 16 / 20 classes, with CIFAR-100's superclasses.

    Its sources and errors are those of `load`.
    """
    return load("cifar_fs", "CIFAR_FS", root, size)


def fc100(root: str | None, size: int) -> DataSet:
    """FC100, uint8 [N, 3, size, size]; 60 / 20 / 20 classes of 12 / 4 / 4 superclasses.

    Its sources and errors are those of `load`.
    """
    return load("fc100", "FC100", root, size)


def load(name: str, title: str, root: str | None, size: int) -> DataSet:
    """The classes listed as `name`, from whatever form of them is below `root`.

    That is CIFAR-100's archive or the folder that it holds; the caches `title`_train.pickle, _val
    and _test (Lee et al. 2019, arXiv:1904.03758), which do not name their classes; or a zip or a
    folder with a folder of pictures for each class, in train/, val/ and test/ or all in one. The
    archive is downloaded if none of these is there. Raises UserError when that fails, or what is
    there is not what it should be.
    """
    place = data_root(root)
    options = f"format {FORMAT}, size {size}, Pillow {PIL.__version__}"
    caches = [find(place, f"{title}_{split}.pickle") for split in SPLITS]
    original = find(place, "cifar-100-python/meta", "meta")
    sources: list[Path]
    if original and original.with_name("train").is_file():
        sources, build = [original.parent], from_original
    elif found := find(place, "train/aquarium_fish"):  # of the training classes of both
        sources, build = [found.parents[1]], from_pictures
    elif found := find(place, "aquarium_fish"):
        sources, build = [found.parent], from_pictures
    elif all(caches):
        sources, build = [path for path in caches if path], from_caches
    elif packed := find(place, f"{title}.zip", "cifar-fs.zip", "cifar100.zip"):
        sources, build = [packed], from_pictures
    else:
        archive = find(place, ARCHIVE) or place / ARCHIVE
        if not archive.exists():
            download(URLS, archive, MD5)
        sources, build = [archive], from_original
    key = f"{options}, {fingerprint(*sources)}"
    return prepare(name, key, lambda: build(sources, read_list(name), size))


def from_original(sources: list[Path], listed: Listed, size: int) -> dict[str, Split]:
    """The three splits, from CIFAR-100's archive or its folder."""
    (source,) = sources
    parts = {
        name.rpartition("/")[2]: plain(pickles.load(io.BytesIO(content)))
        for name, content in members(source, PICKLED)
    }
    try:
        halves = [parts["train"], parts["test"]]
        pictures = [x for half in halves for x in as_bytes(half["data"]).reshape(-1, 3, 32, 32)]
        names = [text(name) for name in parts["meta"]["fine_label_names"]]
        labels = [names[label] for half in halves for label in half["fine_labels"]]
        class_of = dict(zip(range(len(pictures)), labels, strict=True))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is not CIFAR-100 ({error!r}): replace it") from None
    return picture_splits(
        by_class(flat(listed), class_of, source),
        lambda row: resized(pictures[row], size),
        partial(superclasses, listed),
    )


def from_caches(sources: list[Path], listed: Listed, size: int) -> dict[str, Split]:
    """The three splits, from a cache each, whose classes are numbers: train/00, train/01, ..."""
    pictures: list[np.ndarray] = []
    splits: dict[str, dict[str, list[int]]] = {}
    for split, source in zip(SPLITS, sources, strict=True):
        splits[split] = {}
        cache = plain(pickles.load(source))
        try:
            rows = range(len(pictures), len(pictures) + len(cache["data"]))
            for row, label in zip(rows, cache["labels"], strict=True):
                splits[split].setdefault(f"{split}/{int(label):02}", []).append(row)
            pictures.extend(as_bytes(cache["data"]).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{source} has no data and labels ({error!r}): replace it") from None
        if len(splits[split]) != len(flat(listed)[split]):
            raise UserError(
                f"{source} has {len(splits[split])} classes, the {split} split "
                f"{len(flat(listed)[split])}: replace it"
            )
    ordered = {split: dict(sorted(classes.items())) for split, classes in splits.items()}
    return picture_splits(ordered, lambda row: resized(pictures[row], size))


def from_pictures(sources: list[Path], listed: Listed, size: int) -> dict[str, Split]:
    """The three splits, from class folders of pictures."""
    (source,) = sources
    pictures = read_pictures(source, PICTURE, lambda _, file: decode(file, size, False), COUNT)
    class_of = {name: PICTURE.sub(r"\1", name) for name in pictures}
    return picture_splits(
        by_class(flat(listed), class_of, source), pictures.pop, partial(superclasses, listed)
    )


def plain(content: Any) -> dict[str, Any]:
    """A pickled dict, empty if it is something else, with its keys as texts."""
    return {text(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def text(word: bytes | str) -> str:
    """The word, which Python 2 wrote as bytes."""
    return word.decode() if isinstance(word, bytes) else str(word)


def as_bytes(x: np.ndarray) -> np.ndarray:
    """The array, if it is one of bytes; TypeError else."""
    return x.astype(np.uint8, casting="safe", copy=False)


def flat(listed: Listed) -> dict[str, list[str]]:
    """The classes of each split."""
    return {split: [c for group in listed[split].values() for c in group] for split in SPLITS}


def superclasses(listed: Listed, classes: Iterable[str]) -> dict[str, str]:
    """CIFAR-100's superclass of each of the classes."""
    above = {c: name for split in SPLITS for name, group in listed[split].items() for c in group}
    return {name: above[name] for name in classes}


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """The picture, uint8 [3, 32, 32], as [3, size, size]."""
    if size == picture.shape[1]:
        return picture
    image = Image.fromarray(picture.transpose(1, 2, 0))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
