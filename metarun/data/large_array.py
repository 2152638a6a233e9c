"""An array that may be larger than memory."""

import shutil
import tempfile

import numpy as np

from metarun.data.store import data_folder
from metarun.errors import UserError

IN_MEMORY = 2 << 30  # bytes up to which an array is an ordinary one


def large_array(shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes to be filled, uint8 [*shape]; a large one is kept in a nameless file.

    The file is in the cache folder, and gone with the array. Raises UserError when the disk has no
    room for it and for the prepared data that will be made of it.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    folder = data_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise UserError(
            f"{folder} has {free >> 30} GiB free, but preparing needs {2 * size / 2**30:.0f}: "
            "make room, or set METARUN_DATA to a folder with more"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
