"""The standard image data sets, read from made archives in the layouts of the published ones."""

import pickle

import numpy as np
import pytest

from metarun.data.class_lists import read_list
from metarun.data.images import aircraft, cifar, cub, dtd, gtsrb, vgg_flower
from metarun.data.store import SPLITS
from metarun.errors import UserError
from tests.data import layouts
from tests.data.layouts import as_folder, as_tar, as_zip, colour

SIZE = 12


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is fetched here; what would be is told."""

    def refuse(urls, path, md5):
        raise UserError(f"would fetch {urls} to {path}")

    for module in (aircraft, cifar, cub, dtd, gtsrb, vgg_flower):
        monkeypatch.setattr(module, "download", refuse)


def sizes(data):
    return tuple(len(data.outlines[split].classes) for split in SPLITS)


def first_pixels(data, places, at=(6, 6)):
    """Every class's pictures' colours at one place, by the class's name; checked against `places`,
    which gives each class its number."""
    for split in SPLITS:
        part = data.open(split)
        for c, name in enumerate(part.classes):
            rows = range(part.first_row[c], part.first_row[c + 1])
            found = [tuple(part.x[row, :, at[0], at[1]].tolist()) for row in rows]
            assert found == [colour(places[name], i) for i in range(len(rows))], name


def same(data, other):
    return all(data.open(s).x.equal(other.open(s).x) for s in SPLITS)


def test_dtd(tmp_path):
    """Every form gives the same pictures; hidden files are none."""
    files = layouts.dtd()
    as_tar(files, tmp_path / "tar" / "dtd" / "dtd-r1.0.1.tar.gz")
    as_folder(files, tmp_path / "torchvision" / "dtd")
    data = dtd.load(str(tmp_path / "tar"), SIZE)
    assert sizes(data) == (33, 7, 7)
    names = sorted(c for split in SPLITS for c in read_list("dtd")[split])
    first_pixels(data, {name: i for i, name in enumerate(names)})
    assert data.outlines["train"].x.shape == (0, 3, SIZE, SIZE)
    for root in ("torchvision", "torchvision/dtd/dtd", "torchvision/dtd/dtd/images"):
        assert same(data, dtd.load(str(tmp_path / root), SIZE)), root
    x = data.open("train").x.double() / 255
    assert data.outlines["test"].mean == pytest.approx(x.mean((0, 2, 3)).tolist())


def test_a_class_that_is_not_there(tmp_path):
    files = {name: content for name, content in layouts.dtd().items() if "woven" not in name}
    with pytest.raises(UserError, match=r"images has no picture of class 'woven'"):
        dtd.load(str(as_folder(files, tmp_path)), SIZE)


@pytest.mark.parametrize("splits", ["chen", "feat", "meta_dataset"])
def test_cub(tmp_path, splits):
    root = as_tar(layouts.cub(1), tmp_path / "CUB_200_2011.tgz").parent
    data = cub.load(str(root), splits, "none", SIZE)
    assert sizes(data) == ((140, 30, 30) if splits == "meta_dataset" else (100, 50, 50))
    names = [name for split in SPLITS for name in data.outlines[split].classes]
    first_pixels(data, {name: int(name[:3]) - 1 for name in names})
    assert data.outlines["train"].classes[0] == {
        "chen": "001.Black_footed_Albatross",
        "feat": "003.Bird_3",
        "meta_dataset": "001.Black_footed_Albatross",
    }.get(splits)


def test_cub_boxes(tmp_path):
    """The middle square shows the bird at its right edge, the box nothing else."""
    files = layouts.cub()
    root = as_folder(files, tmp_path / "folder")
    whole, boxed = (cub.load(str(root), "chen", crop, SIZE) for crop in ("none", "box"))
    assert (boxed.open("train").x == 255).all()
    assert not (whole.open("train").x[..., :9] == 255).all(dim=1).any()
    as_tar(files, tmp_path / "tar" / "CUB_200_2011.tgz")
    assert same(boxed, cub.load(str(tmp_path / "tar"), "chen", "box", SIZE))
    images = tmp_path / "folder" / "CUB_200_2011" / "images"
    assert same(whole, cub.load(str(images), "chen", "none", SIZE))
    with pytest.raises(UserError, match=r"has no images\.txt"):
        cub.load(str(images), "chen", "box", SIZE)
    with pytest.raises(UserError, match=r"splits=cehn is not one of chen, feat, meta_dataset"):
        cub.load(str(root), "cehn", "none", SIZE)


def test_aircraft(tmp_path):
    """The box is all aircraft; without it the banner is gone, and sky is at the edges."""
    files = layouts.aircraft()
    as_tar(files, tmp_path / "tar" / "fgvc-aircraft-2013b.tar.gz")
    root = as_folder(files, tmp_path / "folder")
    boxed = aircraft.load(str(tmp_path / "tar"), "box", SIZE)
    assert sizes(boxed) == (70, 15, 15)
    assert all((boxed.open(split).x == 255).all() for split in SPLITS)
    whole = aircraft.load(str(root), "none", SIZE)
    names = sorted(name for split in SPLITS for name in whole.outlines[split].classes)
    places = {name: i for i, name in enumerate(names)}
    first_pixels(whole, places, at=(0, 0))
    first_pixels(whole, places, at=(SIZE - 1, SIZE - 1))
    train = whole.outlines["train"]
    makers = [train.superclasses[i] for i in train.superclass]
    assert dict(zip(train.classes, makers, strict=True))["737-200"] == "Boeing"
    assert dict(zip(train.classes, makers, strict=True))["Tu-154"] == "Tupolev & Co"
    assert same(boxed, aircraft.load(str(root / "fgvc-aircraft-2013b"), "box", SIZE))


def test_vgg_flower(tmp_path):
    """Labels come from the MATLAB file, in whichever folder each of the two is."""
    files, labels = layouts.vgg_flower()
    as_tar(files, tmp_path / "tar" / "102flowers.tgz")
    as_folder({"imagelabels.mat": labels}, tmp_path / "tar")
    data = vgg_flower.load(str(tmp_path / "tar"), SIZE)
    assert sizes(data) == (71, 15, 16)
    names = [name for split in SPLITS for name in data.outlines[split].classes]
    first_pixels(data, {name: int(name[:3]) - 1 for name in names})
    as_folder(files | {"imagelabels.mat": labels}, tmp_path / "folder" / "flowers-102")
    assert same(data, vgg_flower.load(str(tmp_path / "folder"), SIZE))


@pytest.mark.parametrize("content", [b"", bytes(128), bytes(200), b"<html>" * 60])
def test_damaged_labels_of_flowers_are_told(tmp_path, content):
    as_tar(layouts.vgg_flower()[0], tmp_path / "102flowers.tgz")
    (tmp_path / "imagelabels.mat").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*labels\.mat"):
        vgg_flower.load(str(tmp_path), SIZE)


def test_gtsrb(tmp_path):
    """No class to train on, and every form the same."""
    as_zip(layouts.gtsrb(), tmp_path / "zip" / "GTSRB_Final_Training_Images.zip")
    data = gtsrb.load(str(tmp_path / "zip"), SIZE)
    assert sizes(data) == (0, 0, 43)
    first_pixels(data, {name: int(name[:2]) for name in data.outlines["test"].classes})
    assert data.open("train").x.shape == (0, 3, SIZE, SIZE)
    assert data.outlines["test"].mean == (0.485, 0.456, 0.406)
    as_folder(layouts.gtsrb(), tmp_path / "folder" / "gtsrb")
    assert same(data, gtsrb.load(str(tmp_path / "folder"), SIZE))
    smaller = layouts.gtsrb(folder="GTSRB/Training")
    as_zip(smaller, tmp_path / "fixed" / "GTSRB-Training_fixed.zip")
    assert same(data, gtsrb.load(str(tmp_path / "fixed"), SIZE))
    as_folder(smaller, tmp_path / "torchvision" / "gtsrb")
    assert same(data, gtsrb.load(str(tmp_path / "torchvision"), SIZE))


LOADS = {"cifar_fs": cifar.cifar_fs, "fc100": cifar.fc100}


def class_folders(above: dict[str, str]) -> layouts.Files:
    """Two PNG files a class, each class below the folder `above` gives it."""
    files = {}
    for c, name in enumerate(layouts.cifar_classes()):
        for i in range(2):
            files[f"{above[name]}/{name}/{i}.png"] = layouts.png(layouts.cifar_picture(c, i))
    return files


@pytest.mark.parametrize("name", LOADS)
def test_cifar(tmp_path, name):
    """CIFAR-100's archive and its folder: each class's own pictures, with its superclass."""
    load = LOADS[name]
    as_tar(layouts.cifar_100(), tmp_path / "tar" / "cifar-100-python.tar.gz")
    data = load(str(tmp_path / "tar"), 32)
    listed = layouts.class_splits(name)
    places = {name: c for c, name in enumerate(layouts.cifar_classes())}
    for split in SPLITS:
        part = data.open(split)
        assert list(part.classes) == listed[split]
        for c, label in enumerate(part.classes):
            for i in range(2):
                expected = layouts.cifar_picture(places[label], i)
                assert (part.x[part.first_row[c] + i].numpy() == expected).all()
        above = [part.superclasses[i] for i in part.superclass]
        assert above == [group for group, names in read_list(name)[split].items() for _ in names]
    folder = as_folder(layouts.cifar_100(protocol=4), tmp_path / "folder")
    assert same(data, load(str(folder), 32))
    assert same(data, load(str(folder / "cifar-100-python"), 32))
    assert load(str(folder), 8).outlines["train"].input_shape == (3, 8, 8)


@pytest.mark.parametrize("name", LOADS)
def test_cifar_class_folders(tmp_path, name):
    """All in one folder, in Bertinetto et al.'s zip or folder, or in train/, val/ and test/."""
    load, listed = LOADS[name], layouts.class_splits(name)
    data = load(str(as_folder(layouts.cifar_100(), tmp_path / "original")), 32)
    one = dict.fromkeys(layouts.cifar_classes(), "cifar100/data")
    three = {c: f"set/{split}" for split in SPLITS for c in listed[split]}
    as_zip(class_folders(one), tmp_path / "zip" / "cifar100.zip")
    as_folder(class_folders(one), tmp_path / "one")
    as_folder(class_folders(three), tmp_path / "three")
    for form in ("zip", "one", "one/cifar100/data", "three", "three/set"):
        assert same(data, load(str(tmp_path / form), 32)), form


