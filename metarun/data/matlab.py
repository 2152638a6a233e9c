"""The numbers in a MATLAB file, as far as one array of them goes; for the rest there is SciPy.

"MAT-File Level 5 File Format", The MathWorks, 2019: a header, then elements of a kind and a size.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metarun.errors import UserError

HEADER = 128  # bytes
MATRIX, COMPRESSED = 14, 15  # kinds of elements
NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}


def read_numbers(path: Path) -> np.ndarray:
    """The first array of the file, flat, column by column; UserError when it has none."""
    try:
        kind, content = next(elements(path.read_bytes()[HEADER:]))
        if kind == COMPRESSED:
            kind, content = next(elements(zlib.decompress(content)))
        if kind != MATRIX:
            raise ValueError(f"an element of kind {kind}")
        _flags, _shape, _name, (kind, numbers) = elements(content)
        return np.frombuffer(numbers, NUMBERS[kind])
    except (ValueError, KeyError, StopIteration, struct.error, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error!r}): replace it") from None


def elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of one element after the other."""
    while content:
        kind, size = struct.unpack_from("<II", content)
        start = 8
        if small := kind >> 16:  # up to four bytes stand in the size's place
            kind, size, start = kind & 0xFFFF, small, 4
        yield kind, content[start : start + size]
        content = content[-(-(start + size) // 8) * 8 :]
