import hashlib
import io
import os
import random
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.data.images import omniglot
from metarun.errors import UserError

REAL = Path(
    os.environ.get("METARUN_TEST_OMNIGLOT", Path(__file__).parents[4] / "shared/data/omniglot")
)
real = pytest.mark.skipif(
    not (REAL / "images_background.zip").exists(), reason="no Omniglot on this machine"
)
SMALL = ("images_background_small1", "images_background_small2")


def drawing(entry):
    """A 1-bit picture of 8 x 8, other for every entry: black ink on white."""
    bits = hashlib.sha256(entry.encode()).digest()[:8]
    ink = np.unpackbits(np.frombuffer(bits, dtype=np.uint8)).reshape(8, 8)
    return ink == 1


def png(ink):
    file = io.BytesIO()
    Image.fromarray(~ink).save(file, "png")
    return file.getvalue()


def write_archive(path, leave_out=()):
    """An archive laid out as the authors' one of that name."""
    entries = [
        f"{path.stem}/{alphabet}/character{number:02}/{number:04}_{drawer:02}.png"
        for alphabet, count in omniglot.LISTS["archives"][path.stem].items()
        for number in range(1, count + 1)
        for drawer in range(1, 21)
    ]
    random.Random(0).shuffle(entries)  # an archive promises no order
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/Greek/", "")
        for entry in entries:
            if entry not in leave_out:
                archive.writestr(entry, png(drawing(entry.partition("/")[2])))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the two small archives."""
    folder = tmp_path_factory.mktemp("small")
    for name in SMALL:
        write_archive(folder / f"{name}.zip")
    return folder


def test_minimal_upright(small):
    data = omniglot.load(str(small), "minimal", rotations=False, size=8)
    counts = {split: len(outline.classes) for split, outline in data.outlines.items()}
    assert counts == {"train": 24 + 22 + 24 + 40 + 26, "val": 47, "test": 42 + 17}
    assert data.outlines["test"].superclasses == ("Sanskrit", "Tagalog")
    for split in data.files:
        content = data.open(split)
        assert content.input_shape == (1, 8, 8)
        assert content.first_row.diff().eq(20).all()
        assert (content.mean, content.std) == ((0.0,), (1.0,)), "strokes 1 on 0"
        for c, name in enumerate(content.classes):
            number = int(name[-2:])
            assert content.superclasses[content.superclass[c]] == name.split("/")[0]
            for drawer in range(1, 21):
                ink = drawing(f"{name}/{number:04}_{drawer:02}.png")
                got = content.x[content.first_row[c] + drawer - 1, 0].numpy()
                assert np.array_equal(got, ink * 255)


def test_turns_are_classes_of_their_own(small):
    upright = omniglot.load(str(small), "minimal", rotations=False, size=6).open("test")
    turned = omniglot.load(str(small), "minimal", rotations=True, size=6).open("test")
    assert len(turned.classes) == 4 * len(upright.classes)
    assert turned.superclasses[:4] == (
        *("Sanskrit/rot000", "Sanskrit/rot090", "Sanskrit/rot180", "Sanskrit/rot270"),
    )
    for c, name in enumerate(turned.classes):
        character, turn = name.rsplit("/rot", 1)
        assert turned.superclasses[turned.superclass[c]] == f"{character.split('/')[0]}/rot{turn}"
        at = upright.classes.index(character)
        wanted = np.rot90(
            upright.x[20 * at : 20 * at + 20, 0].numpy(), int(turn) // 90, axes=(1, 2)
        )
        assert np.array_equal(turned.x[20 * c : 20 * c + 20, 0].numpy(), wanted)


def test_found_in_the_folders_that_people_have(small, tmp_path):
    checksum = omniglot.load(str(small), "minimal", rotations=False, size=8).checksum
    for folder in ("omniglot", "omniglot-py"):
        below = tmp_path / folder / folder
        below.parent.mkdir()
        below.symlink_to(small)
        data = omniglot.load(str(below.parent), "minimal", rotations=False, size=8)
        assert data.checksum == checksum


def test_lists_of_vinyals():
    """1028, 172 and 423 characters, each of the 1623 once; Gurmukhi alone is divided."""
    counts = {**omniglot.LISTS["archives"]["images_background"]}
    counts |= omniglot.LISTS["archives"]["images_evaluation"]
    assert (len(counts), sum(counts.values())) == (50, 1623)
    seen = []
    for split, size in (("train", 1028), ("val", 172), ("test", 423)):
        members = [
            (alphabet, number)
            for alphabet, (first, last) in omniglot.LISTS["splits"]["vinyals"][split].items()
            for number in range(first, last + 1)
        ]
        assert len(members) == size
        seen += members
    assert len(set(seen)) == len(seen) == 1623
    assert all(1 <= number <= counts[alphabet] for alphabet, number in seen)
    vinyals = omniglot.LISTS["splits"]["vinyals"]
    assert set(vinyals["train"]) & set(vinyals["test"]) == {"Gurmukhi"}
    assert (vinyals["train"]["Gurmukhi"], vinyals["test"]["Gurmukhi"]) == ([1, 41], [42, 45])


def test_lists_of_lake():
    lake = omniglot.LISTS["splits"]["lake"]
    archives = omniglot.LISTS["archives"]
    assert set(lake["test"]) == set(archives["images_evaluation"])
    assert set(lake["train"]) | set(lake["val"]) == set(archives["images_background"])
    assert not set(lake["train"]) & set(lake["val"])
    sizes = {s: sum(last for _, last in members.values()) for s, members in lake.items()}
    assert sizes == {"train": 792, "val": 172, "test": 659}


def test_an_archive_with_a_drawing_missing(tmp_path):
    for name in SMALL:
        missing = f"{name}/Sanskrit/character07/0007_03.png"
        write_archive(tmp_path / f"{name}.zip", leave_out={missing})
    with pytest.raises(UserError, match=r"small2\.zip .*Sanskrit/character07 has 19 drawings"):
        omniglot.load(str(tmp_path), "minimal", rotations=False, size=8)


@pytest.mark.parametrize("harm", ["truncated", "not a zip", "drawing", "flipped"])
def test_a_damaged_archive(small, tmp_path, harm):
    for name in SMALL:
        (tmp_path / f"{name}.zip").write_bytes((small / f"{name}.zip").read_bytes())
    path = tmp_path / "images_background_small2.zip"
    content = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "not a zip":
        path.write_bytes(b"<html>not found</html>")
    elif harm == "flipped":
        at = content.index(b"IDAT", content.index(b"Sanskrit/character09")) + 6
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    else:  # an entry whose checksum is right, but which is no picture
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                spoilt = entry.endswith("Tagalog/character02/0002_05.png")
                new.writestr(entry, b"spoilt" if spoilt else old.read(entry))
    with pytest.raises(UserError) as told:
        omniglot.load(str(tmp_path), "minimal", rotations=False, size=8)
    assert str(told.value).startswith(f"{path} is damaged")
    assert "replace it" in str(told.value)
    assert "\n" not in str(told.value)


def test_without_archive_and_network(monkeypatch, cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(omniglot, "URL", url)
        with pytest.raises(UserError) as told:
            omniglot.load(None, "vinyals", rotations=True, size=28)
    assert f"{url}/images_background.zip" in str(told.value)
    assert str(cache / "omniglot") in str(told.value)


def test_wrong_options(small):
    with pytest.raises(UserError, match="vinyals, lake, minimal"):
        omniglot.load(str(small), "vinyls", rotations=True, size=28)
    with pytest.raises(UserError, match="size=0"):
        omniglot.load(str(small), "minimal", rotations=True, size=0)


def test_published_sums_are_torchvisions():
    from torchvision.datasets import Omniglot

    assert Omniglot.download_url_prefix == omniglot.URL
    assert Omniglot.zips_md5.items() <= omniglot.MD5.items()


@real
def test_real_drawings(cache):
    data = omniglot.load(str(REAL), "vinyals", rotations=False, size=28)
    counts = {split: len(outline.classes) for split, outline in data.outlines.items()}
    assert counts == {"train": 1028, "val": 172, "test": 423}
    train = data.open("train")
    at = train.classes.index("Greek/character01")
    with zipfile.ZipFile(REAL / "images_background.zip") as archive:
        folder = "images_background/Greek/character01/"
        names = sorted(name for name in archive.namelist() if name.startswith(folder))
        for i, name in enumerate(n for n in names if n.endswith(".png")):
            full = np.array(Image.open(io.BytesIO(archive.read(name))).convert("L"))
            got = train.x[20 * at + i, 0].double() / 255
            # The share of ink survives the resizing, and so does its place.
            ink = torch.from_numpy(full < 128).double()
            assert abs(got.mean() - ink.mean()) < 0.005
            coarse = torch.nn.functional.adaptive_avg_pool2d(ink[None, None], 7)
            assert (torch.nn.functional.avg_pool2d(got[None, None], 4) - coarse).abs().max() < 0.15
    assert not any(REAL.glob("*.lock")), "nothing is written into the user's folder"
    assert len(list((cache / "prepared").glob("omniglot-*"))) == 1


@real
def test_real_lists_agree_with_the_published_ones():
    folder = REAL.parent / "splits" / "omniglot" / "vinyals"
    for split in ("train", "val", "test"):
        wanted = {line.rsplit("/", 1)[0] for line in (folder / f"{split}.txt").read_text().split()}
        got = {
            f"{alphabet}/character{number:02}"
            for alphabet, (first, last) in omniglot.LISTS["splits"]["vinyals"][split].items()
            for number in range(first, last + 1)
        }
        assert got == wanted
