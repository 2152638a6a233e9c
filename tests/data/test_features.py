import json
import os

import pytest
import torch

from metarun.data import features
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
    with pytest.raises(OSError, match="not empty"):
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


def test_what_a_killed_process_left_is_swept(tmp_path):
    """But not what a living one, as this one's parent is, has begun."""
    for number in (2**22 + 1, os.getppid()):  # the first is more than any process's
        (tmp_path / f".f.{number}.tmp").mkdir()
    features.store(tmp_path / "f", some_splits(), MADE_FROM)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".f.{os.getppid()}.tmp", "f"]


def test_features_that_are_there_already(tmp_path):
    features.store(tmp_path / "f", some_splits(), MADE_FROM)
    assert features.stored_before(tmp_path / "f", MADE_FROM)
    assert not features.stored_before(tmp_path / "f", {**MADE_FROM, "seed": 1})
    (tmp_path / "f" / "val.safetensors").unlink()
    assert not features.stored_before(tmp_path / "f", MADE_FROM)
    assert not features.stored_before(tmp_path / "g", MADE_FROM)
