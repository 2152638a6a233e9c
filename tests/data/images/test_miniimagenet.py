"""miniImageNet, in small archives of every layout that it is found in: all classes, few pictures.

A picture is of one colour, that of its class and number, so that each can be told from the others.
"""

import csv
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from metarun.data import large_array, pictures
from metarun.data.images import miniimagenet
from metarun.data.store import SPLITS
from metarun.errors import UserError

LISTS = miniimagenet.CLASSES
PUBLISHED = Path(
    os.environ.get("METARUN_TEST_SPLITS", Path(__file__).parents[4] / "shared/data/splits")
)
EVERY = [wnid for split in SPLITS for wnid in LISTS[split]]


def colour(wnid, i):
    return (2 * EVERY.index(wnid), 20 * i, 7)


def paint(path, wnid, i, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour(wnid, i)).save(path, "png")  # exact, whatever the name's ending


def array(wnids, pictures=3):
    """Images uint8 [N, 8, 8, 3], class by class."""
    colours = [colour(wnid, i) for wnid in wnids for i in range(pictures)]
    return np.array(colours, np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)


def write_csvs(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        with open(folder / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            rows.writerows([name(wnid, i), wnid] for wnid in LISTS[split] for i in range(3))


def imagenet_folders(root, inner=""):
    """ImageNet's class folders, with two pictures that no list has and a class too many."""
    for wnid in EVERY:
        for i, number in enumerate((7, 93, 1205)):  # sorted by number, not as texts
            paint(root / inner / wnid / f"{wnid}_{number}.JPEG", wnid, i)
        for more in (1300, 2000):
            paint(root / inner / wnid / f"{wnid}_{more}.JPEG", wnid, 9)
    Image.new("RGB", (8, 8)).save(root / inner / "n99999999.jpg")


def class_folders_and_ranks(root):
    imagenet_folders(root)
    write_csvs(root, lambda wnid, i: f"{wnid}{i + 1:08}.jpg")


def train_folder_and_names(root):
    imagenet_folders(root, "train")
    write_csvs(root / "splits", lambda wnid, i: f"{wnid}_{(7, 93, 1205)[i]}.JPEG")
    for wnid in EVERY:  # ImageNet's own val/, of every class
        paint(root / "val" / wnid / "ILSVRC2012_val_00000001.JPEG", wnid, 9)


def loose_pictures(root):
    for wnid in EVERY:
        for i in range(3):
            paint(root / "images" / f"{wnid}{5 * i + 5:08}.jpg", wnid, i)
    write_csvs(root, lambda wnid, i: f"{wnid}{5 * i + 5:08}.jpg")


def loose_pictures_without_lists(root):
    for wnid, bits in {w: b for split in SPLITS for w, b in LISTS[split].items()}.items():
        for i, number in enumerate(miniimagenet.numbers(bits)[:3]):
            paint(root / "images" / f"{wnid}{number:08}.jpg", wnid, i)


def folders_of_splits(root):
    for split in SPLITS:
        for wnid in LISTS[split]:
            for i in range(3):
                paint(root / split / wnid / f"{i}.png", wnid, i)


def cache(root, split, text=str, protocol=2):
    content = {
        text("image_data"): array(LISTS[split]),
        text("class_dict"): {
            text(wnid): list(range(3 * c, 3 * c + 3)) for c, wnid in enumerate(LISTS[split])
        },
    }
    path = root / f"mini-imagenet-cache-{split}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def caches(root):
    for split in SPLITS:
        cache(root, split)


def caches_of_python_2(root):
    for split in SPLITS:
        cache(root, split, text=str.encode, protocol=4)


def category_splits(root):
    """Rows in no order, labels that go on from split to split."""
    root.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0)
    names = {split: f"miniImageNet_category_split_{split}.pickle" for split in SPLITS}
    names["train"] = "miniImageNet_category_split_train_phase_train.pickle"
    (root / "miniImageNet_category_split_train_phase_val.pickle").write_bytes(b"not read")
    for split in SPLITS:
        labels = [EVERY.index(wnid) for wnid in LISTS[split] for _ in range(3)]
        rows = sorted(order.permutation(len(labels)), key=lambda row: row % 3)
        content = {
            "data": array(LISTS[split])[rows],
            "labels": [labels[row] for row in rows],
            "catname2label": {wnid: EVERY.index(wnid) for wnid in LISTS[split]},
            "label2catname": list(LISTS[split]),
        }
        (root / names[split]).write_bytes(pickle.dumps(content, 2))


def category_arrays(root):
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        labels = np.arange(len(LISTS[split])).repeat(3)
        path = root / f"miniImageNet_category_split_{split}.npz"
        np.savez(path, data=array(LISTS[split]), labels=labels)


LAYOUTS = [
    *(class_folders_and_ranks, train_folder_and_names, loose_pictures),
    *(loose_pictures_without_lists, folders_of_splits),
    *(caches, caches_of_python_2, category_splits, category_arrays),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(tmp_path, layout):
    layout(tmp_path / "data")
    data = miniimagenet.load(str(tmp_path / "data"), 8)
    for split in SPLITS:
        content = data.open(split)
        assert content.input_shape == (3, 8, 8)
        assert content.first_row.diff().tolist() == [3] * len(LISTS[split])
        if layout is not category_arrays:  # which has no names
            assert sorted(content.classes) == sorted(LISTS[split])
        for c, name in enumerate(content.classes):
            wnid = name if name in EVERY else list(LISTS[split])[int(name.split("/")[1])]
            got = content.x[content.first_row[c] : content.first_row[c + 1]]
            assert got[:, :, 0, 0].tolist() == [list(colour(wnid, i)) for i in range(3)]
            assert (got == got[:, :, :1, :1]).all()
        red = 2 * np.arange(64) / 255
        assert content.mean == pytest.approx((red.mean(), 20 / 255, 7 / 255))
        assert content.std[0] == pytest.approx(red.std())
    (said,) = data.facts()["doubts"]
    assert "100 of 100 classes have other than 600 pictures" in said


@pytest.mark.parametrize(
    "inner",
    [
        "miniimagenet",
        "mini-imagenet",
        "mini_imagenet",
        "miniImageNet",
        "mini-imagenet/MiniImagenet",
    ],
)
def test_found_in_folders_of_its_name(tmp_path, inner):
    caches(tmp_path / inner)
    data = miniimagenet.load(str(tmp_path), 8)
    assert data.facts()["classes"] == {"train": 64, "val": 16, "test": 20}


def test_found_in_the_cache_folder_and_in_imagenet(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    imagenet_folders(tmp_path / "ILSVRC2012", "Data/CLS-LOC/train")
    data = miniimagenet.load(None, 8)
    assert data.facts()["examples"] == {"train": 5 * 64, "val": 5 * 16, "test": 5 * 20}


def test_other_sizes_are_made(tmp_path):
    """A picture of 32 x 16, its middle square of one colour; arrays are resized likewise."""
    for split in SPLITS:
        for wnid in LISTS[split]:
            path = tmp_path / "pictures" / split / wnid / "0.png"
            path.parent.mkdir(parents=True)
            picture = Image.new("RGB", (32, 16), "blue")
            picture.paste(colour(wnid, 1), (8, 0, 24, 16))
            picture.save(path)
    caches(tmp_path / "arrays")
    for form in ("pictures", "arrays"):
        x = miniimagenet.load(str(tmp_path / form), 4).open("val").x
        assert x.shape[1:] == (3, 4, 4)
        wnid = min(LISTS["val"])
        assert x[1 if form == "arrays" else 0, :, 1, 2].tolist() == list(colour(wnid, 1))


def test_large_splits_are_not_kept_in_memory(tmp_path, monkeypatch, cache):
    caches(tmp_path / "arrays")
    folders_of_splits(tmp_path / "pictures")
    small = {form: miniimagenet.load(str(tmp_path / form), 8) for form in ("arrays", "pictures")}
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "other"))
    monkeypatch.setattr(large_array, "IN_MEMORY", 0)
    monkeypatch.setattr(pictures, "AHEAD", 1)
    for form, data in small.items():
        assert miniimagenet.load(str(tmp_path / form), 8).checksum == data.checksum
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["prepared"]
    full = SimpleNamespace(free=9)
    monkeypatch.setattr(large_array.shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match="0 GiB free"):
        miniimagenet.load(str(tmp_path / "arrays"), 7)


def test_a_change_of_the_files_is_noticed(tmp_path):
    folders_of_splits(tmp_path)
    before = miniimagenet.load(str(tmp_path), 8)
    assert miniimagenet.load(str(tmp_path), 8).files == before.files
    paint(tmp_path / "val" / min(LISTS["val"]) / "1.png", EVERY[0], 0)
    assert miniimagenet.load(str(tmp_path), 8).checksum != before.checksum


def test_nothing_there(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as told:
            miniimagenet.load(str(root), 84)
        text = str(told.value)
        assert "\n" not in text
        for word in ("may not be redistributed", "https://image-net.org", str(root), "data.root="):
            assert word in text
        assert "mini-imagenet-cache-{train,val,test}.pkl" in text
    with pytest.raises(UserError, match="size=0"):
        miniimagenet.load(str(tmp_path), 0)


def no_class(root):
    folders_of_splits(root)
    for path in (root / "test" / min(LISTS["test"])).iterdir():
        path.unlink()


def no_file(root):
    caches(root)
    (root / "mini-imagenet-cache-val.pkl").unlink()


def other_classes(root):
    caches(root)
    os.replace(root / "mini-imagenet-cache-test.pkl", root / "mini-imagenet-cache-val.pkl")
    cache(root, "test")


def other_list(root):
    loose_pictures(root)
    path = root / "val.csv"
    path.write_text(path.read_text().replace(min(LISTS["val"]), min(LISTS["test"])))


def no_columns(root):
    loose_pictures(root)
    (root / "val.csv").write_text("a,b\n1,2\n")


def no_images(root):
    caches(root)
    content = {"image_data": array(LISTS["val"]).astype(float), "class_dict": {}}
    (root / "mini-imagenet-cache-val.pkl").write_bytes(pickle.dumps(content))


def no_labels(root):
    category_arrays(root)
    path = root / "miniImageNet_category_split_val.npz"
    np.savez(path, data=array(LISTS["val"]), labels=np.arange(16))


def objects(root):
    category_arrays(root)
    path = root / "miniImageNet_category_split_val.npz"
    np.savez(path, data=np.array([{}, None]), labels=np.arange(2))


def a_program(root):
    caches(root)
    (root / "mini-imagenet-cache-train.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")


def a_page(root):
    category_arrays(root)
    (root / "miniImageNet_category_split_val.npz").write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (no_class, f"pictures of 99 of the 100 classes, but none of {min(LISTS['test'])}"),
        (no_file, "none of val"),
        (other_classes, "other classes than the standard val split .20 for 16, such as n"),
        (other_list, r"val\.csv has other classes than the standard val split"),
        (no_columns, r"val\.csv must be a CSV file with the columns filename and label"),
        (no_images, r"val\.pkl: its content is float64 .* images are uint8"),
        (no_labels, "48 images, but not a label for each"),
        (objects, r"val\.npz cannot be read: Object arrays"),
        (a_program, r"train\.pkl is refused: it asks for os\.system"),
        (a_page, r"val\.npz cannot be read"),
    ],
)
def test_what_is_not_whole_is_told(tmp_path, layout, told, cache):
    layout(tmp_path)
    with pytest.raises(UserError, match=told) as error:
        miniimagenet.load(str(tmp_path), 8)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.safetensors"))


def test_lists():
    """64, 16 and 20 classes of 600 of up to 1300 pictures each, no class twice."""
    assert [len(LISTS[split]) for split in SPLITS] == [64, 16, 20]
    assert len(set(EVERY)) == 100
    for split in SPLITS:
        for bits in LISTS[split].values():
            numbers = miniimagenet.numbers(bits)
            assert len(set(numbers)) == 600
            assert 1 <= min(numbers) < max(numbers) <= 1300


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published lists are not on this machine")
def test_lists_agree_with_the_published_ones():
    for split, classes in miniimagenet.published_lists().items():
        path = PUBLISHED / "miniimagenet" / f"{split}.csv"
        assert miniimagenet.csv_list(path, split) == classes
