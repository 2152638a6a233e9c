"""Data sets as they are published, a folder, a zip or a tar: found, and read without unpacking.

Paths within an archive only name what was read from it: nothing is written to them.
"""

import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from metarun.data.one_form import one_form, path_in_one_form
from metarun.data.pictures import in_order
from metarun.data.store import data_folder
from metarun.data.told import doubt
from metarun.errors import UserError
from metarun.tracking.progress import track

DEPTH = 2  # folders between data.root and what is looked for
# What reading a damaged archive raises, or (the last two) one that is encrypted or oddly packed.
DAMAGE = (
    *(OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
    *(RuntimeError, NotImplementedError),
)
AHEAD = 64  # files read that may wait to be decoded
BUFFER = 1 << 20  # bytes of a tar read at once


def data_root(root: str | None) -> Path:
    """The folder that data.root names."""
    return Path(root).expanduser() if root else data_folder()


def find(root: Path, *names: str) -> Path | None:
    """The first of `names`, a file or a folder, in `root` or at most two folders below it."""
    for name in names:
        for depth in range(DEPTH + 1):
            if found := sorted(root.glob("*/" * depth + name)):
                return found[0]
    return None


def fingerprint(*sources: Path) -> str:
    """SHA-256 of the names, sizes and times of change of the files that are at `sources`."""
    digest = hashlib.sha256()
    for source in sources:
        for name, path in files(source) if source.is_dir() else [(source.name, source)]:
            about = path.stat()
            digest.update(json.dumps([name, about.st_size, about.st_mtime_ns]).encode())
    return digest.hexdigest()


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below `folder` with its path from there, in sorted order."""
    for place, inner, names in os.walk(folder, followlinks=True):
        inner.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.is_file():  # not a broken link
                yield path.relative_to(folder).as_posix(), path


def members(source: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in `source` whose whole name `wanted` matches.

    Names are paths within `source`, with slashes, in one form of Unicode. What macOS puts beside
    files is left out. Raises UserError when it cannot be read, or two names are the same.
    """
    seen: dict[str, str] = {}

    def named(path: str) -> str | None:
        """The path in one form, if it is wanted."""
        if is_beside(path) or not wanted.fullmatch(one_form(path)):
            return None
        try:
            return path_in_one_form(path, seen)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    try:
        if source.is_dir():
            for path, file in files(source):
                if name := named(path):
                    yield name, file.read_bytes()
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for path in archive.namelist():
                    if name := named(path):
                        yield name, archive.read(path)
        else:
            with tarfile.open(source, "r|*", bufsize=BUFFER) as tape:
                for member in tape:
                    if member.isfile() and (name := named(member.name)):
                        content = tape.extractfile(member)
                        assert content is not None  # it is one
                        yield name, content.read()
    except DAMAGE as error:
        raise UserError(
            f"{source} is damaged or not complete ({error}): "
            "replace it, or remove it to have it downloaded again"
        ) from None


def is_beside(path: str) -> bool:
    """Whether macOS has put the file beside another: ._1.jpg, or all in __MACOSX."""
    *folders, name = path.split("/")
    return name.startswith("._") or "__MACOSX" in folders


def read_pictures(
    source: Path,
    wanted: re.Pattern[str],
    read: Callable[[str, IO[bytes]], np.ndarray | None],
    published: int,
) -> dict[str, np.ndarray | None]:
    """What `read(name, file)` makes of each file in `source` that is `wanted`, by its name.

    `read` is called in threads while the archive goes by, so that its pictures are never in memory
    all at once as they were packed. `published` is how many pictures the data set has; there is a
    warning when some are not there.
    """

    def named(member: tuple[str, bytes]) -> tuple[str, np.ndarray | None]:
        name, content = member
        return name, read(name, io.BytesIO(content))

    pool = ThreadPoolExecutor()
    try:
        found = track(members(source, wanted), f"Reading pictures of {source.name}", published)
        pictures = dict(in_order(pool, named, found, AHEAD))
    finally:
        pool.shutdown(cancel_futures=True)
    if len(pictures) < published:
        doubt(f"{source} has only {len(pictures)} of {published} pictures")
    return pictures


def read_texts(source: Path, *names: str) -> list[str]:
    """The texts of the files of these names, in whatever folders of `source` they are.

    Raises UserError when one is not there.
    """
    wanted = re.compile(rf"(?:.*/)?({'|'.join(map(re.escape, names))})")
    found: dict[str, str] = {}
    for path, content in members(source, wanted):
        found[path.rpartition("/")[2]] = content.decode()
        if len(found) == len(names):  # the rest of the archive need not be unpacked
            break
    for name in names:
        if name not in found:
            raise UserError(f"{source} has no {name}: it is not complete, replace it")
    return [found[name] for name in names]
