"""tieredImageNet, in small archives of its layouts: all 608 classes, two 4 x 4 pictures each."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.data.images import tieredimagenet
from metarun.data.store import SPLITS
from metarun.errors import UserError

LISTS = tieredimagenet.CLASSES
EVERY = [wnid for split in SPLITS for wnid in LISTS[split]]
PUBLISHED = Path(
    os.environ.get("METARUN_TEST_SPLITS", Path(__file__).parents[4] / "shared/data/splits")
)


def colour(wnid, i):
    number = EVERY.index(wnid)
    return (number % 256, number // 256, 10 * i)


def array(split):
    colours = [colour(wnid, i) for wnid in LISTS[split] for i in range(2)]
    return np.array(colours, np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)


def picture_folders(root, inner):
    for split in SPLITS:
        for wnid in LISTS[split]:
            folder = root / inner(split) / wnid
            folder.mkdir(parents=True)
            for i in range(2):
                path = folder / f"{wnid}_{i}.JPEG"
                Image.new("RGB", (4, 4), colour(wnid, i)).save(path, "png")


def imagenet_folders(root):
    picture_folders(root, lambda split: "train")


def folders_of_splits(root):
    picture_folders(root, lambda split: split)


def write_labels(root, names=lambda split: list(LISTS[split]), protocol=2):
    """Labels that say of each class what its superclass is: its number, by tens."""
    for split in SPLITS:
        labels = np.arange(len(LISTS[split])).repeat(2)
        content = {
            "label_specific": labels,
            "label_specific_str": names(split),
            "label_general": labels // 10,
            "label_general_str": [f"{split} category {i}" for i in range(36)],
        }
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(content, protocol))


def arrays(root):
    root.mkdir()
    write_labels(root)
    for split in SPLITS:
        np.savez(root / f"{split}_images.npz", images=array(split))


def compressed_arrays(root):
    """Labels as Python 2 has them, and names that are words, two of them the same."""
    root.mkdir()
    write_labels(root, lambda split: [b"crane", b"crane", *map(str.encode, LISTS[split][2:])], 4)
    for split in SPLITS:
        np.savez_compressed(root / f"{split}_images.npz", images=array(split))


def encoded(root):
    """A list of PNG files, as cv2.imencode writes them: the last channel is the file's first."""
    root.mkdir()
    write_labels(root)
    for split in SPLITS:
        pictures = []
        for i, image in enumerate(array(split)):
            file = io.BytesIO()
            Image.fromarray(image[..., ::-1]).save(file, "png")
            content = np.frombuffer(file.getvalue(), np.uint8)
            pictures.append(content if i % 2 else content[:, None])
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(pictures, 2))


@pytest.mark.parametrize(
    "layout", [imagenet_folders, folders_of_splits, arrays, compressed_arrays, encoded]
)
def test_every_layout(tmp_path, layout):
    layout(tmp_path / "tiered-imagenet")
    data = tieredimagenet.load(str(tmp_path), 4)
    for split, classes in LISTS.items():
        content = data.open(split)
        assert content.first_row.tolist() == list(range(0, 2 * len(classes) + 1, 2))
        assert content.x[:, :, 0, 0].tolist() == array(split)[:, 0, 0].tolist()
        assert (content.x == content.x[:, :, :1, :1]).all()
        if layout is compressed_arrays:
            assert content.classes[:2] == (f"crane ({split} 0)", f"crane ({split} 1)")
            assert content.classes[2] == f"{classes[2]} ({split} 2)"
        else:
            assert list(content.classes) == classes
        if layout in (imagenet_folders, folders_of_splits):
            assert content.superclasses == ()
        else:
            named = [content.superclasses[i] for i in content.superclass]
            assert named == [f"{split} category {i // 10}" for i in range(len(classes))]


def no_labels(root):
    arrays(root)
    (root / "val_labels.pkl").unlink()


def too_few(root):
    arrays(root)
    np.savez(root / "val_images.npz", images=array("val")[1:])


def too_many(root):
    arrays(root)
    np.savez(root / "val_images.npz", images=array("test"))


def grey(root):
    arrays(root)
    np.savez(root / "val_images.npz", images=array("val")[..., 0])


def cut(root):
    arrays(root)
    path = root / "train_images.npz"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(root):
    arrays(root)
    path = root / "test_images.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoilt(root):
    encoded(root)
    (root / "val_images_png.pkl").write_bytes(pickle.dumps([np.zeros(9, np.uint8)] * 194))


def other_classes(root):
    arrays(root)
    write_labels(root, lambda split: list(LISTS["train"]))


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (no_labels, "has a part of tieredimagenet, but no val_labels.pkl"),
        (too_few, r"val_images\.npz has not one picture for each of its 194 labels"),
        (too_many, r"val_images\.npz has not one picture for each of its 194 labels"),
        (grey, r"val_images\.npz: images is uint8 \[194, 4, 4\]"),
        (cut, r"train_images\.npz cannot be read"),
        (flipped, r"test_images\.npz cannot be read: Bad CRC"),
        (spoilt, r"val_images_png\.pkl has a picture that cannot be read"),
        (other_classes, r"val_labels\.pkl has other classes than the standard val split"),
    ],
)
def test_what_is_not_whole_is_told(tmp_path, layout, told, cache):
    layout(tmp_path / "tieredimagenet")
    with pytest.raises(UserError, match=told) as error:
        tieredimagenet.load(str(tmp_path), 4)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.safetensors"))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"redistributed.*_images_png\.pkl") as error:
        tieredimagenet.load(str(tmp_path), 84)
    assert "\n" not in str(error.value)


def test_lists():
    assert [len(LISTS[split]) for split in SPLITS] == [351, 97, 160]
    assert len(set(EVERY)) == 608


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published lists are not on this machine")
def test_lists_agree_with_the_published_ones():
    published = json.loads((PUBLISHED / "tieredimagenet" / "classes.json").read_text())
    assert published == LISTS
