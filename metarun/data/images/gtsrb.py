"""German traffic signs: 43 kinds, 39,209 pictures, for testing only.

Stallkamp, Schlipsing, Salmen and Igel, "Man vs. computer: Benchmarking machine learning algorithms
for traffic sign recognition", Neural Networks 32, 2012. Meta-Dataset keeps all classes for
meta-test (Triantafillou et al. 2020, arXiv:1903.03096), and takes their training pictures.
"""

import re
from dataclasses import replace
from pathlib import Path

import PIL

from metarun.data.archives import data_root, find, fingerprint, read_pictures
from metarun.data.class_lists import by_class, read_list
from metarun.data.download import download
from metarun.data.pictures import decode, picture_splits
from metarun.data.split import Split
from metarun.data.store import DataSet, prepare

FORMAT = "1"  # of the images below; a change to them needs a new number
ARCHIVE = "GTSRB_Final_Training_Images.zip"
URLS = (
    f"https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/{ARCHIVE}",
    f"https://benchmark.ini.rub.de/Dataset/{ARCHIVE}",
)
MD5 = "f33fd80ac59bff73c82d25ab499e03a3"
SMALLER = "GTSRB-Training_fixed.zip"  # torchvision's: an earlier edition, 26,640 of the pictures
FOLDERS = ("Final_Training/Images/00042", "Images/00042", "Training/00042")
PICTURE = re.compile(r"(?:.*/)?(\d{5})/[^/.][^/]*\.ppm")
COUNT = 39209
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's: nothing here is to train on


def load(root: str | None, size: int) -> DataSet:
    """Traffic signs, the middle squares, uint8 [N, 3, size, size]; 0 / 0 / 43 classes.

    Read from the archive of the final training pictures, a folder of them, or torchvision's smaller
    edition; downloaded if none is below `root`. Raises UserError when that fails, or a class has no
    pictures.
    """
    folder = find(data_root(root), *FOLDERS)
    source = folder.parent if folder else find(data_root(root), ARCHIVE, SMALLER)
    if source is None:
        source = data_root(root) / "gtsrb" / ARCHIVE
        download(URLS, source, MD5)
    key = f"format {FORMAT}, size {size}, Pillow {PIL.__version__}, {fingerprint(source)}"
    return prepare("gtsrb", key, lambda: build(source, size))


def build(source: Path, size: int) -> dict[str, Split]:
    """The three splits, the first two empty, with the pictures in `source`."""
    listed = read_list("gtsrb")
    named = {name[:2]: name for name in listed["test"]}  # 00.Speed limit (20km/h)
    pictures = read_pictures(source, PICTURE, lambda _, file: decode(file, size, False), COUNT)
    class_of = {name: named.get(PICTURE.sub(r"\1", name)[-2:], "") for name in pictures}
    splits = picture_splits(by_class(listed, class_of, source), pictures.pop)
    return {split: replace(content, mean=MEAN, std=STD) for split, content in splits.items()}
