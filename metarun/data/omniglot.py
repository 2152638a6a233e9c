"""Omniglot: handwritten characters of fifty alphabets, each drawn once by twenty people.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
induction", Science 350, 2015. Images are read straight out of the authors' zip files.
"""

import hashlib
import io
import json
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from metarun.data.download import download
from metarun.data.split import Split, stack_classes
from metarun.data.store import DataSet, data_folder, prepare
from metarun.errors import UserError
from metarun.tracking.progress import track

FORMAT = "1"  # of the images below; a change to them needs a new number
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
    "images_background_small1": "e704a628b5459e08445c13499850abc4",
    "images_background_small2": "b75a71a51d3b13f821f212756fe481fd",
}
ARCHIVES = {
    "vinyals": ("images_background", "images_evaluation"),
    "lake": ("images_background", "images_evaluation"),
    "minimal": ("images_background_small1", "images_background_small2"),
}
FOLDERS = ("", "omniglot", "omniglot-py")  # within root; the last is torchvision's
DRAWINGS = 20  # of each character
TURNS = (0, 90, 180, 270)  # degrees, counter-clockwise

# "archives": the alphabets of each archive with their number of characters.
# "splits": the first and last character of each alphabet in each split. "vinyals" is the split of
# Vinyals et al. 2016. "lake" tests on the authors' evaluation set; its validation alphabets are the
# five that Vinyals et al. chose, which are all of the background set. "minimal" is ours, over the
# authors' two small background sets; test alphabets are of no kin to the training ones.
LISTS = json.loads(Path(__file__).with_name("omniglot_splits.json").read_text())

# first and last character of each alphabet
Characters = dict[str, tuple[int, int]]


def load(root: str | None, splits: str, rotations: bool, size: int) -> DataSet:
    """Omniglot, uint8 [N, 1, size, size], 255 = ink; 20 drawings a class.

    Classes are `Greek/character01` with the alphabet as superclass; with `rotations`,
    `Greek/character01/rot090` with `Greek/rot090`, so that a task within a superclass has one
    orientation. Images are not normalised (mean 0, std 1), as in Snell et al. and Finn et al.
    Raises UserError when an archive is not there and cannot be fetched, or is damaged.
    """
    if splits not in ARCHIVES:
        raise UserError(f"data.splits={splits} is not one of {', '.join(ARCHIVES)}")
    if size < 1:
        raise UserError(f"data.size={size}: images need at least one pixel, the papers use 28")
    paths = [find(Path(root) if root else data_folder(), name) for name in ARCHIVES[splits]]
    options = f"{splits}, rotations {rotations}, size {size}, Pillow {PIL.__version__}"
    key = f"format {FORMAT}, {options}, {', '.join(map(file_sha256, paths))}"
    return prepare("omniglot", key, lambda: build(paths, splits, rotations, size))


def find(root: Path, name: str) -> Path:
    """The archive `name`.zip below `root`, downloaded into root/omniglot if it is nowhere there."""
    root = root.expanduser()
    for folder in FOLDERS:
        path = root / folder / f"{name}.zip"
        if path.is_file():
            return path
    # Next to torchvision's folder or in ours, but not twice when root is that folder already.
    path = (root if root.name in FOLDERS else root / "omniglot") / f"{name}.zip"
    download(f"{URL}/{name}.zip", path, MD5[name])
    return path


def build(paths: list[Path], splits: str, rotations: bool, size: int) -> dict[str, Split]:
    """The three splits, read from the archives at `paths`."""
    archive_of: dict[str, Path] = {}
    drawings: dict[str, list[str]] = {}
    for path in paths:
        alphabets = LISTS["archives"][path.stem]
        drawings |= complete(path, alphabets)
        archive_of |= dict.fromkeys(alphabets, path)

    chosen: dict[str, Characters] = LISTS["splits"][splits]
    wanted: dict[str, list[str]] = {path: [] for path in map(str, paths)}
    raise NotImplementedError
