import struct

import pytest

from metarun.data.matlab import read_numbers
from metarun.errors import UserError
from tests.data import layouts


def test_compressed(tmp_path):
    path = tmp_path / "labels.mat"
    path.write_bytes(layouts.matlab([77, 1, 102, 5, 5]))
    assert read_numbers(path).tolist() == [77, 1, 102, 5, 5]


def test_short_elements(tmp_path):
    """Up to four bytes stand within their tag, as SciPy and MATLAB write short names and arrays."""

    def short(kind, content):
        return struct.pack("<HH", kind, len(content)) + content.ljust(4, b"\0")

    inner = struct.pack("<IIII", 6, 8, 9, 0) + struct.pack("<IIii", 5, 8, 1, 3)
    inner += short(1, b"x") + short(2, bytes([1, 2, 3]))
    path = tmp_path / "labels.mat"
    path.write_bytes(bytes(128) + struct.pack("<II", 14, len(inner)) + inner)
    assert read_numbers(path).tolist() == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", bytes(128), bytes(200), b"<html>" * 60])
def test_other_content_is_told(tmp_path, content):
    path = tmp_path / "labels.mat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.mat"):
        read_numbers(path)