@pytest.mark.parametrize(("name", "title"), [("cifar_fs", "CIFAR_FS"), ("fc100", "FC100")])
def test_cifar_caches(tmp_path, name, title):
    """A cache a split, whose classes are numbered and have no superclass."""
    for split, names in layouts.class_splits(name).items():
        order = np.random.default_rng(0).permutation(len(names) * 2) % len(names)
        pictures = [layouts.cifar_picture(c, 0).transpose(1, 2, 0) for c in order]
        cache = {"data": np.stack(pictures), "labels": order.tolist()}
        (tmp_path / f"{title}_{split}.pickle").write_bytes(pickle.dumps(cache, 2))
    data = LOADS[name](str(tmp_path), 32)
    assert sizes(data) == tuple(len(names) for names in layouts.class_splits(name).values())
    for split in SPLITS:
        part = data.open(split)
        assert part.classes[1] == f"{split}/01"
        assert part.superclasses == ()
        assert part.first_row.diff().unique().tolist() == [2]
        for c in range(len(part.classes)):
            expected = layouts.cifar_picture(c, 0)
            assert (part.x[part.first_row[c]].numpy() == expected).all()
    (tmp_path / f"{title}_val.pickle").write_bytes(pickle.dumps({"data": [], "labels": []}))
    with pytest.raises(UserError, match=f"{title}_val.pickle"):
        LOADS[name](str(tmp_path), 32)


