"""Oxford's 102 flowers: 8,189 pictures.

Nilsback and Zisserman, "Automated Flower Classification over a Large Number of Classes", 2008. The
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
from metarun.errors import UserError

FORMAT = "1"  # of the images below; a change to them needs a new number
URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
ARCHIVE, LABELS = "102flowers.tgz", "imagelabels.mat"
MD5 = {ARCHIVE: "52808999861908f626f3c1f4e79d11fa", LABELS: "e0620be6f572b9609742df49c70aed4d"}
FOLDER = "flowers-102"  # torchvision's too
PICTURE = re.compile(r"(?:.*/)?image_(\d{5})\.jpg")
COUNT = 8189


def load(root: str | None, size: int) -> DataSet:
    """Flowers, the middle squares, uint8 [N, 3, size, size]; 71 / 15 / 16 classes.

    Read from the archive, or the folder jpg/ that it holds, and imagelabels.mat; downloaded if they
    are not below `root`. Raises UserError when that fails, or a class has no pictures.
    """
    first = find(data_root(root), "jpg/image_00001.jpg")
    source = first.parent if first else find(data_root(root), ARCHIVE)
    source = source or data_root(root) / FOLDER / ARCHIVE
    labels = find(data_root(root), LABELS) or data_root(root) / FOLDER / LABELS
    for path in (source, labels):
        if not path.exists():
            download(f"{URL}/{path.name}", path, MD5[path.name])
    options = f"size {size}, Pillow {PIL.__version__}"
    key = f"format {FORMAT}, {options}, {fingerprint(source, labels)}"
    return prepare("vgg_flower", key, lambda: build(source, labels, size))


def build(source: Path, labels: Path, size: int) -> dict[str, Split]:
    """The three splits, with the pictures in `source`."""
    listed = read_list("vgg_flower")
    named = {int(name[:3]): name for names in listed.values() for name in names}
    kinds = dict(enumerate(read_labels(labels), start=1))
    pictures = read_pictures(source, PICTURE, lambda _, file: decode(file, size, False), COUNT)
    class_of = {name: named.get(kinds.get(number(name), 0), "") for name in pictures}
    return picture_splits(by_class(listed, class_of, source), pictures.pop)


def read_labels(path: Path) -> list[int]:
    """The class of each picture, from 1. Raises UserError when the file is damaged."""
    from scipy.io import loadmat

    try:
        labels: list[int] = loadmat(path)["labels"].ravel().tolist()
    except Exception as error:  # what SciPy raises for other content depends on its bytes
        raise UserError(f"cannot read {path} ({error!r}): replace it") from None
    return labels


def number(name: str) -> int:
    """Which picture this is: image_00001.jpg is the first."""
    return int(PICTURE.sub(r"\1", name))
