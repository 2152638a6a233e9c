import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from metarun.data import features, store
from metarun.data.split import stack_classes
from metarun.data.store import metadata
from metarun.errors import UserError

MADE_FROM = {"data": {"name": "made up"}, "checkpoint": None}


def some_splits():
    return {
        split: stack_classes(
            "vectors",
            {f"{split}/{c}": torch.randn(3 + c, 4) for c in range(k)},
            {f"{split}/{c}": f"{split}s" for c in range(k)},
        )
        for split, k in (("train", 3), ("val", 1), ("test", 2))
    }


def test_what_is_stored_is_read(tmp_path):
    splits = some_splits()
    stored = features.store(tmp_path / "f", splits, MADE_FROM)
    data = features.load(str(tmp_path / "f"))
    assert data.checksum == stored.checksum
    for name, split in splits.items():
        read = data.open(name)
        assert torch.equal(read.x, split.x)
        assert torch.equal(read.first_row, split.first_row)
        assert (read.classes, read.superclasses) == (split.classes, split.superclasses)
        assert read.kind == "vectors"
    assert data.facts()["made_from"] == MADE_FROM
    assert json.loads(metadata(tmp_path / "f" / "val.safetensors")["made_from"]) == MADE_FROM
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_the_folder_is_there_whole_or_not_at_all(tmp_path):
    splits = some_splits()
    del splits["test"]
    with pytest.raises(KeyError):
        features.store(tmp_path / "f", splits, MADE_FROM)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    features.refuse_taken(tmp_path / "new" / "folder")
    features.refuse_taken(tmp_path)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files: choose another to="):
        features.refuse_taken(tmp_path)
    with pytest.raises(UserError, match="cannot write in"):
        features.refuse_taken(tmp_path / "thesis.tex" / "below")
    with pytest.raises(UserError, match=r"cannot write .*: Directory not empty"):
        features.store(tmp_path, some_splits(), MADE_FROM)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.root=FOLDER"):
        features.load(None)
    with pytest.raises(UserError, match=r"there is no train\.safetensors: make .* data\.root=DIR"):
        features.load(str(tmp_path))
    features.store(tmp_path / "f", some_splits(), MADE_FROM)
    path = tmp_path / "f" / "test.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"test\.safetensors is damaged: remove"):
        features.load(str(tmp_path / "f"))


def test_doubts_and_the_split_are_carried_along(tmp_path):
    """What was told of columns is not: features have none."""
    of = {"split": "by column 'split'", "features": ["f0"], "doubts": ["f0 dwarfs the others"]}
    features.store(tmp_path / "f", some_splits(), MADE_FROM, features.carried("made up", of))
    data = features.load(str(tmp_path / "f"))
    assert data.told == {
        "split": "by column 'split' (data=made up)",
        "doubts": ["of the embedded data=made up: f0 dwarfs the others"],
    }
    assert data.summary().startswith("split by column 'split' (data=made up): 3 / 1 / 2 classes")
    features.store(tmp_path / "g", some_splits(), MADE_FROM)
    assert features.load(str(tmp_path / "g")).told == {}


def test_features_that_are_odd_themselves_are_told(tmp_path):
    splits = some_splits()
    splits["test"].x[:] = splits["test"].x[:1]  # a network that does not look
    splits["train"].x[0, 1] = torch.nan
    with pytest.raises(UserError, match="example 0 has a number that is not finite"):
        features.store(tmp_path / "f", splits, MADE_FROM)
    splits["train"].x[0, 1] = 1e9
    of = features.carried("made up", {"doubts": ["the data was odd"]})
    many = stack_classes("vectors", {"many": splits["train"].x.repeat(3, 1)})
    many.x[1:, 1] = torch.linspace(-1, 1, len(many.x) - 1)
    features.store(tmp_path / "f", splits | {"train": many}, MADE_FROM, of)
    was, alike, far = features.load(str(tmp_path / "f")).told["doubts"]
    assert was == "of the embedded data=made up: the data was odd"
    assert alike == "all 7 examples of the test split are alike"
    assert far.startswith("number 1 is 1e+09 in one example, but within ")


def test_a_full_disk_leaves_nothing_and_names_the_folder(tmp_path, monkeypatch):
    def full(*given, **more):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_file", full)
        with pytest.raises(UserError) as refused:
            features.store(tmp_path / "f", some_splits(), MADE_FROM)
    told = f"cannot write {tmp_path}/f/train.safetensors: No space left on device"
    assert str(refused.value) == told
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept(tmp_path):
    """But not what a living one, as this one's parent is, or another machine's has just begun."""
    here, dead = features.this_machine(), 2**22 + 1  # more than any process's number
    left = [f".f.{name}.tmp" for name in (f"{here}.{dead}", "other.1", "other.2")]
    left.append(f".f.{here}.{os.getppid()}.tmp")
    for name in left:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".f.other.1.tmp", (1, 1))
    features.store(tmp_path / "f", some_splits(), MADE_FROM)
    assert {path.name for path in tmp_path.iterdir()} == {*left[2:], "f"}


def test_what_others_have_beside_it_stays(tmp_path, monkeypatch):
    """However old it is, and whatever it is called."""
    here, dead = features.this_machine(), 2**22 + 1
    names = [".f.old.tmp", f".f.{here}.x.tmp", f".f.a.b.{dead}.tmp", f".fg.{here}.{dead}.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1, 1))
    features.sweep(tmp_path / "f")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    there = f".f.{here}.{dead}.tmp"  # but moved before it is looked at
    monkeypatch.setattr(Path, "glob", lambda *given: [tmp_path / there])
    features.sweep(tmp_path / "f")


def test_features_that_are_there_already(tmp_path):
    features.store(tmp_path / "f", some_splits(), MADE_FROM)
    assert features.stored_before(tmp_path / "f", MADE_FROM)
    assert not features.stored_before(tmp_path / "f", {**MADE_FROM, "seed": 1})
    (tmp_path / "f" / "val.safetensors").unlink()
    assert not features.stored_before(tmp_path / "f", MADE_FROM)
    assert not features.stored_before(tmp_path / "g", MADE_FROM)
