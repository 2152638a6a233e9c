import csv
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.data.archives import members
from metarun.data.images import omniglot
from metarun.data.images import omniglot_challenge as challenge
from metarun.errors import UserError
from tests.data.images.test_omniglot import drawing, png, write_archive
from tests.data.layouts import as_folder, as_zip


def answers(run):
    """The class that each item of the run shows: a permutation of its own for each run."""
    return random.Random(run).sample(range(1, 21), 20)


def runs() -> dict[str, bytes]:
    """all_runs.zip, laid out as the authors' one."""
    files = {}
    for run in range(1, 21):
        lines = []
        for item, c in enumerate(answers(run), start=1):
            training, test = (
                f"run{run:02}/training/class{c:02}.png",
                f"run{run:02}/test/item{item:02}.png",
            )
            files |= {training: png(drawing(training)), test: png(drawing(test))}
            lines.append(f"{test} {training}")
        files[f"run{run:02}/class_labels.txt"] = ("\n".join(lines) + "\n").encode()
    return files


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder with the runs and the two small background sets."""
    folder = tmp_path_factory.mktemp("challenge")
    for name in ("images_background_small1", "images_background_small2"):
        write_archive(folder / f"{name}.zip")
    as_zip(runs(), folder / "all_runs.zip")
    return folder


def load(root, background="small1", rotations=False, size=8, mirrors=False):
    return challenge.load(str(root), background, rotations, mirrors, size)


def refused(root) -> str:
    """What is said of an archive that cannot be used, in one line."""
    with pytest.raises(UserError) as told:
        load(root)
    assert "is damaged or not complete" in str(told.value)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_the_runs(small):
    """Each task has one run's training drawings for its support, and every query its label."""
    data = load(small)
    own, test = data.own_tasks("test"), data.open("test")
    assert own.names == tuple(f"run{run:02}" for run in range(1, 21))
    assert own.rows.support.shape == own.rows.query.shape == (20, 20)
    assert own.rows.way == 20
    files = runs()
    for run in range(1, 21):
        classes = answers(run)
        seen = []
        for place in range(20):
            row, label = own.rows.support[run - 1, place], own.rows.support_y[run - 1, place]
            number = int(label) + 1
            ink = drawing(f"run{run:02}/training/class{number:02}.png")
            assert np.array_equal(test.x[row, 0].numpy(), 255 * ink)
            row, label = own.rows.query[run - 1, place], own.rows.query_y[run - 1, place]
            item = classes.index(int(label) + 1) + 1
            ink = drawing(f"run{run:02}/test/item{item:02}.png")
            assert np.array_equal(test.x[row, 0].numpy(), 255 * ink)
            seen.append(item)
        assert sorted(seen) == list(range(1, 21))
    assert len(files) == 20 * 41


def test_drawings_are_made_as_those_of_training(small, tmp_path, cache):
    """The same file gives the same image, in whichever archive it is, at a size that needs care."""
    (tmp_path / "all_runs").mkdir()
    for path in small.glob("images*.zip"):
        (tmp_path / path.name).symlink_to(path)
    files = runs()
    entry = "images_background_small1/Greek/character05/0005_07.png"
    ((_, content),) = members(small / "images_background_small1.zip", challenge.re.compile(entry))
    files["run13/training/class02.png"] = content
    as_zip(files, tmp_path / "all_runs.zip")
    data = load(tmp_path, size=5)
    train, test = data.open("train"), data.open("test")
    drawn = train.x[train.first_row[train.classes.index("Greek/character05")] + 6]
    assert torch.equal(drawn, test.x[test.first_row[test.classes.index("run13/class02")]])
    assert 0 < drawn.float().mean() < 255
    assert (train.mean, train.std) == (test.mean, test.std)


@pytest.mark.parametrize(
    ("background", "held_out", "left"),
    [("small1", ["Early_Aramaic"], 24 + 24 + 40 + 26), ("small2", ["Greek"], 47 + 26 + 42 + 17)],
)
def test_background_sets(small, background, held_out, left):
    """Of the chosen set some alphabets are for validation, and turns are for training only."""
    upright, turned = (load(small, background, rotations) for rotations in (False, True))
    assert len(upright.outlines["train"].classes) == left
    assert len(turned.outlines["train"].classes) == 4 * left
    for data in (upright, turned):
        assert list(data.outlines["val"].superclasses) == held_out
        assert len(data.outlines["val"].classes) >= 20, "a task as large as a run can be drawn"
        assert not set(held_out) & {c.split("/")[0] for c in data.outlines["train"].classes}
        assert data.own_tasks("val") is None
    assert upright.open("test").x.equal(turned.open("test").x)
    minimal = omniglot.load(str(small), "minimal", rotations=False, size=8).open("train")
    greek = minimal.classes.index("Greek/character03")
    split = upright.open("val" if background == "small2" else "train")
    here = split.classes.index("Greek/character03")
    assert split.x[20 * here : 20 * here + 20].equal(minimal.x[20 * greek : 20 * greek + 20])


