import io
import json
import os
import shutil
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from metarun.data import own_pictures
from metarun.data.images import image_folder
from metarun.data.pictures import decode
from metarun.data.split_by_class import by_chance
from metarun.errors import UserError
from tests.data.images.painted import OPTIONS, fill, load, members, paint


def test_folders_of_splits(tmp_path):
    fill(tmp_path / "train", ["a", "b"])
    fill(tmp_path / "valid", ["c"])
    fill(tmp_path / "test", ["d"])
    data = load(tmp_path)
    assert members(data) == {"train": {"a", "b"}, "val": {"c"}, "test": {"d"}}
    assert data.facts()["split"] == "by folders train, valid, test"
    assert data.facts()["doubts"] == []
    train = data.open("train")
    assert train.first_row.tolist() == [0, 3, 6]
    assert train.x[:, 0, 0, 0].tolist() == [0, 0, 0, 10, 10, 10]
    assert train.x[:, 1, 4, 4].tolist() == [0, 1, 2, 0, 1, 2]
    # Of the training pictures alone: red is half 0, half 10; green 0, 1, 2; blue has no contrast.
    outline = data.outlines["test"]
    assert outline.mean == pytest.approx((5 / 255, 1 / 255, 0))
    assert outline.std == pytest.approx((5 / 255, 1, 1)), "under one grey level is not contrast"


def test_a_split_folder_is_missing(tmp_path):
    fill(tmp_path / "train", ["a"])
    fill(tmp_path / "test", ["b"])
    with pytest.raises(UserError, match="train and test but no val"):
        load(tmp_path)


def test_a_class_in_two_split_folders(tmp_path):
    for split in ("train", "val", "test"):
        fill(tmp_path / split, ["cat" if split != "val" else "dog"])
    with pytest.raises(UserError, match="'cat' is in both train and test"):
        load(tmp_path)


LISTS = {
    "by_class.csv": "class,split\na,train\nb,val\nc,test\n",
    "by_picture.csv": "filename,label,split\n1.png,a,train\n2.png,a,train\n1.png,b,val\nx,c,test\n",
    "marked.csv": "\ufefflabel,split\r\na,train\r\nb,validation\r\nc,test\r\n",
    "spreadsheet.csv": "Class ;Split\na;Train\nb;Valid\n\nc;TEST\n;\n",
    "lists.json": json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}),
    "others.json": json.dumps({"Training": ["a"], "dev": ["b"], "TEST": ["c"]}),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    fill(tmp_path, ["a", "b", "c", "unlisted"])
    (tmp_path / name).write_text(LISTS[name], encoding="utf-8")
    wanted = {"train": {"a"}, "val": {"b"}, "test": {"c"}}
    assert members(load(tmp_path, split_file=str(tmp_path / name))) == wanted
    assert members(load(tmp_path, split_file=name)) == wanted, "a path may start at the root"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("label,split\ncat,train\n", "gives no class to val"),
        (
            "label,split\ncat,train\ndgo,val\nfish,test\n",
            "'dgo', which .* names; is 'dog' meant",
        ),
        ("label,split\ncat,train\ndog,eval\n", "split 'eval': use train, val and test"),
        ("label,split\ncat,train\ndog,dev\n", "gives no class to test: train, val and test"),
        ("label,split\ncat,train\ncat,val\nfish,test\n", "'cat' is in both train and val"),
        ("name,split\ncat,train\n", "columns label"),
        ("", "columns label"),
        ("label,split\ncat\n", "line 2: it has 1 columns"),
    ],
)
def test_wrong_lists(tmp_path, text, told):
    fill(tmp_path, ["cat", "dog", "fish"])
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        load(tmp_path, split_file=str(tmp_path / "split.csv"))


