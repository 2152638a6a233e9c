"""Omniglot: handwritten characters of fifty alphabets, each drawn once by twenty people.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
induction", Science 350, 2015. Images are read straight out of the authors' zip files.
"""

import io
import json
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from metarun.data.archives import is_beside
from metarun.data.download import download
from metarun.data.split import Split, stack_classes
from metarun.data.store import DataSet, data_folder, prepare
from metarun.errors import UserError
from metarun.files import sha256_of
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
# five that Vinyals et al. chose, which are all of the background set. "minimal" is ours:
# the authors' first small background set against what only the second one has.
LISTS = json.loads(Path(__file__).with_name("omniglot_splits.json").read_text(encoding="utf-8"))


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
    key = f"format {FORMAT}, {options}, {', '.join(map(sha256_of, paths))}"
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
    chosen: dict[str, dict[str, tuple[int, int]]] = LISTS["splits"][splits]
    wanted = {
        f"{alphabet}/character{number:02}"
        for alphabets in chosen.values()
        for alphabet, (first, last) in alphabets.items()
        for number in range(first, last + 1)
    }
    drawings: dict[str, Tensor] = {}
    for path in paths:  # the two small archives share two alphabets, which are read once
        new = {c: files for c, files in characters(path).items() if c in wanted - set(drawings)}
        drawings |= read_drawings(path, new, size)

    return {
        split: as_classes(drawings, alphabets, rotations) for split, alphabets in chosen.items()
    }


def as_classes(
    drawings: dict[str, Tensor],
    alphabets: dict[str, tuple[int, int]],
    rotations: bool,
    mirrors: bool = False,
) -> Split:
    """A split of the alphabets, of each the characters from the first to the last number given.

    With `rotations`, each quarter turn of a character is a class; with `mirrors`, so is the mirror
    image of each of these.
    """
    turns = TURNS if rotations else TURNS[:1]
    looks = list(product(turns, (False, True) if mirrors else (False,)))
    images: dict[str, Tensor] = {}
    superclass_of: dict[str, str] = {}
    for alphabet, (first, last) in alphabets.items():
        for number in range(first, last + 1):
            character = f"{alphabet}/character{number:02}"
            upright = drawings[character][:, None]
            for turn, mirrored in looks:
                ending = f"/rot{turn:03}" if rotations else ""
                ending += "/mirrored" if mirrored else ""
                image = upright.flip(3) if mirrored else upright
                images[character + ending] = image.rot90(turn // 90, dims=(2, 3))
                superclass_of[character + ending] = alphabet + ending
    return stack_classes("images", images, superclass_of)


def characters(path: Path) -> dict[str, list[str]]:
    """The image files of each character in the archive; UserError when it is not complete."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, str(error)) from None
    files: dict[str, list[str]] = {}
    for name in names:
        top, _, inner = name.partition("/")
        if top == path.stem and inner.endswith(".png") and not is_beside(name):
            files.setdefault(inner.rpartition("/")[0], []).append(name)
    for alphabet, count in LISTS["archives"][path.stem].items():
        for number in range(1, count + 1):
            character = f"{alphabet}/character{number:02}"
            found = len(files.get(character, []))
            if found != DRAWINGS:
                raise damaged(path, f"{character} has {found} drawings of {DRAWINGS}")
    return files


def read_drawings(path: Path, files: dict[str, list[str]], size: int) -> dict[str, Tensor]:
    """Every character's drawings, uint8 [20, size, size]; UserError when one cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive, ThreadPoolExecutor() as pool:

            def read(names: list[str]) -> Tensor:
                return torch.from_numpy(np.stack([decode(archive.read(n), size) for n in names]))

            decoded = track(pool.map(read, files.values()), f"Reading {path.name}", len(files))
            return dict(zip(files, decoded, strict=True))
    except (zipfile.BadZipFile, zlib.error, OSError, SyntaxError) as error:  # the last is PIL's
        raise damaged(path, str(error)) from None


def decode(png: bytes, size: int) -> np.ndarray:
    """One drawing, uint8 [size, size], 255 = ink; the files are black on white."""
    image = Image.open(io.BytesIO(png)).convert("L")
    return 255 - np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def damaged(path: Path, reason: str) -> UserError:
    """What to do about an archive that cannot be used."""
    return UserError(
        f"{path} is damaged or not complete ({reason}): "
        "replace it, or remove it to have it downloaded again"
    )