def test_mirror_images_are_classes_too(small):
    """Of each quarter turn of what is trained on: twice the classes, pixel by pixel."""
    plain, both = (load(small, rotations=True, mirrors=m) for m in (False, True))
    train, mirrored = plain.open("train"), both.open("train")
    assert len(mirrored.classes) == 2 * len(train.classes) == len(set(mirrored.classes))
    for name in ("Greek/character05/rot000", "Korean/character40/rot090"):
        ours = train.classes.index(name)
        upright = train.x[20 * train.classes.index(f"{name[:-3]}000") :][:20]
        assert torch.equal(
            mirrored.x[20 * mirrored.classes.index(name) :][:20], train.x[20 * ours :][:20]
        )
        wanted = [np.rot90(np.fliplr(image[0]), int(name[-3:]) // 90) for image in upright.numpy()]
        at = 20 * mirrored.classes.index(f"{name}/mirrored")
        assert np.array_equal(mirrored.x[at : at + 20, 0].numpy(), np.stack(wanted))
    assert set(mirrored.superclasses) == {
        f"{s}{end}" for s in train.superclasses for end in ("", "/mirrored")
    }
    assert both.open("val").x.equal(plain.open("val").x)
    assert both.open("test").x.equal(plain.open("test").x)


def test_the_original_background_set_is_that_of_lake():
    """Its alphabets for training and validation are those of splits=lake."""
    lake = omniglot.LISTS["splits"]["lake"]
    assert set(challenge.VALIDATION["original"]) == set(lake["val"])
    assert set(omniglot.LISTS["archives"]["images_background"]) == {*lake["train"], *lake["val"]}
    for background, archive in challenge.BACKGROUNDS.items():
        assert set(challenge.VALIDATION[background]) < set(omniglot.LISTS["archives"][archive])


@pytest.mark.parametrize("where", ["", "all_runs", "omniglot", "python/one-shot-classification"])
@pytest.mark.parametrize("unpacked", [True, False])
def test_found_where_people_have_it(small, tmp_path, where, unpacked):
    checksum = load(small).checksum
    root = tmp_path / "root"
    (root / where).mkdir(parents=True)
    if unpacked:
        as_folder(runs(), root / where)
        (root / where / "run01" / "._class_labels.txt").write_bytes(b"\0\5")
    else:
        (root / where / "all_runs.zip").symlink_to(small / "all_runs.zip")
    (root / "images_background_small1.zip").symlink_to(small / "images_background_small1.zip")
    assert load(root).checksum == checksum


def test_an_archive_with_a_folder_around_it(small, tmp_path):
    (tmp_path / "images_background_small1.zip").symlink_to(small / "images_background_small1.zip")
    around = {f"all_runs/{name}": content for name, content in runs().items()}
    around["__MACOSX/all_runs/run01/._class_labels.txt"] = b"\0\5"
    around["all_runs/run01/training/Thumbs.db"] = b"\0"
    as_zip(around, tmp_path / "all_runs.zip")
    assert load(tmp_path).checksum == load(small).checksum


@pytest.fixture
def spoilt(small, tmp_path):
    """A function that writes changed runs into a folder with everything else in order."""
    (tmp_path / "images_background_small1.zip").symlink_to(small / "images_background_small1.zip")

    def write(unpacked: bool = False, **changes) -> Path:
        files = {**runs(), **changes.pop("files", {})}
        kept = {name: content for name, content in files.items() if content is not None}
        if unpacked:
            as_folder(kept, tmp_path / "all_runs")
        else:
            as_zip(kept, tmp_path / "all_runs.zip")
        return tmp_path

    return write


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run07/test/item20.png", "run07/test/item20.png is missing"),
        ("run20/training/class01.png", "run20/training/class01.png is missing"),
        ("run13/class_labels.txt", "run13/class_labels.txt is missing"),
    ],
)
def test_a_file_is_missing(spoilt, name, said, unpacked):
    assert said in refused(spoilt(unpacked, files={name: None}))


def test_a_run_is_missing(spoilt):
    gone = {name: None for name in runs() if name.startswith("run19/")}
    assert "run19/training/class01.png is missing" in refused(spoilt(files=gone))


LINE = "run03/test/item{:02}.png run03/training/class{:02}.png\n"


@pytest.mark.parametrize(
    "text",
    [
        "".join(LINE.format(i, i) for i in range(1, 20)),  # one item short
        "".join(LINE.format(i, min(i, 19)) for i in range(1, 21)),  # two items of a class
        "".join(LINE.format(i, i) for i in range(1, 20)) + LINE.format(19, 20),  # one item twice
        "".join(LINE.format(i, i + 1) for i in range(1, 21)),  # a class that is not there
        "".join(LINE.format(i, i) for i in range(1, 21)).replace("run03", "run04"),  # another run's
        "run03/test/item01.png\n" * 20,
        "",
        b"\xff\xfe\x00",
    ],
)
def test_labels_that_cannot_be(spoilt, text):
    content = text if isinstance(text, bytes) else text.encode()
    said = refused(spoilt(files={"run03/class_labels.txt": content}))
    assert "run03: " in said