def test_names_from_a_mac(tmp_path):
    """A folder's accents are taken apart, those of a list typed on a keyboard are not."""
    names = ["caf\u00e9", "na\u00efve", "\u00fcber"]
    fill(tmp_path, [unicodedata.normalize("NFD", name) for name in names])
    listed = dict(zip(("train", "val", "test"), ([name] for name in names), strict=True))
    (tmp_path / "s.json").write_text(json.dumps(listed), encoding="utf-8")
    data = load(tmp_path, split_file="s.json")
    assert members(data) == {split: set(inside) for split, inside in listed.items()}
    assert data.facts()["split"] == "by data.split_file=s.json"
    fill(tmp_path, names[:1])
    with pytest.raises(UserError, match="there are two classes 'caf\u00e9', which differ only in"):
        load(tmp_path, split_file="s.json")


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("TRAINING", "dev", "testing"),
        ("meta-train", "meta_val", "Meta Test"),
    ],
)
def test_folders_of_splits_however_they_are_called(tmp_path, names):
    for name, classes in zip(names, ("ab", "c", "d"), strict=True):
        fill(tmp_path / name, classes)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").write_text("<a/>")
    data = load(tmp_path)
    assert members(data) == {"train": {"a", "b"}, "val": {"c"}, "test": {"d"}}
    assert data.facts()["split"] == f"by folders {', '.join(names)}"


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("Train", "Test"), "has Train and Test but no val: for a split by folders, all classes"),
        (("train",), "has train but no val and no test"),
        (("Train", "val", "Test", "cats"), "has Train and val and Test, which mean splits, but"),
        (("train", "val", "dev", "test"), "'dev' and 'val' both mean the split val"),
        (("cats", "dogs", "validation"), "has validation, which mean splits, but also cats, dogs"),
    ],
)
def test_folders_some_of_which_are_splits(tmp_path, folders, said):
    for i, name in enumerate(folders):
        fill(tmp_path / name, [f"{i}", f"{i}x"])
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_the_same_classes_under_capitals_are_refused(tmp_path):
    for name in ("Train", "Val", "Test"):
        fill(tmp_path / name, ["c00", "c01"])
    with pytest.raises(UserError, match="class 'c00' is in both train and val"):
        load(tmp_path)


def test_a_test_split_alone(tmp_path):
    fill(tmp_path / "Test", ["a", "b"])
    data = load(tmp_path)
    assert members(data) == {"train": set(), "val": set(), "test": {"a", "b"}}
    x = data.open("test").x.double() / 255
    assert data.outlines["test"].mean == pytest.approx(x.mean((0, 2, 3)).tolist())
    (said,) = data.facts()["doubts"]
    assert said.startswith("there are no training pictures")


def test_every_ending_that_pillow_opens(tmp_path):
    """Those of browsers and others, odd ones by how the file begins; what is left out is told."""
    fill(tmp_path, [f"c{i}" for i in range(6)], pictures=4)
    kinds = {".jfif": "JPEG", ".JPE": "JPEG", ".ppm": "PPM", ".avif": "AVIF", ".jp2": "JPEG2000"}
    for i, (ending, kind) in enumerate({**kinds, ".tga": "TGA"}.items()):
        Image.new("RGB", (8, 8), (20 * i, 0, 9)).save(tmp_path / f"c{i}" / f"x{ending}", kind)
    (tmp_path / "c0" / "0.png").rename(tmp_path / "c0" / "0")
    (tmp_path / "c0" / "1.png").rename(tmp_path / "c0" / "1.png_large")
    paint(tmp_path / "loose.png", "red")
    for name in ("notes.txt", "Thumbs.db", "about.json"):
        (tmp_path / "c1" / name).write_text("none")
    (tmp_path / "c2" / "x.docx").write_text("none")
    (tmp_path / "lost").mkdir()
    for i in range(7):
        (tmp_path / "lost" / f"{i}.xyz").write_text("none")
    data = load(tmp_path)
    assert sum(data.facts()["examples"].values()) == 6 * 5
    loose, left_out, no_class = data.facts()["doubts"]
    assert loose.startswith("left out 1 picture in no class folder: ")
    assert left_out.startswith("left out 8 files that are no pictures: ")
    assert left_out.endswith(" and 3 more")
    assert no_class.startswith("no class, since they have files but no picture: 1 folder: ")
    assert no_class.endswith("lost")