@pytest.mark.parametrize("test", [[1], {"data": np.ones((1, 3072)), "fine_labels": [0]}])
def test_cifar_that_is_something_else(tmp_path, test):
    files = layouts.cifar_100() | {"cifar-100-python/test": pickle.dumps(test)}
    root = as_folder(files, tmp_path)
    with pytest.raises(UserError, match="cifar-100-python is not CIFAR-100"):
        cifar.fc100(str(root), 32)


@pytest.mark.parametrize(
    ("load", "options", "wanted"),
    [
        (cifar.cifar_fs, (32,), "cifar-100-python.tar.gz"),
        (cifar.fc100, (32,), "cifar-100-python.tar.gz"),
        (cub.load, ("chen", "none", 84), "cub/CUB_200_2011.tgz"),
        (aircraft.load, ("box", 84), "fgvc-aircraft-2013b.tar.gz"),
        (dtd.load, (84,), "dtd/dtd-r1.0.1.tar.gz"),
        (vgg_flower.load, (84,), "flowers-102/102flowers.tgz"),
        (gtsrb.load, (84,), "gtsrb/GTSRB_Final_Training_Images.zip"),
    ],
)
def test_nothing_there_is_fetched(tmp_path, load, options, wanted):
    with pytest.raises(UserError, match=f"to {tmp_path / wanted}"):
        load(str(tmp_path), *options)
