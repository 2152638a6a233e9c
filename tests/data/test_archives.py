import io
import re
import tarfile

import pytest

from metarun.data.archives import find, fingerprint, members, read_pictures, read_texts
from metarun.errors import UserError
from tests.data import layouts

FILES = {"set/a/1.txt": b"one", "set/b/2.txt": b"two", "set/b/3.bin": bytes(5000)}
TEXT = re.compile(r".*\.txt")


@pytest.mark.parametrize("form", [layouts.as_folder, layouts.as_tar, layouts.as_zip])
def test_members(tmp_path, form):
    """The same files, whatever they are packed in."""
    source = form(FILES, tmp_path / "source")
    assert dict(members(source, TEXT)) == {"set/a/1.txt": b"one", "set/b/2.txt": b"two"}


def test_links_and_foreign_paths_in_a_tar_are_only_names(tmp_path):
    """A link is not followed, and nothing is written."""
    (tmp_path / "secret.txt").write_text("mine")
    path = tmp_path / "sly.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        archive.addfile(link)
        outside = tarfile.TarInfo("../../outside.txt")
        outside.size = 3
        archive.addfile(outside, io.BytesIO(b"out"))
    before = sorted(tmp_path.rglob("*"))
    assert dict(members(path, TEXT)) == {"../../outside.txt": b"out"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", [layouts.as_tar, layouts.as_zip])
def test_a_broken_archive_is_told(tmp_path, form):
    source = form(FILES | {"set/c.bin": bytes(range(256)) * 900}, tmp_path / "source")
    source.write_bytes(source.read_bytes()[:-700])
    with pytest.raises(UserError, match="damaged or not complete"):
        list(members(source, TEXT))


def test_texts(tmp_path):
    source = layouts.as_tar(FILES, tmp_path / "source")
    assert read_texts(source, "2.txt", "1.txt") == ["two", "one"]
    with pytest.raises(UserError, match=r"has no 4\.txt"):
        read_texts(source, "1.txt", "4.txt")


def test_pictures_are_read_in_threads_and_all_there(tmp_path, capsys):
    """More than are ever waiting; a warning when some of the published are missing."""
    files = {f"{i}.txt": bytes([i]) for i in range(200)}
    source = layouts.as_tar(files, tmp_path / "source")
    read = read_pictures(source, TEXT, lambda name, file: file.read() + name.encode(), 200)
    assert read == {name: content + name.encode() for name, content in files.items()}
    assert not capsys.readouterr().out
    read_pictures(source, TEXT, lambda name, file: file.read(), 201)
    assert "only 200 of 201 pictures" in capsys.readouterr().out


def test_an_error_while_reading_a_picture_comes_out(tmp_path):
    source = layouts.as_zip({"1.txt": b""}, tmp_path / "source")
    with pytest.raises(ZeroDivisionError):
        read_pictures(source, TEXT, lambda name, file: 1 / 0, 1)


def test_found_two_folders_below_at_most(tmp_path):
    deep = tmp_path / "a" / "b" / "c" / "wanted"
    deep.mkdir(parents=True)
    assert find(tmp_path, "wanted") is None
    assert find(tmp_path / "a", "wanted") == deep
    (tmp_path / "a" / "wanted").touch()
    assert find(tmp_path, "other", "wanted") == tmp_path / "a" / "wanted", "the nearest"
    assert find(tmp_path / "nowhere", "wanted") is None


def test_fingerprint(tmp_path):
    """Of what is there: another size, another name or another time is another source."""
    folder = layouts.as_folder(FILES, tmp_path / "set")
    first = fingerprint(folder)
    assert fingerprint(folder) == first
    (folder / "set" / "a" / "1.txt").write_bytes(b"ones")
    assert fingerprint(folder) != first


@pytest.mark.parametrize("form", [layouts.as_folder, layouts.as_tar, layouts.as_zip])
def test_what_was_packed_on_a_mac(tmp_path, form):
    """Letters taken apart are composed again, and what lies beside files is no file."""
    files = {"set/cafe\u0301/1.txt": b"one", "set/cafe\u0301/2.txt": b"two"}
    beside = {"__MACOSX/set/cafe\u0301/._1.txt": b"", "set/cafe\u0301/._2.txt": b""}
    source = form(files | beside, tmp_path / "source")
    composed = re.compile(r"set/caf\u00e9/\d\.txt|.*_.*")
    wanted = {"set/caf\u00e9/1.txt": b"one", "set/caf\u00e9/2.txt": b"two"}
    assert dict(members(source, composed)) == wanted
    source = form({**files, "set/caf\u00e9/3.txt": b"three"}, tmp_path / "twins")
    with pytest.raises(UserError, match=r"twins.*: there are two of 'set/caf\u00e9', which differ"):
        list(members(source, TEXT))
