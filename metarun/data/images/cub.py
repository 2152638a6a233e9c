"""Caltech-UCSD Birds 200-2011: 200 species of birds, 11,788 pictures.

Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

import re
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import PIL

from metarun.data.archives import data_root, find, fingerprint, read_pictures, read_texts
from metarun.data.class_lists import by_class, read_list
from metarun.data.download import download
from metarun.data.pictures import decode, picture_splits, stretched
from metarun.data.split import Split
from metarun.data.store import DataSet, prepare
from metarun.errors import UserError

FORMAT = "1"  # of the images below; a change to them needs a new number
ARCHIVE = "CUB_200_2011.tgz"
URLS = (
    f"https://data.caltech.edu/records/65de6-vp158/files/{ARCHIVE}",
    f"https://www.vision.caltech.edu/visipedia-data/CUB-200-2011/{ARCHIVE}",
)
MD5 = "97eceeb196236b17998738112f37df78"
PICTURE = re.compile(r"(?:.*/)?((\d{3}\.[^/]+)/[^/.][^/]*\.jpg)")
COUNT = 11788

# "chen" is a rule over the species in alphabetical order (Chen et al. 2019, arXiv:1904.04232):
# every second is for training, the others are val and test in turn. "feat" is Ye et al.'s (2020,
# arXiv:1812.03664), "meta_dataset" Triantafillou et al.'s (2020, arXiv:1903.03096).
LISTS = read_list("cub")


def load(root: str | None, splits: str, crop: str, size: int) -> DataSet:
    """Birds, uint8 [N, 3, size, size]; 100 / 50 / 50 classes, 140 / 30 / 30 in "meta_dataset".

    `crop` is "none", the middle square of the picture, or "box", the bird's bounding box made
    square. Read from the archive, the folder that it holds, or the folder images/ alone; downloaded
    if none is below `root`. Raises UserError when that fails, or a class has no pictures.
    """
    if splits not in LISTS:
        raise UserError(f"data.splits={splits} is not one of {', '.join(LISTS)}")
    first = "001.Black_footed_Albatross"
    if folder := find(data_root(root), f"images/{first}"):
        source = folder.parents[1]
    elif folder := find(data_root(root), first):
        source = folder.parent
    else:
        source = find(data_root(root), ARCHIVE) or data_root(root) / "cub" / ARCHIVE
        if not source.exists():
            download(URLS, source, MD5)
    options = f"{splits}, crop {crop}, size {size}, Pillow {PIL.__version__}"
    key = f"format {FORMAT}, {options}, {fingerprint(source)}"
    return prepare("cub", key, lambda: build(source, splits, crop, size))


def build(source: Path, splits: str, crop: str, size: int) -> dict[str, Split]:
    """The three splits, with the pictures in `source`."""
    edges = boxes(source) if crop == "box" else {}

    def read(name: str, file: IO[bytes]) -> np.ndarray | None:
        if crop == "none":
            return decode(file, size, False)
        box = edges[PICTURE.sub(r"\1", name)]
        return decode(file, size, False, partial(stretched, box=box, size=size))

    pictures = read_pictures(source, PICTURE, read, COUNT)
    class_of = {name: PICTURE.sub(r"\2", name) for name in pictures}
    numbered = {int(name[:3]): name for name in class_of.values()}
    listed = {
        split: [numbered.get(number, f"{number:03}") for number in numbers]
        for split, numbers in LISTS[splits].items()
    }
    return picture_splits(by_class(listed, class_of, source), pictures.pop)


def boxes(source: Path) -> dict[str, tuple[float, float, float, float]]:
    """Left, upper, right and lower edge of the bird, by class folder and file name."""
    names, sides = (
        dict(line.split(maxsplit=1) for line in text.splitlines())
        for text in read_texts(source, "images.txt", "bounding_boxes.txt")
    )
    found = {}
    for number, text in sides.items():
        x, y, width, height = map(float, text.split())
        found[names[number]] = (x, y, x + width, y + height)
    return found
