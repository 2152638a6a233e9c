"""Describable Textures: 47 kinds of texture, 120 pictures each.

Cimpoi, Maji, Kokkinos, Mohamed and Vedaldi, "Describing Textures in the Wild", CVPR 2014. The
classes are split as in Meta-Dataset (Triantafillou et al. 2020, arXiv:1903.03096).
"""

import re
from pathlib import Path

import PIL

from metarun.data.archives import data_root, find, fingerprint, read_pictures
from metarun.data.class_lists import by_class, read_list
from metarun.data.download import download
from metarun.data.pictures import decode, picture_splits
from metarun.data.split import Split
from metarun.data.store import DataSet, prepare

FORMAT = "1"  # of the images below; a change to them needs a new number
ARCHIVE = "dtd-r1.0.1.tar.gz"
URL = f"https://www.robots.ox.ac.uk/~vgg/data/dtd/download/{ARCHIVE}"
MD5 = "fff73e5086ae6bdbea199a49dfb8a4c1"
PICTURE = re.compile(r"(?:.*/)?([^/]+)/[^/.][^/]*\.jpg")
COUNT = 5640


def load(root: str | None, size: int) -> DataSet:
    """Textures, the middle squares, uint8 [N, 3, size, size]; 33 / 7 / 7 classes.

    Read from the archive, or from the folder images/ that it holds; downloaded if neither is below
    `root`. Raises UserError when that fails, or a class has no pictures.
    """
    folder = find(data_root(root), "images/banded", "banded")
    source = folder.parent if folder else find(data_root(root), ARCHIVE)
    if source is None:
        source = data_root(root) / "dtd" / ARCHIVE
        download(URL, source, MD5)
    key = f"format {FORMAT}, size {size}, Pillow {PIL.__version__}, {fingerprint(source)}"
    return prepare("dtd", key, lambda: build(source, size))


def build(source: Path, size: int) -> dict[str, Split]:
    """The three splits, with the pictures in `source`."""
    pictures = read_pictures(source, PICTURE, lambda _, file: decode(file, size, False), COUNT)
    class_of = {name: PICTURE.sub(r"\1", name) for name in pictures}
    return picture_splits(by_class(read_list("dtd"), class_of, source), pictures.pop)