def deep(values, kind):
    """The picture of values in [0, 1], kept with this many bits or as floats."""
    if kind == "float":
        return Image.fromarray(values.astype(np.float32))
    kept = (values * (2 ** min(kind, 16) - 1)).astype(np.uint16 if kind <= 16 else np.int32)
    return Image.fromarray(kept)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("kind", [8, 12, 16, 32, "float"])
def test_deep_pictures_are_those_of_8_bits(tmp_path, kind, ending):
    """Whichever bits of how many are used: the same pictures, but for rounding."""
    if ending == "png" and kind in (32, "float"):
        pytest.skip("PNG has no such pictures")
    draw = np.random.default_rng(0)
    for name in "abc":
        for folder in ("plain", "deep"):
            (tmp_path / folder / name).mkdir(parents=True)
        for i in range(2):
            values = draw.random((8, 8))
            values[0, :2] = 0, 1
            plain = Image.fromarray((values * 255).astype(np.uint8))
            plain.save(tmp_path / "plain" / name / f"{i}.{ending}")
            deep(values, kind).save(tmp_path / "deep" / name / f"{i}.{ending}")
    plain, found = (load(tmp_path / folder, grey=True) for folder in ("plain", "deep"))
    top = {"float": "1", 8: "255", 12: "4095"}.get(kind, "65535")
    assert found.facts()["deep_pictures"].startswith(f"6 have more than 8 bits: 0 to {top} became")
    assert "deep_pictures" not in plain.facts()
    for split in ("train", "val", "test"):
        apart = (plain.open(split).x.int() - found.open(split).x.int()).abs().max()
        assert apart <= (0 if kind == 8 else 1)
    half = 32767.5 if top == "65535" else float(top) / 2
    dark = load(tmp_path / "deep", grey=True, range=[half, 2 * half]).open("train").x
    assert 0.3 < (dark == 0).float().mean() < 0.7, "the lower half is black"


@pytest.mark.parametrize("range_", [[1], [2, 1], 3, ["a", "b"]])
def test_a_range_is_two_numbers(tmp_path, range_):
    fill(tmp_path, "abc")
    with pytest.raises(UserError, match=r"data\.range=.*: give the value that is black"):
        load(tmp_path, range=range_)


def test_pictures_that_are_all_black_are_refused(tmp_path):
    for name in "abc":
        paint(tmp_path / name / "0.bmp", "black")
        with open(tmp_path / name / "0.bmp", "ab") as file:
            file.write(name.encode())
    with pytest.raises(UserError, match=r"all 3 pictures are one colour, \[0, 0, 0\] of 255"):
        load(tmp_path)


def test_the_same_picture_twice(tmp_path):
    """In two classes of a split it is told, in two splits refused."""
    for split, classes in (("train", "ab"), ("val", "c"), ("test", "d")):
        fill(tmp_path / split, classes)
    copy = (tmp_path / "train/a/0.png").read_bytes()
    (tmp_path / "train/b/copy.png").write_bytes(copy)
    (said,) = load(tmp_path).facts()["doubts"]
    assert said.startswith("1 picture stands in two classes, byte for byte, such as ")
    (tmp_path / "test/d/copy.png").write_bytes(copy)
    with pytest.raises(UserError, match=r"1 picture stands in two splits, byte for byte, .*copy\."):
        load(tmp_path)


def test_classes_that_are_too_small_are_left_out(tmp_path):
    fill(tmp_path, "abcd")
    fill(tmp_path, "xy", pictures=2)
    data = load(tmp_path, min_examples=3)
    assert set.union(*members(data).values()) == set("abcd")
    assert data.facts()["doubts"] == [
        "left out 2 of 6 classes, which have fewer than data.min_examples=3 examples: x, y"
    ]


def test_a_test_split_alone_is_tested_and_embedded(metarun):
    metarun.run("name=a")
    best = "checkpoint=outputs/a/checkpoints/best.pt"
    root = Path(metarun.data[1].removeprefix("data.root="))
    shutil.copytree(root / "test", metarun.folder / "alone" / "Test")
    data = [o if not o.startswith("data.root=") else "data.root=alone" for o in metarun.data]
    alone = [*data, "backbone.width=8", "device=cpu", best]
    said = metarun.error(*alone[:-1], "tracker=none", "train.steps=2")
    assert said.startswith("data=image_folder has no classes to train on")
    metarun.main(*alone, "mode=test", "tracker=none", "eval.episodes=4", "hydra.run.dir=outputs/b")
    assert metarun.results("b")["test"]["episodes"] == 4
    metarun.main(*alone, "mode=embed", "to=features", "hydra.run.dir=outputs/c")
    assert metarun.results("c")["features"]["classes"] == {"train": 0, "val": 0, "test": 21}


