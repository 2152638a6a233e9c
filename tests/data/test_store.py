import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from metarun.data import store
from metarun.data.split import as_split, stack_classes
from metarun.errors import UserError


def some_splits():
    """A class of three 4 x 4 images in each split."""
    generator = torch.Generator().manual_seed(0)
    return {
        split: stack_classes(
            "images",
            {f"{split}/c": torch.randint(256, (3, 1, 4, 4), generator=generator).to(torch.uint8)},
            {f"{split}/c": split},
            mean=(0.25,),
            std=(0.5,),
        )
        for split in store.SPLITS
    }


class Builder:
    """Builds `some_splits` and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return some_splits()


def test_what_is_stored_comes_back():
    data = store.prepare("made", "key", some_splits)
    for name, wanted in some_splits().items():
        got = data.open(name)
        assert torch.equal(got.x, wanted.x)
        assert torch.equal(got.first_row, wanted.first_row)
        assert torch.equal(got.superclass, wanted.superclass)
        assert (got.classes, got.superclasses) == (wanted.classes, wanted.superclasses)
        assert (got.mean, got.std) == ((0.25,), (0.5,))
        outline = data.outlines[name]
        assert outline.classes == wanted.classes
        assert outline.x.shape == (0, 1, 4, 4)


def test_built_once_for_a_key_and_again_for_another():
    build = Builder()
    first = store.prepare("made", "key", build)
    again = store.prepare("made", "key", build)
    assert build.calls == 1
    assert first.checksum == again.checksum
    assert store.prepare("made", "other key", build).files != first.files
    assert build.calls == 2


@pytest.mark.parametrize("split", store.SPLITS)
@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "remove"])
def test_a_harmed_file_is_made_again(split, harm):
    build = Builder()
    data = store.prepare("made", "key", build)
    path = data.files[split]
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        at = content.index(some_splits()[split].x.numpy().tobytes())
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        path.write_bytes({"truncate": content[:-7], "flip": flipped, "empty": b""}[harm])
    again = store.prepare("made", "key", build)
    assert build.calls == 2
    assert again.checksum == data.checksum
    assert torch.equal(again.open(split).x, some_splits()[split].x)


class Counted:
    """`function`, counting its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def test_hashed_again_only_after_a_change_or_when_asked_for(monkeypatch):
    hashed = Counted(store.checksum)
    monkeypatch.setattr(store, "checksum", hashed)
    data = store.prepare("made", "key", some_splits)
    assert hashed.calls == 3
    store.prepare("made", "key", some_splits)
    assert hashed.calls == 3
    os.utime(data.files["val"])  # as after a copy: the same content
    store.prepare("made", "key", some_splits)
    assert hashed.calls == 4
    store.prepare("made", "key", some_splits)
    assert hashed.calls == 4
    for asked in ("prepare", "verify"):
        before = store.task.set(asked)
        store.prepare("made", "key", some_splits)
        store.task.reset(before)
    assert hashed.calls == 4 + 3 + 2 * 3


def test_a_change_that_keeps_size_and_time_is_noticed():
    build = Builder()
    path = store.prepare("made", "key", build).files["train"]
    about, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    again = store.prepare("made", "key", build)
    assert build.calls == 2
    assert torch.equal(again.open("train").x, some_splits()["train"].x)


def test_a_folder_that_is_only_read_is_hashed_each_time(monkeypatch):
    """As one that another user has prepared, copied with other times."""
    data = store.prepare("made", "key", some_splits)
    for path in data.files.values():
        store.stamp_path(path).unlink()
        store.stamp_path(path).mkdir()  # nothing can be written there, root or not
    hashed = Counted(store.checksum)
    monkeypatch.setattr(store, "checksum", hashed)
    assert store.prepare("made", "key", some_splits).checksum == data.checksum
    assert hashed.calls == 3