def test_labels_of_another_system(small, spoilt):
    """Ends of lines as Windows has them, and an empty line, say the same."""
    text = runs()["run03/class_labels.txt"].replace(b"\n", b"\r\n") + b"\r\n"
    assert load(spoilt(files={"run03/class_labels.txt": text})).checksum == load(small).checksum


def test_a_drawing_that_is_none(spoilt):
    assert "run11: " in refused(spoilt(files={"run11/test/item04.png": b"spoilt"}))


@pytest.mark.parametrize("harm", ["truncated", "not a zip", "flipped"])
def test_a_damaged_archive(spoilt, harm):
    root = spoilt()
    path = root / "all_runs.zip"
    content = path.read_bytes()
    at = content.index(b"IDAT", content.index(b"run09/test/item05")) + 6
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "not a zip": b"<html>not found</html>",
            "flipped": content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :],
        }[harm]
    )
    assert str(path) in refused(root)


def test_without_the_runs(small, tmp_path, monkeypatch):
    """Where to fetch them is told."""
    (tmp_path / "images_background_small1.zip").symlink_to(small / "images_background_small1.zip")
    monkeypatch.setattr(challenge, "URL", "http://127.0.0.1:9/all_runs.zip")
    with pytest.raises(UserError, match=r"fetch http://127\.0\.0\.1:9/all_runs\.zip"):
        load(tmp_path)


def test_wrong_options(small):
    with pytest.raises(UserError, match="original, small1, small2"):
        load(small, "small3")
    with pytest.raises(UserError, match="size=0"):
        load(small, size=0)


REAL = Path(os.environ.get("METARUN_TEST_OMNIGLOT_RUNS", "nowhere")) / "all_runs.zip"


@pytest.mark.skipif(not REAL.exists(), reason="the runs are not on this machine")
def test_the_published_runs(tmp_path):
    with zipfile.ZipFile(REAL) as archive:
        assert len([name for name in archive.namelist() if name.endswith(".png")]) == 800
    split = challenge.test_split([REAL], 28)
    assert split.first_row.diff().eq(2).all()
    assert len(split.superclasses) == 20


TRAINED = (
    "train.steps=2 train.val_every=2 eval.val_episodes=2 sampler.tasks=2 query=2 backbone.width=4 "
    "data.background=small1 data.size=16 tracker=none device=cpu"
).split()


def test_from_the_command_line(metarun, small, monkeypatch, capsys):
    """Trained and tested in one go, and a model trained on other data tested: the same file of
    results, whose errors agree with each other and with the file of the episodes."""
    root = f"data.root={small}"
    metarun.main(
        *metarun.data,
        "way=20",
        *TRAINED[:6],
        *TRAINED[7:],
        "name=first",
        "hydra.run.dir=outputs/first",
    )
    checkpoint = "checkpoint=outputs/first/checkpoints/best.pt"
    test = ["mode=test", checkpoint, "data=omniglot_challenge", root, *TRAINED]
    metarun.main(*test, "hydra.run.dir=outputs/tested")
    metarun.main("data=omniglot_challenge", root, *TRAINED, "hydra.run.dir=outputs/trained")
    printed = capsys.readouterr().out
    for name in ("tested", "trained"):
        results = metarun.results(name)["test"]
        assert [results[key] for key in ("way", "shot", "query", "episodes")] == [20, 1, 1, 20]
        assert list(results["errors"]) == [f"run{run:02}" for run in range(1, 21)]
        assert results["error"] == pytest.approx(1 - results["accuracy"])
        with open(metarun.folder / "outputs" / name / "episodes.csv") as file:
            rows = list(csv.DictReader(file))
        errors = {row["task"]: pytest.approx(1 - float(row["accuracy"])) for row in rows}
        assert results["errors"] == errors
        assert all(
            20 * error == pytest.approx(round(20 * error)) for error in results["errors"].values()
        )
        each = " ".join(f"{100 * error:.4g}" for error in results["errors"].values())
        assert f"{each} %" in printed
    tested, trained = metarun.results("tested"), metarun.results("trained")
    assert tested["test"]["episodes_sha256"] == trained["test"]["episodes_sha256"]
    told = metarun.error("data=omniglot_challenge", root, *TRAINED, "eval.way=5")
    assert told == (
        "eval.way=5: data=omniglot_challenge has test tasks of its own, 20 of 20-way 1-shot, "
        "query=1: set eval.way=20"
    )


@pytest.mark.parametrize("background", ["small1", "small2"])
def test_recipes(metarun, small, background):
    """The committed experiments run on an archive as it is published."""
    metarun.main(
        *(f"experiment=lake2019/omniglot_challenge_{background}", f"data.root={small}"),
        *("train.steps=2", "train.val_every=2", "eval.val_episodes=2", "sampler.tasks=2"),
        *("backbone.width=4", "tracker=none", "device=cpu", "hydra.run.dir=outputs/run"),
    )
    results = metarun.results("run")
    assert results["config"]["data"]["background"] == background
    assert len(results["test"]["errors"]) == 20