def test_no_list(tmp_path):
    fill(tmp_path, ["cat", "dog", "fish"])
    with pytest.raises(UserError, match=r"nowhere\.csv is neither"):
        load(tmp_path, split_file="nowhere.csv")
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"cannot read .*bad\.json"):
        load(tmp_path, split_file="bad.json")


def test_by_chance(tmp_path):
    fill(tmp_path, [f"c{i}" for i in range(10)])
    split = members(load(tmp_path))
    assert {name: len(classes) for name, classes in split.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert len(set.union(*split.values())) == 10
    assert members(load(tmp_path)) == split
    said = "split at random by data.split_seed=0: 6 / 2 / 2 classes (train / val / test)"
    assert load(tmp_path).summary() == said
    others = [members(load(tmp_path, split_seed=seed)) for seed in (1, 2, 3)]
    assert any(other != split for other in others)


@pytest.mark.parametrize("classes", range(3, 12))
@pytest.mark.parametrize("fractions", [[0.64, 0.16, 0.2], [0.98, 0.01, 0.01], [0.01, 0.01, 0.98]])
def test_by_chance_every_split_gets_a_class(classes, fractions):
    names = {f"c{i}": [] for i in range(classes)}
    split = by_chance(names, fractions, seed=0)
    assert all(split.values())
    assert sorted(name for part in split.values() for name in part) == sorted(names)


@pytest.mark.parametrize("fractions", [[0.5, 0.5], [0.5, 0.6, 0.2], [1.0, 0.0, 0.0]])
def test_wrong_fractions(tmp_path, fractions):
    fill(tmp_path, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="three positive shares"):
        load(tmp_path, fractions=fractions)


def test_too_little(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        load(tmp_path)
    paint(tmp_path / "loose.png", "red")
    with pytest.raises(UserError, match="no class folders"):
        load(tmp_path)
    fill(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="2 classes cannot be split"):
        load(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"needs data\.root"):
        image_folder.load(None, **OPTIONS)
    with pytest.raises(UserError, match="size=0"):
        load(tmp_path, size=0)


def test_nested_classes_links_and_hidden_files(tmp_path):
    root = tmp_path / "root"
    fill(root, ["dogs/poodle", "dogs/pug", "birds/owl"])
    fill(tmp_path, ["elsewhere"])
    (root / "birds" / "wren").symlink_to(tmp_path / "elsewhere")
    (root / "birds" / "round").symlink_to(root)  # must not be followed for ever
    fill(root, [".hidden/x"])
    paint(root / "dogs" / "pug" / ".0.png", "red")
    (root / "dogs" / "pug" / "notes.txt").write_text("good dog")
    data = load(root)
    everything = [name for outline in data.outlines.values() for name in outline.classes]
    assert sorted(everything) == ["birds/owl", "birds/wren", "dogs/poodle", "dogs/pug"]
    for outline in data.outlines.values():
        assert outline.first_row.diff().tolist() == [3] * len(outline.classes)
        for name, place in zip(outline.classes, outline.superclass.tolist(), strict=True):
            assert outline.superclasses[place] == name.split("/")[0]


def test_middle_square(tmp_path):
    """A picture of 32 x 8, its middle 8 x 8 red: only that is left, and upright the same."""
    for turn in (0, 90):
        picture = Image.new("RGB", (32, 8), "blue")
        picture.paste("red", (12, 0, 20, 8))
        picture.rotate(turn, expand=True).save(tmp_path / "0.png")
        x = decode(tmp_path / "0.png", 8, grey=False)
        assert (x[0] == 255).all()
        assert (x[1:] == 0).all()


def test_resizing_averages(tmp_path):
    """A fine black and white chequered board becomes an even grey, not a coarse pattern."""
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "0.png")
    x = decode(tmp_path / "0.png", 8, grey=True)
    assert x.shape == (1, 8, 8)
    assert np.abs(x.astype(int) - 127).max() <= 3


def test_kinds_of_pictures(tmp_path):
    """All of one grey, 100, in every file format and mode; transparent means white."""
    folder = tmp_path / "kinds"
    for ending in ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "PNG"):
        paint(folder / f"1.{ending}" if ending != "PNG" else folder / "2.PNG", (100, 100, 100))
    paint(folder / "grey.png", 100, mode="L")
    paint(folder / "palette.png", (100, 100, 100))
    Image.open(folder / "palette.png").quantize(4).save(folder / "palette.png")
    Image.fromarray(np.full((8, 8), 100 << 8, dtype=np.uint16)).save(folder / "deep.png")
    paint(folder / "half.png", (0, 0, 0, 155), mode="RGBA")  # 255 - 155 of white shows through
    paint(folder / "large.jpg", (100, 100, 100), size=(640, 480))
    fill(tmp_path, ["x", "y"])
    (tmp_path / "s.json").write_text(json.dumps({"train": ["kinds"], "val": ["x"], "test": ["y"]}))
    for grey in (False, True):
        x = load(tmp_path, split_file="s.json", grey=grey).open("train").x
        assert x.shape == (13, 1 if grey else 3, 8, 8)
        assert (x.int() - 100).abs().max() <= 2