def rotten(path):
    """One bit of the file's content is another, and nothing else tells: as `state` is kept."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("name", ["boot", "time"])
def test_a_rotten_disk_is_noticed_after_a_boot_and_after_days(monkeypatch, name):
    """It changes no time stamp."""
    later = time.time() + store.DAYS * 24 * 3600 + 60
    value = {"boot": "another", "time": later}[name]
    monkeypatch.setattr(store, "state", lambda path: "as-ever")
    build = Builder()
    path = store.prepare("made", "key", build).files["train"]
    rotten(path)
    store.prepare("made", "key", build)
    assert build.calls == 1  # it cannot be seen yet
    monkeypatch.setattr(store if name == "boot" else store.time, name, lambda: value)
    for _ in range(2):
        again = store.prepare("made", "key", build)
        assert build.calls == 2
    assert torch.equal(again.open("train").x, some_splits()["train"].x)


def test_machines_that_share_a_cache_hash_once_each(monkeypatch):
    hashed = Counted(store.checksum)
    monkeypatch.setattr(store, "checksum", hashed)
    for _ in range(3):
        for machine in ("a", "b"):
            monkeypatch.setattr(store, "boot", lambda machine=machine: machine)
            store.prepare("made", "key", some_splits)
    assert hashed.calls == 3 + 3  # written by a, read by b


def test_what_a_killed_process_left_is_swept(cache):
    data = store.prepare("made", "key", some_splits)
    folder = data.files["train"].parent
    (folder / "train.123.tmp").write_bytes(b"half")
    data.files["train"].write_bytes(b"spoilt")
    store.prepare("made", "key", some_splits)
    assert not list(folder.glob("*.tmp"))


def test_a_full_disk_is_told_in_one_line(monkeypatch):
    def full(*_, **__):
        raise store.SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(UserError, match=r"^cannot write .*safetensors: .*No space left on device$"):
        store.prepare("made", "key", some_splits)


def test_verifying_makes_nothing(cache):
    before = store.task.set("verify")
    try:
        with pytest.raises(UserError, match=r"data=made is not prepared.* metarun mode=prepare"):
            store.prepare("made", "key", some_splits)
        assert not cache.exists()
        store.task.set("run")
        data = store.prepare("made", "key", some_splits)
        store.task.set("verify")
        assert store.prepare("made", "key", some_splits).checksum == data.checksum
        data.files["val"].write_bytes(b"spoilt")
        with pytest.raises(UserError, match=r"val\.safetensors is damaged: metarun mode=prepare"):
            store.prepare("made", "key", some_splits)
        assert data.files["val"].read_bytes() == b"spoilt"
    finally:
        store.task.reset(before)


def test_the_checksum_is_of_the_content():
    one = store.prepare("made", "key", some_splits)

    def changed():
        splits = some_splits()
        splits["val"].x[0, 0, 0, 0] ^= 1
        return splits

    assert store.prepare("made", "other", changed).checksum != one.checksum
    assert store.prepare("made", "third", some_splits).checksum == one.checksum


def test_a_write_that_fails_leaves_nothing(monkeypatch, cache):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*train\.safetensors: the disk is gone"):
        store.prepare("made", "key", some_splits)
    monkeypatch.undo()
    left = [path.name for path in cache.rglob("*") if path.is_file()]
    assert [name for name in left if name != "lock"] == []


PROCESS = """
import sys, time
sys.path.insert(0, {here!r})
from test_store import some_splits
from metarun.data import store

def build():
    print("built", flush=True)
    time.sleep(1)  # long enough for the other process to come by
    return some_splits()

