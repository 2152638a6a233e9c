"""Files that are whole or not there, and what is said where they cannot be."""

import errno
import os

import pytest

from metarun import files
from metarun.errors import UserError


def no_room(*_):
    """What the system says on a full disk, without the file's name."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_written_takes_its_place(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.whole(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    """And says which file has no room, in one line; nothing half-written stays."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    monkeypatch.setattr(files.os, call, no_room)
    with (
        pytest.raises(UserError, match=rf"^cannot write {path}: No space left"),
        files.whole(path) as file,
    ):
        file.write(b"after")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(UserError, match=rf"^cannot write {path}: "), files.whole(path):
        pass


def test_an_error_of_the_block_is_its_own(tmp_path):
    with pytest.raises(KeyError), files.whole(tmp_path / "a.txt"):
        raise KeyError("mine")
    assert os.listdir(tmp_path) == []


def test_only_our_own_leftovers_are_swept(tmp_path):
    left = files.temporary_name(tmp_path / "results.json")
    for path in (left, tmp_path / "mine.tmp", tmp_path / "results.json"):
        path.touch()
    files.sweep(tmp_path, tmp_path / "not there")
    assert sorted(os.listdir(tmp_path)) == ["mine.tmp", "results.json"]
