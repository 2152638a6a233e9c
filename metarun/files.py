"""Files that are there whole or not at all, and one line where they cannot be written."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from metarun.errors import UserError

TEMPORARY = re.compile(r".+\.[0-9a-f]{8}\.tmp")


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block has ended well.

    It is on the disk by then. Raises UserError if it cannot be written; `path` is then as it was.
    """
    temporary = temporary_name(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A file beside `path` that nobody else writes, whatever the machine."""
    return path.with_name(f"{path.name}.{token_hex(4)}.tmp")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, with the path, for what the system refuses within this block."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def sweep(*folders: Path) -> None:
    """Remove what `whole` has left in the folders in processes that were killed."""
    for folder in folders:
        with suppress(OSError):  # no such folder, or one that is only read
            for path in folder.iterdir():
                if TEMPORARY.fullmatch(path.name):
                    path.unlink()


def sha256_of(path: Path) -> str:
    """SHA-256 of the file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
