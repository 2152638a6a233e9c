"""FGVC-Aircraft: 100 variants of aircraft, 100 pictures each.

Maji, Rahtu, Kannala, Blaschko and Vedaldi, "Fine-Grained Visual Classification of Aircraft", 2013,
arXiv:1306.5151. The classes are split as in Meta-Dataset (Triantafillou et al. 2020,
arXiv:1903.03096).
"""

import re
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from PIL import Image

from metarun.data.archives import data_root, find, fingerprint, read_pictures, read_texts
from metarun.data.class_lists import by_class, read_list
from metarun.data.download import download
from metarun.data.pictures import decode, picture_splits, stretched
from metarun.data.split import Split
from metarun.data.store import DataSet, prepare

FORMAT = "1"  # of the images below; a change to them needs a new number
ARCHIVE = "fgvc-aircraft-2013b.tar.gz"
URL = f"https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/{ARCHIVE}"
PICTURE = re.compile(r"(?:.*/)?(\d+)\.jpg")
TABLES = (
    *("images_variant_trainval.txt", "images_variant_test.txt"),
    *("images_manufacturer_trainval.txt", "images_manufacturer_test.txt"),
    "images_box.txt",
)
COUNT = 10000
BANNER = 20  # pixels at the bottom of every picture: who took it


def load(root: str | None, crop: str, size: int) -> DataSet:
    """Aircraft, uint8 [N, 3, size, size]; 70 / 15 / 15 classes, superclasses the manufacturers.

    `crop` is "box", the aircraft's bounding box made square, or "none", the middle square of the
    picture without its banner. Read from the archive or the folder data/ that it holds; downloaded
    if neither is below `root`. Raises UserError when that fails, or a class has no pictures.
    """
    table = find(data_root(root), "data/images_variant_test.txt", "images_variant_test.txt")
    source = table.parent if table else find(data_root(root), ARCHIVE)
    if source is None:
        source = data_root(root) / ARCHIVE
        download(URL, source, md5=None)
    options = f"crop {crop}, size {size}, Pillow {PIL.__version__}"
    key = f"format {FORMAT}, {options}, {fingerprint(source)}"
    return prepare("aircraft", key, lambda: build(source, crop, size))


def build(source: Path, crop: str, size: int) -> dict[str, Split]:
    """The three splits, with the pictures in `source`."""
    texts = read_texts(source, *TABLES)  # of each picture, what follows its number
    parts = [dict(line.split(maxsplit=1) for line in text.splitlines()) for text in texts]
    variants, makers, boxes = parts[0] | parts[1], parts[2] | parts[3], parts[4]

    def read(name: str, file: IO[bytes]) -> np.ndarray | None:
        if crop == "none":
            return decode(file, size, False, without_banner)
        left, upper, right, lower = map(int, boxes[number(name)].split())
        box = (left, upper, right, lower)
        return decode(file, size, False, partial(stretched, box=box, size=size))

    pictures = read_pictures(source, PICTURE, read, COUNT)
    class_of = {name: variants.get(number(name), "") for name in pictures}
    maker_of = {variant: makers[picture] for picture, variant in variants.items()}
    return picture_splits(
        by_class(read_list("aircraft"), class_of, source),
        pictures.pop,
        lambda classes: {name: maker_of[name] for name in classes},
    )


def number(name: str) -> str:
    """What the tables call this picture: data/images/0034309.jpg is 0034309."""
    return PICTURE.sub(r"\1", name)


def without_banner(image: Image.Image) -> Image.Image:
    """The picture without its lowest rows."""
    return image.crop((0, 0, image.width, image.height - BANNER))
