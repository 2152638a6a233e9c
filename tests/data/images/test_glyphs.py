import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.data.images import glyphs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data set, built once for the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_DATA", str(tmp_path_factory.mktemp("cache")))
        return glyphs.load(None)


def test_another_process_draws_the_same_bytes(data, tmp_path):
    code = "from metarun.data.images import glyphs; print(glyphs.load(None).checksum)"
    environment = {
        **os.environ,
        "METARUN_DATA": str(tmp_path / "other"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
    }
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert told.stdout.strip() == data.checksum


def test_scripts_and_counts(data):
    scripts = {split: set(outline.superclasses) for split, outline in data.outlines.items()}
    assert scripts["train"] == scripts["val"] == {"Latin", "Greek", "Cyrillic"}
    assert scripts["test"] == {"Georgian", "Armenian", "Lao"}
    counts = {split: len(outline.classes) for split, outline in data.outlines.items()}
    assert counts["train"] >= 200
    assert counts["val"] >= 50
    assert counts["test"] >= 150
    assert 0.15 < counts["val"] / (counts["train"] + counts["val"]) < 0.25
    for outline in data.outlines.values():
        # 5-way tasks within one script are possible everywhere.
        assert outline.superclass.bincount().min() >= 5
        assert outline.first_row.diff().tolist() == [20] * len(outline.classes)
        for name, place in zip(outline.classes, outline.superclass.tolist(), strict=True):
            assert name.split("/")[0] == outline.superclasses[place]


def test_pixels(data):
    for split in glyphs_of(data):
        assert split.x.dtype == torch.uint8
        assert split.input_shape == (1, 28, 28)
        ink = (split.x > 127).flatten(1).sum(dim=1)
        assert ink.min() >= 15, "no drawing is blank"
        assert ink.max() < 28 * 28 * 0.6
        assert ink.double().mean() < 28 * 28 * 0.25, "strokes are the lesser part"
        edge = torch.cat([split.x[..., 0, :], split.x[..., -1, :]], dim=-1)
        assert (edge > 127).float().mean() < 0.01, "letters are not cut off"
    train = data.open("train").x.double() / 255
    assert data.outlines["test"].mean == pytest.approx((train.mean().item(),), abs=1e-5)
    assert data.outlines["test"].std == pytest.approx((train.std().item(),), abs=1e-5)


def glyphs_of(data):
    return [data.open(split) for split in data.files]


def test_no_letter_stands_twice(data):
    """Latin A, Greek Alpha and Cyrillic A are one class; so are o, O and Armenian oh."""
    names = {name for outline in data.outlines.values() for name in outline.classes}
    for copies in (
        {"Latin/capital_a", "Greek/capital_alpha", "Cyrillic/capital_a"},
        {"Latin/capital_o", "Latin/small_o", "Greek/small_omicron", "Armenian/small_oh"},
        {"Latin/capital_c", "Latin/small_c", "Cyrillic/small_es"},
        {"Latin/capital_s", "Latin/small_s", "Cyrillic/capital_dze"},
    ):
        assert len(copies & names) == 1
    assert {"Latin/small_a", "Latin/capital_a", "Greek/small_omega"} <= names


def test_no_test_image_stands_in_training(data):
    """Compared as unjittered letters of the plainest face, by a naive loop over all pairs."""
    fonts = {"DejaVuSans": glyphs.font_files()["DejaVuSans"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "MIN_FACES", 1)
        ink = glyphs.inked_letters(fonts)
    images = {
        glyphs.class_name(letter): np.asarray(faces["DejaVuSans"].resize((20, 20)), dtype=float)
        for letter, faces in ink.items()
    }
    for test_class in data.outlines["test"].classes:
        for train_class in data.outlines["train"].classes:
            assert np.abs(images[test_class] - images[train_class]).mean() > 5


def test_drawing_is_centred_and_sized():
    """A bar of 10 x 40 becomes 5 x 20 in the middle of 28 x 28: columns 11.5 to 16.5."""
    bar = Image.new("L", (10, 40), 255)
    drawn = glyphs.draw(bar, np.eye(2), (0, 0)).astype(float) / 255
    assert drawn[4:24].sum() == pytest.approx(100, rel=0.05)
    assert drawn[:, 12:16].sum() == pytest.approx(80, rel=0.05)
    rows, columns = np.mgrid[:28, :28]
    assert (drawn * rows).sum() / drawn.sum() == pytest.approx(13.5, abs=0.05)
    assert (drawn * columns).sum() / drawn.sum() == pytest.approx(13.5, abs=0.05)


def test_jitter_moves_turns_and_scales():
    """Shift by (2, -1); a quarter turn maps an upright bar on a lying one."""
    bar = Image.new("L", (10, 40), 255)
    plain = glyphs.draw(bar, np.eye(2), (0, 0))
    shifted = glyphs.draw(bar, np.eye(2), (2, -1))
    assert np.array_equal(shifted[:27, 2:], plain[1:, :26])
    turned = glyphs.draw(bar, np.array([[0.0, -1.0], [1.0, 0.0]]), (0, 0))
    assert np.abs(turned.astype(int) - np.rot90(plain).astype(int)).max() <= 2
    half = glyphs.draw(bar, np.eye(2) / 2, (0, 0))
    assert half.sum() == pytest.approx(plain.sum() / 4, rel=0.05)