print(store.prepare("made", "key", build).checksum)
"""


def test_two_processes_build_once(cache):
    code = PROCESS.format(here=os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(map(len, said)) == [1, 2], "one says that it built, both tell the checksum"
    assert said[0][-1] == said[1][-1]


def test_a_sealed_split_cannot_be_opened():
    data = store.prepare("made", "key", some_splits)
    with data.sealed("test"):
        data.open("val")
        with pytest.raises(AssertionError, match="sealed"):
            data.open("test")
    data.open("test")


def test_a_class_in_two_splits_is_refused():
    def shared():
        splits = some_splits()
        return {**splits, "test": splits["train"]}

    with pytest.raises(UserError, match="'train/c' is in both train and test"):
        store.prepare("made", "key", shared)


def test_a_folder_that_cannot_be_made_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set METARUN_DATA"):
        store.prepare("made", "key", some_splits)


def test_a_home_folder_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METARUN_DATA", "~/data")
    assert store.data_folder() == tmp_path / "data"


def test_others_may_read_what_the_umask_lets_them(tmp_path, monkeypatch):
    """Prepared data can be shared: they are as readable as any file of the user's."""
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    before = os.umask(0o027)
    try:
        data = store.prepare("made", "key", some_splits)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in data.files.values()} == {0o640}


def shared_tokens():
    """Two assays of three sequences, the middle one in both, in each split."""
    x = torch.tensor([[3, 1, 0], [2, 0, 0], [1, 1, 1]], dtype=torch.int16)
    first_row, index = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 1, 2])
    return {
        split: as_split(
            *("tokens", x, first_row, [f"{split}/{c}" for c in "abcd"]), sizes=(4,), index=index
        )
        for split in store.SPLITS
    }


def test_every_kind_comes_back():
    data = store.prepare("tokens", "key", shared_tokens)
    assert data.facts()["kind"] == "tokens"
    assert data.facts()["examples"]["train"] == 4
    got, wanted = data.open("val"), shared_tokens()["val"]
    assert (got.kind, got.sizes) == ("tokens", (4,))
    assert torch.equal(got.index, wanted.index)
    assert torch.equal(got.lengths, torch.tensor([2, 1, 3]))
    assert got.take(torch.arange(3)).tolist() == wanted.take(torch.arange(3)).tolist()
    outline = data.outlines["val"]
    assert (outline.kind, outline.sizes, outline.input_shape) == ("tokens", (4,), (3,))
    images = store.prepare("made", "key", some_splits)
    assert (images.open("val").kind, images.open("val").sizes) == ("images", ())


@pytest.mark.parametrize("harm", ["kind", "sizes", "index", "lengths"])
def test_what_tells_of_the_examples_is_part_of_the_checksum(harm):
    split = shared_tokens()["train"]
    changed = {
        "kind": {"kind": "vectors"},
        "sizes": {"sizes": (5,)},
        "index": {"index": torch.tensor([0, 1, 1, 1])},
        "lengths": {"lengths": torch.tensor([2, 1, 2])},
    }[harm]
    assert store.checksum(replace(split, **changed), "facts") != store.checksum(split, "facts")
    image = some_splits()["train"]
    assert store.checksum(replace(image, kind="vectors"), "f") != store.checksum(image, "f")


def test_a_file_from_before_kinds_had_a_name(tmp_path):
    """It says nothing of them, and is not made again: bytes were images, and nothing else was."""
    for x, kind in ((torch.zeros(2, 1, 4, 4).byte(), "images"), (torch.zeros(2, 4), "vectors")):
        split = stack_classes(kind, {"a": x})
        facts = json.dumps([split.classes, split.superclasses, split.mean, split.std])
        tensors = {"x": x, "first_row": split.first_row, "superclass": split.superclass}
        old = {"facts": facts, "checksum": store.checksum(split, facts)}
        save_file(tensors, tmp_path / f"{kind}.safetensors", metadata=old)
        assert store.read(tmp_path / f"{kind}.safetensors").kind == kind
        assert store.is_sound(tmp_path / f"{kind}.safetensors")


def test_the_checksum_of_images_is_what_it_has_always_been():
    """SHA-256 of the facts, the shape and type, the rows, the superclasses and the bytes."""
    split = some_splits()["train"]
    digest = hashlib.sha256(b'facts[[3, 1, 4, 4], "torch.uint8"]')
    for tensor in (split.first_row, split.superclass, split.x):
        digest.update(tensor.numpy().tobytes())
    assert store.checksum(split, "facts") == digest.hexdigest()
