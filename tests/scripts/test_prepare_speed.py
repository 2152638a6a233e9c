"""The made-up miniImageNet of the measurement is what the reader takes it for."""

import sys
from pathlib import Path

import numpy as np

from metarun.data.images import miniimagenet

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import prepare_speed as script


def test_every_layout_holds_the_same_pictures(tmp_path, monkeypatch):
    """But for what JPEG loses; pictures of two classes are 60 apart."""
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "prepared"))
    for layout in script.LAYOUTS:
        script.make(layout, str(tmp_path), "2")
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
        data = miniimagenet.load(str(tmp_path / layout), 84)
        assert data.facts()["examples"] == {"train": 128, "val": 32, "test": 40}
        val = data.open("val")
        at = val.classes.index("n01855672") if layout != "npz" else 0
        wanted = np.stack(list(script.made_up("n01855672", 2))).transpose(0, 3, 1, 2)
        off = np.abs(val.x[2 * at : 2 * at + 2].numpy().astype(int) - wanted)
        assert off.mean() < (12 if layout in ("imagenet", "splits", "images") else 1e-9)


def test_pictures_have_the_size_of_photographs(tmp_path):
    script.make("images", str(tmp_path), "2")
    sizes = [path.stat().st_size for path in (tmp_path / "images" / "images").iterdir()]
    assert 2000 < np.mean(sizes) < 8000, "bytes"
