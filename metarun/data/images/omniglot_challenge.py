"""The Omniglot challenge: twenty fixed runs of 20-way one-shot classification within an alphabet.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
induction", Science 350, 2015; with the small background sets, "The Omniglot challenge: a 3-year
progress report", 2019, arXiv:1902.03477. The characters of a run were drawn by one person for
training and by another for the test.
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import PIL
import torch
from torch import Tensor

from metarun.data import archives
from metarun.data.download import download
from metarun.data.images import omniglot
from metarun.data.split import Split, stack_classes
from metarun.data.store import DataSet, prepare
from metarun.episodes import NamedTasks, labelled
from metarun.errors import UserError
from metarun.files import sha256_of

FORMAT = "1"  # of the images below; a change to them needs a new number
ARCHIVE = "all_runs.zip"
URL = f"{omniglot.URL}/one-shot-classification/{ARCHIVE}"  # published without a checksum
RUNS = [f"run{number:02}" for number in range(1, 21)]
CLASSES = [f"training/class{number:02}.png" for number in range(1, 21)]
ITEMS = [f"test/item{number:02}.png" for number in range(1, 21)]
LABELS = "class_labels.txt"
FILE = re.compile(
    r"(?:(?:.*/)?(run\d\d)/)?((?:training/class|test/item)\d\d\.png|class_labels\.txt)"
)
BACKGROUNDS = {
    "original": "images_background",
    "small1": "images_background_small1",
    "small2": "images_background_small2",
}
# Alphabets that the model is chosen by. Of the original set, those of splits=lake; of the others,
# the smallest with 20 characters, so that most remain to train on.
VALIDATION = {
    "original": (*omniglot.LISTS["splits"]["lake"]["val"],),
    "small1": ("Early_Aramaic",),
    "small2": ("Greek",),
}

Run = dict[str, bytes]  # its files, by their path in it


class Challenge(DataSet):
    """Classes `Greek/character01` to train on and validate, `run01/class01` to test on.

    A class of the test has two drawings, that of training and that of the test.
    """

    def own_tasks(self, split: str) -> NamedTasks | None:
        """The runs, which are all that a test consists of; None for the other splits."""
        if split != "test":
            return None
        rows = torch.arange(len(RUNS) * len(CLASSES) * 2).view(len(RUNS), len(CLASSES), 2)
        return NamedTasks(tuple(RUNS), labelled(rows.mT.flatten(1), way=len(CLASSES), shot=1))


def load(root: str | None, background: str, rotations: bool, mirrors: bool, size: int) -> Challenge:
    """The runs and one of the three background sets, uint8 [N, 1, size, size], 255 = ink.

    `rotations` makes a class of each quarter turn of a character that is trained on, and `mirrors`
    of the mirror image of each of these; validation and test are as they were drawn. Every drawing
    is made smaller as in data=omniglot. Raises UserError when an archive is not there and cannot be
    fetched, or is damaged.
    """
    if background not in BACKGROUNDS:
        raise UserError(f"data.background={background} is not one of {', '.join(BACKGROUNDS)}")
    if size < 1:
        raise UserError(f"data.size={size}: images need at least one pixel")
    folder, name = archives.data_root(root), BACKGROUNDS[background]
    path = archives.find(folder, f"{name}.zip") or omniglot.find(folder, name)
    runs = find_runs(folder)
    about = sha256_of(runs[0]) if runs[0].is_file() else archives.fingerprint(*runs)
    looks = f"rotations {rotations}, mirrors {mirrors}"
    options = f"{background}, {looks}, size {size}, Pillow {PIL.__version__}"
    key = f"format {FORMAT}, {options}, {sha256_of(path)}, {about}"

    def build() -> dict[str, Split]:
        test = test_split(runs, size)  # first: damage is told before the larger archive is read
        return {**background_splits(path, background, rotations, mirrors, size), "test": test}

    prepared = prepare("omniglot_challenge", key, build)
    return Challenge(prepared.name, prepared.files)


def find_runs(root: Path) -> list[Path]:
    """The archive below `root`, or the folders it was unpacked to; downloaded if neither is there.

    Where it was unpacked, run01 stands in a folder all_runs or anywhere that `archives.find` looks.
    """
    if path := archives.find(root, ARCHIVE):
        return [path]
    if first := archives.find(root, "all_runs/run01", "run01"):
        return sorted(first.parent.glob("run[0-9][0-9]"))
    path = (root if root.name in omniglot.FOLDERS else root / "omniglot") / ARCHIVE
    download(URL, path, md5=None)
    return [path]


def background_splits(
    path: Path, background: str, rotations: bool, mirrors: bool, size: int
) -> dict[str, Split]:
    """The alphabets to train on and those to validate by, of the archive at `path`."""
    counts: dict[str, int] = omniglot.LISTS["archives"][BACKGROUNDS[background]]
    alphabets = {alphabet: (1, count) for alphabet, count in counts.items()}
    drawings = omniglot.read_drawings(path, omniglot.characters(path), size)
    val = {alphabet: alphabets.pop(alphabet) for alphabet in VALIDATION[background]}
    return {
        "train": omniglot.as_classes(drawings, alphabets, rotations, mirrors),
        "val": omniglot.as_classes(drawings, val, rotations=False),
    }


def test_split(sources: list[Path], size: int) -> Split:
    """A class of every character of every run: its drawing of training, then that of the test."""
    runs: dict[str, Run] = {name: {} for name in RUNS}
    for run, name, content in run_files(sources):
        runs.get(run, {})[name] = content
    images: dict[str, Tensor] = {}
    superclass_of = {}
    for run, files in runs.items():
        where = sources[0] if sources[0].is_file() else sources[0].parent / run
        for name in (*CLASSES, *ITEMS, LABELS):
            if name not in files:
                raise omniglot.damaged(where, f"{run}/{name} is missing")
        try:
            item_of = {c: item for item, c in labels(run, files[LABELS].decode()).items()}
            for c in CLASSES:
                pair = [torch.from_numpy(omniglot.decode(files[f], size)) for f in (c, item_of[c])]
                name = f"{run}/{Path(c).stem}"
                images[name], superclass_of[name] = torch.stack(pair)[:, None], run
        except (OSError, SyntaxError, ValueError, zlib.error) as error:  # the first two are PIL's
            raise omniglot.damaged(where, f"{run}: {error}") from None
    return stack_classes("images", images, superclass_of)


def run_files(sources: list[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Run, path in the run and content of every file of the runs: run01, test/item01.png, …"""
    for source in sources:
        for name, content in archives.members(source, FILE):
            found = FILE.fullmatch(name)
            assert found is not None  # it is what was wanted
            yield found[1] or source.name, found[2], content


def labels(run: str, text: str) -> dict[str, str]:
    """The drawing of training that each one of the test shows again, by their paths in the run.

    A line of `text` reads `run01/test/item01.png run01/training/class08.png`. Raises ValueError
    unless each of the twenty items has a class of its own.
    """
    class_of = {}
    for line in filter(str.strip, text.splitlines()):
        item, training = (path.removeprefix(f"{run}/") for path in line.split())
        class_of[item] = training
    if sorted(class_of) != ITEMS or sorted(class_of.values()) != CLASSES:
        raise ValueError(f"{LABELS} does not give each of the 20 test drawings a class of its own")
    return class_of
