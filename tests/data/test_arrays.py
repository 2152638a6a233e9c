import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metarun.data import arrays
from metarun.errors import UserError

OPTIONS = {"min_examples": 0, "split_file": None, "fractions": [0.6, 0.2, 0.2], "split_seed": 0}
Y = np.array([2, 10, 2, 0, 10, 0])  # sorted as numbers: 0, 2, 10
SPLIT = np.array(["test", "val", "test", "train", "val", "train"])
VECTORS = np.arange(12.0).reshape(6, 2)


def stored(folder, ending=".npz", **content):
    path = folder / f"data{ending}"
    if ending == ".npz":
        np.savez(path, **content)
    else:
        save_file({name: torch.from_numpy(x) for name, x in content.items()}, path)
    return path


def load(path, **changes):
    return arrays.load(str(path), **{**OPTIONS, **changes})


def members(data):
    return {split: list(outline.classes) for split, outline in data.outlines.items()}


@pytest.mark.parametrize(
    "names",
    [("x", "y"), ("features", "labels"), ("X", "Y"), ("Data", "target"), ("IMAGES", "Class")],
)
def test_vectors_with_a_split(tmp_path, names):
    data = load(stored(tmp_path, **{names[0]: VECTORS, names[1]: Y, "Split": SPLIT}))
    assert data.facts()["split"] == "by array 'Split'"
    assert data.name == "npz"
    assert members(data) == {"train": ["0"], "val": ["10"], "test": ["2"]}
    train = data.open("train")
    assert train.x.dtype == torch.float32
    assert train.x.tolist() == [[6, 7], [10, 11]]
    assert data.open("test").take(torch.tensor([1, 0])).tolist() == [[4, 5], [0, 1]]


def test_safetensors_with_numbers_for_splits(tmp_path):
    split = np.array([2, 1, 2, 0, 1, 0])
    data = load(stored(tmp_path, ".safetensors", x=VECTORS, y=Y, split=split))
    assert data.name == "safetensors"
    assert members(data) == {"train": ["0"], "val": ["10"], "test": ["2"]}
    assert data.open("val").x.tolist() == [[2, 3], [8, 9]]
    save_file(
        {"x": torch.tensor(VECTORS).bfloat16(), "y": torch.tensor(Y)}, tmp_path / "b.safetensors"
    )
    assert load(tmp_path / "b.safetensors").open("train").x.dtype == torch.float32


def test_splits_apart(tmp_path):
    parts = {"train": "ab", "val": "c", "test": "de"}
    content = {}
    for k, (split, names) in enumerate(parts.items()):
        content[f"x_{split}"] = np.arange(2 * len(names)).reshape(-1, 1) + 10 * k
        content[f"y_{split}"] = np.array(list(names[::-1] * 2))
        content[f"superclass_{split}"] = np.array([f"{name}s" for name in names[::-1] * 2])
    data = load(stored(tmp_path, **content))
    assert members(data) == {split: list(names) for split, names in parts.items()}
    test = data.open("test")
    assert test.x[:, 0].tolist() == [21, 23, 20, 22]  # d stands second and fourth
    assert test.first_row.tolist() == [0, 2, 4]
    assert test.superclasses == ("ds", "es")
    del content["x_val"]
    with pytest.raises(UserError, match="has x_train and x_test: give those of all of train, val"):
        load(stored(tmp_path, **content))
    del content["x_train"]
    content["notes"] = np.zeros(3)
    data = load(stored(tmp_path, **content))
    assert members(data) == {"train": [], "val": [], "test": ["d", "e"]}
    assert "notes" in data.facts()["left_out"]


@pytest.mark.parametrize("names", ["X_{}", "x{}", "{}_data", "images-{}", "Features_{}"])
def test_splits_apart_by_other_names(tmp_path, names):
    content = {}
    for k, split in enumerate(("TRAIN", "valid", "Test")):
        content[names.format(split)] = VECTORS + k / 3
        content[f"{split}_labels"] = Y + 20 * k
    data = load(stored(tmp_path, **content))
    assert members(data)["val"] == ["20", "22", "30"]
    assert data.facts()["split"] == "by arrays " + ", ".join(
        names.format(split) for split in ("TRAIN", "valid", "Test")
    )
    content["x"] = VECTORS
    with pytest.raises(UserError, match=r"has x, and .* beside: give either all examples"):
        load(stored(tmp_path, **content))