def test_pictures_are_upright_as_cameras_mean_it(tmp_path):
    picture = Image.new("RGB", (8, 8), "black")
    picture.paste("white", (0, 0, 8, 4))  # the upper half
    about = Image.Exif()
    about[0x0112] = 3  # the camera was held upside down
    picture.save(tmp_path / "0.png", exif=about)
    x = decode(tmp_path / "0.png", 8, grey=False)
    assert (x[..., :4, :] == 0).all()
    assert (x[..., 4:, :] == 255).all()


def test_unreadable_pictures_are_named_and_left_out(tmp_path):
    fill(tmp_path, ["a", "b", "c"], pictures=8)
    for i in range(7):
        (tmp_path / "b" / f"{i}.png").write_bytes(b"not a picture")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    whole = (tmp_path / "c" / "0.png").read_bytes()
    (tmp_path / "c" / "0.png").write_bytes(whole[:40])
    data = load(tmp_path)
    sizes = {
        name: size
        for outline in data.outlines.values()
        for name, size in zip(outline.classes, outline.first_row.diff().tolist(), strict=True)
    }
    assert sizes == {"a": 8, "b": 1, "c": 7}
    (said,) = data.facts()["doubts"]
    assert "9 unreadable pictures" in said
    assert "and 4 more" in said
    assert said.count(".png") == 5


def test_a_class_without_readable_pictures(tmp_path):
    fill(tmp_path, ["a", "b", "c"], pictures=1)
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="no picture of class 'b' can be read"):
        load(tmp_path)


def test_a_change_of_the_pictures_is_noticed(tmp_path, monkeypatch):
    fill(tmp_path, ["a", "b", "c"])
    before = load(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(own_pictures, "build", None)  # not called
        assert load(tmp_path).checksum == before.checksum
    paint(tmp_path / "b" / "1.png", "green")
    os.utime(tmp_path / "b" / "1.png", ns=(1, 1))
    assert load(tmp_path).checksum != before.checksum
    grey = load(tmp_path, grey=True)
    assert grey.outlines["train"].input_shape == (1, 8, 8)
    (tmp_path / "c" / "2.png").unlink()
    after = load(tmp_path)
    assert sum(len(after.open(split).x) for split in after.files) == 8


@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_upright(orientation):
    """As Pillow's own function makes them, whatever the other tags: here a width that is a text."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    turned = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    for entries in ([turned], [turned, struct.pack("<HHII", 0x100, 2, 1, 8)]):
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", exif=exif + bytes(4))
        if len(entries) == 1:
            wanted = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        assert np.array_equal(decode(file, 8, grey=False).transpose(1, 2, 0), wanted)
