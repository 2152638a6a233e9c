"""Folders that are made before it is known whether there will be something in them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def none_left_empty(folder: Path) -> Iterator[None]:
    """Within this block the folder, and those above it, may be made; what is new and empty at its
    end is removed again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # one that is not empty, or was never made
                path.rmdir()