def test_listed_and_by_chance(tmp_path):
    path = stored(tmp_path, x=VECTORS, y=Y)
    (tmp_path / "s.csv").write_text("label,split\n2,train\n0,val\n10,test\n")
    assert members(load(path, split_file="s.csv")) == {"train": ["2"], "val": ["0"], "test": ["10"]}
    assert sorted(name for names in members(load(path)).values() for name in names) == [
        *("0", "10", "2")
    ]


@pytest.mark.parametrize("divided", [None, "float32", "float64"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
@pytest.mark.parametrize(
    "shape", [(6, 5, 4), (6, 1, 5, 4), (6, 5, 4, 1), (6, 3, 5, 4), (6, 5, 4, 3)]
)
def test_bytes_are_images(tmp_path, shape, dtype, divided):
    """With channels first, last or none, always [N, C, H, W], whatever type of number they are
    stored as, and divided by 255 too; normalised when they are taken."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kept = images.astype(dtype) if divided is None else images.astype(divided) / 255
    data = load(stored(tmp_path, images=kept, y=Y, split=SPLIT))
    assert data.facts()["read_as"].startswith("images [")
    train = data.open("train")
    channels = 3 if 3 in shape else 1
    assert train.x.shape == (2, channels, 5, 4)
    wanted = images[[3, 5]]
    if len(shape) == 3:
        wanted = wanted[..., None]
    if wanted.shape[1:3] == (5, 4):
        wanted = np.moveaxis(wanted, 3, 1)
    assert train.x.tolist() == wanted.tolist()
    assert train.mean == pytest.approx((wanted / 255).mean(axis=(0, 2, 3)))
    assert train.std == pytest.approx((wanted / 255).std(axis=(0, 2, 3)))
    taken = train.take(torch.arange(2))
    assert taken.mean().abs() < 1e-6
    assert data.outlines["val"].kind == "images"


def test_what_is_neither_stays_a_number(tmp_path):
    """Bytes in rows are fingerprints and not images; maps of floats are maps."""
    bits = np.array([[0, 1], [1, 1], [0, 0]] * 2, dtype=np.uint8)
    data = load(stored(tmp_path, x=bits, y=Y))
    assert data.outlines["train"].kind == "vectors"
    maps = np.random.default_rng(0).normal(size=(6, 2, 3, 3))
    assert load(stored(tmp_path, x=maps, y=Y)).open("test").input_shape == (2, 3, 3)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3), (6, 3, 5, 4)])
def test_pictures_of_fractions_stay_so(tmp_path, shape):
    """No byte has their values; they have the shape of images all the same, channels first."""
    pictures = np.random.default_rng(0).random(shape)
    data = load(stored(tmp_path, x=pictures, y=Y, split=SPLIT))
    train = data.open("train")
    assert (train.kind, train.x.shape) == ("vectors", (2, 1 if len(shape) == 3 else 3, 5, 4))
    wanted = pictures[[3, 5]]
    wanted = wanted[:, None] if len(shape) == 3 else wanted
    wanted = np.moveaxis(wanted, 3, 1) if wanted.shape[1] == 5 else wanted
    np.testing.assert_allclose(train.x, wanted, rtol=1e-6)


def test_pictures_that_are_all_black_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"all 6 pictures are one colour, \[0\] of 255"):
        load(stored(tmp_path, x=np.zeros((6, 5, 4), np.uint8), y=Y))
    faint = np.random.default_rng(0).integers(0, 2, (6, 5, 4))
    (said,) = load(stored(tmp_path, x=faint.astype(np.uint8), y=Y)).facts()["doubts"]
    assert said == "the training pictures go from 0 to 1 of 255: they have hardly any contrast"


def test_classes_that_are_too_small_are_left_out(tmp_path):
    y = np.array([1, 1, 2, 2, 3, 3, 4, 5])
    data = load(stored(tmp_path, x=np.arange(16.0).reshape(8, 2), y=y), min_examples=2)
    assert sorted(n for names in members(data).values() for n in names) == ["1", "2", "3"]
    (said,) = data.facts()["doubts"]
    assert said.startswith("left out 2 of 5 classes")


def wrong(x=VECTORS, y=Y, **more):
    return {"x": x, "y": y, **more}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": VECTORS}, "has a: examples must be named x (or images, features, data) and lab"),
        ({"x": VECTORS}, "labels y"),
        (wrong(y=Y[:5]), "y has shape [5], but there are 6 rows"),
        (wrong(y=np.eye(6)), "y has shape [6, 6]"),
        (wrong(y=Y / 2), "y is float64: give whole numbers or text"),
        (wrong(y=np.array([None] * 6)), "Python objects: save labels as numbers or text"),
        (wrong(x=np.arange(6)), "x is int64 [6]: examples are numbers [N, ...]"),
        (wrong(x=np.array([["a"]] * 6)), "examples are numbers"),
        (wrong(x=np.where(VECTORS == 7, np.nan, VECTORS)), "row 3 of x has a number that is not"),
        (wrong(split=Y), "split has 10: give 0 (train), 1 (val) and 2 (test)"),
        (wrong(split=Y - 20), "split has -20: give 0 (train), 1 (val) and 2 (test)"),
        (wrong(split=np.array(["train"] * 6)), "gives no class to val and test"),
        (wrong(split=np.roll(SPLIT, 1)), "some rows"),
        (wrong(superclass=np.arange(6)), "class '0' has the superclass '3' in some rows and '5'"),
        (
            {f"{n}_{s}": v for s in ("train", "val", "test") for n, v in wrong().items()},
            "class '0' is in both train and val",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path, content, said):
    with pytest.raises(UserError) as error:
        load(stored(tmp_path, **content))
    assert said in str(error.value)


def test_no_arrays(tmp_path):
    with pytest.raises(UserError, match=r"data\.file=FILE is needed"):
        arrays.load(None, **OPTIONS)
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(UserError, match=r"must end in \.npz or \.safetensors"):
        load(tmp_path / "data.pkl")
    for ending in (".npz", ".safetensors"):
        (tmp_path / f"bad{ending}").write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match="cannot be read"):
            load(tmp_path / f"bad{ending}")


def test_from_the_command_line(metarun):
    """Classes of vectors about centres of their own: a nearest mean tells them apart."""
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 8)
    x = random.normal(size=(12, 5))[y] * 3 + random.normal(size=(96, 5))
    np.savez(metarun.folder / "mine.npz", x=x, y=y)
    mine = (
        "data=npz data.file=mine.npz backbone=pixels way=2 query=5 device=cpu tracker=none".split()
    )
    metarun.main(*mine, "train.steps=0", "eval.episodes=50", "hydra.run.dir=outputs/a")
    results = metarun.results("a")
    assert results["test"]["accuracy"] > 0.9
    assert results["data"]["name"] == "npz"
    said = metarun.error(*mine, "augment=crop_flip")
    assert said == "augment changes images, and data=npz has none: use augment=none"
    assert "nothing to learn: train.steps=0 only tests" in metarun.error(*mine)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
@pytest.mark.filterwarnings("error")
def test_a_number_that_float32_does_not_hold(tmp_path, ending, number):
    x = VECTORS.copy()
    x[4, 1] = number
    with pytest.raises(UserError, match="row 4 of x has a number that is not finite: leave it out"):
        load(stored(tmp_path, ending, x=x, y=Y))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_what_is_odd_is_told(tmp_path, ending):
    """Examples that are all alike, and one number that dwarfs the others."""
    x = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    x[20:40] = x[20]
    x[7, 1] = 1e7
    y = np.arange(60) // 20
    path = stored(tmp_path, ending, x=x, y=y, split=y.copy())
    alike, far = load(path).facts()["doubts"]
    assert alike == "all 20 examples of the val split are alike"
    assert far.startswith("number 1 is 1e+07 in one example, but within ")
    assert load(path).facts()["doubts"] == [alike, far], "of the prepared files too"


def test_classes_that_differ_only_in_their_form_are_refused(tmp_path):
    labels = np.array(["caf\u00e9", "cafe\u0301", "a", "b", "a", "b"])
    with pytest.raises(UserError, match="there are two classes 'caf\u00e9', which differ only in"):
        load(stored(tmp_path, x=VECTORS, y=labels))
    labels[0] = labels[1]
    data = load(stored(tmp_path, x=VECTORS, y=labels))
    assert {c for inside in members(data).values() for c in inside} == {"caf\u00e9", "a", "b"}


def test_a_header_that_claims_more_than_any_memory(tmp_path):
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (10**16, 1)}
    np.lib.format.write_array_header_1_0(header, shape)
    path = stored(tmp_path, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(UserError, match=r"data\.npz cannot be read: Unable .*: it is damaged"):
        load(path)
