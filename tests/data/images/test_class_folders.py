"""Trees of folders: what is read, and what can be read in two ways."""

import json
import re

import pytest

from metarun.data.store import SPLITS
from metarun.errors import UserError
from tests.data.images.painted import fill, load, members, paint

EACH = ["x/a", "y/b", "z/c"]  # of one depth, so that no name is in two


def classes_of(data):
    return sorted(name for inside in members(data).values() for name in inside)


def superclasses_of(data):
    """The superclass of each class that has one."""
    return {
        name: outline.superclasses[place]
        for outline in data.outlines.values()
        for name, place in zip(outline.classes, outline.superclass.tolist(), strict=False)
    }


SEVERAL_DEPTHS = {
    # The folders, what is said, and the classes by data.depth=1 and data.depth=every.
    "a class with folders in it": (
        ["cat", "cat/young", "dog", "owl"],
        "cat/0.png is 1 folder down and ROOT/cat/young/0.png 2: data.depth=1 puts the latter into "
        "class 'cat', data.depth=every into a class 'cat/young' of its own",
        ["cat", "dog", "owl"],
    ),
    "branches of other depths": (
        ["cat", "dogs/poodle", "dogs/pug", "owl"],
        "cat/0.png is 1 folder down and ROOT/dogs/poodle/0.png 2: data.depth=1 puts the latter "
        "into class 'dogs', data.depth=every into a class 'dogs/poodle' of its own",
        ["cat", "dogs", "owl"],
    ),
    "further down": (
        ["a/b", "c/d/e", "f/g"],
        "a/b/0.png is 2 folders down and ROOT/c/d/e/0.png 3: data.depth=2 puts the latter into "
        "class 'c/d', data.depth=every into a class 'c/d/e' of its own",
        ["a/b", "c/d", "f/g"],
    ),
}


@pytest.mark.parametrize("tree", SEVERAL_DEPTHS)
def test_pictures_at_several_depths(tmp_path, tree):
    folders, said, merged = SEVERAL_DEPTHS[tree]
    fill(tmp_path, folders)
    with pytest.raises(UserError) as refused:
        load(tmp_path)
    wanted = f"{tmp_path} can be read in two ways, {tmp_path}/{said.replace('ROOT', str(tmp_path))}"
    assert str(refused.value) == wanted
    depth = merged[0].count("/") + 1
    data = load(tmp_path, depth=depth)
    assert classes_of(data) == merged
    assert sum(data.facts()["examples"].values()) == 3 * len(folders), "none is lost"
    assert data.facts()["class_folders"].startswith(f"{depth} down, such as ")
    every = load(tmp_path, depth="every")
    assert classes_of(every) == sorted(folders)
    flat = any("/" not in name for name in folders)
    assert superclasses_of(every) == ({} if flat else {n: n.rpartition("/")[0] for n in folders})


def test_what_lies_above_the_depth_is_told(tmp_path):
    fill(tmp_path, ["cat", "cat/young", "cat/old", "dog/pug"])
    data = load(tmp_path, depth=2)
    assert superclasses_of(data) == {"cat/young": "cat", "cat/old": "cat", "dog/pug": "dog"}
    (said,) = data.facts()["doubts"]
    assert said.startswith("left out 3 pictures in no class folder: ")
    with pytest.raises(UserError, match=r"data\.depth=3: no picture below .* in so many .* in 2"):
        load(tmp_path, depth=3)


def test_the_deepest_picture_is_named(tmp_path):
    fill(tmp_path, ["cat", "dog"])
    paint(tmp_path / "root.png", (200, 0, 0))
    with pytest.raises(UserError) as refused:
        load(tmp_path, depth=2)
    said = re.search(r"; (.*) is in (\d)$", str(refused.value))
    assert said[1].startswith(f"{tmp_path}/dog/")
    assert said[2] == "1"


def test_split_folders_of_several_depths(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"])
    fill(tmp_path / "val", ["owl"])
    fill(tmp_path / "test", ["fish/trout", "fish/cod"])
    with pytest.raises(UserError, match=r"train/cat/0\.png is 1 folder down and .*/fish/cod/0"):
        load(tmp_path)
    assert members(load(tmp_path, depth=1))["test"] == {"fish"}
    every = load(tmp_path, depth="every")
    assert members(every)["test"] == {"fish/trout", "fish/cod"}
    assert superclasses_of(every) == {}, "in all the splits or in none"


def test_inner_folders_of_one_name(tmp_path):
    """Classes with their days, or an alphabet's characters."""
    folders = [f"{animal}/{day}" for animal in ("cat", "dog", "owl") for day in ("mon", "tue")]
    fill(tmp_path, folders)
    with pytest.raises(UserError) as refused:
        load(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} can be read in two ways, {tmp_path}/cat/mon/0.png and {tmp_path}/dog/mon/0.png"
        " are in folders of one name: data.depth=1 puts them into classes 'cat' and 'dog', "
        "data.depth=2 into 'cat/mon' and 'dog/mon', with those as superclasses"
    )
    days = load(tmp_path, depth=1)
    assert classes_of(days) == ["cat", "dog", "owl"]
    assert all(outline.first_row.diff().tolist() == [6] for outline in days.outlines.values())
    assert superclasses_of(load(tmp_path, depth=2)) == {n: n.partition("/")[0] for n in folders}


def test_a_superclass_in_two_split_folders(tmp_path):
    for split, folders in zip(SPLITS, (["cat/1", "dog/2"], ["owl/3"], ["cat/4"]), strict=True):
        fill(tmp_path / split, folders)
    with pytest.raises(
        UserError, match=r"test/cat/4/0\.png and .*train/cat/1/0\.png are in two spl"
    ):
        load(tmp_path)
    assert superclasses_of(load(tmp_path, depth=2))["cat/4"] == "cat"
    with pytest.raises(UserError, match="class 'cat' is in both train and test"):
        load(tmp_path, depth=1)


def test_split_folders_further_down(tmp_path):
    for split, name in zip(("Train", "val", "Test"), "abc", strict=True):
        fill(tmp_path / "pets" / split, [name])
    with pytest.raises(UserError) as refused:
        load(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} can be read in two ways, pets in it has Test and Train and val: "
        f"data.root={tmp_path}/pets splits the classes so, data.depth=3 takes these for "
        "superclasses"
    )
    assert members(load(tmp_path / "pets"))["test"] == {"c"}
    assert superclasses_of(load(tmp_path, depth=3))["pets/val/b"] == "pets/val"


@pytest.mark.parametrize(
    "folders",
    [["cat", "dog", "owl"], EACH, ["in/cat", "in/dog", "in/owl"], ["a/b/c", "a/b/d", "a/e/f"]],
)
def test_what_can_be_read_in_one_way_is(tmp_path, folders):
    fill(tmp_path, folders)
    data = load(tmp_path)
    assert classes_of(data) == folders
    deep = {name: name.rpartition("/")[0] for name in folders if "/" in name}
    assert superclasses_of(data) == deep
    assert ("class_folders" in data.facts()) == bool(deep)
    assert data.facts()["doubts"] == []
    assert load(tmp_path, depth="every").checksum == data.checksum


def test_splits_with_a_folder_between(tmp_path):
    """It is no class of its own, since there would be no other."""
    for split, name in zip(SPLITS, "abc", strict=True):
        fill(tmp_path / split / "images", [name])
    assert members(load(tmp_path))["test"] == {"images/c"}


def test_a_list_says_which_folders_are_classes(tmp_path):
    fill(tmp_path, ["cat", "cat/young", "dogs/pug", "owl"])
    lists = {
        "parts": (["cat", "cat/young"], ["dogs/pug"], ["owl"]),
        "beside": (["owl"], ["dogs/pug"], ["cat"]),
        "above": (["owl"], ["dogs"], ["cat/young"]),
    }
    for name, listed in lists.items():
        content = json.dumps(dict(zip(SPLITS, listed, strict=True)))
        (tmp_path / f"{name}.json").write_text(content)
    assert members(load(tmp_path, split_file="parts.json"))["train"] == {"cat", "cat/young"}
    said = (
        r"names 'cat', and .*cat/young/0\.png lies further down: data\.depth=1 .*, data\.depth=eve"
    )
    with pytest.raises(UserError, match=said):
        load(tmp_path, split_file="beside.json")
    with pytest.raises(UserError, match=r"names 'dogs', and .*pug/0\.png .* for its class$"):
        load(tmp_path, split_file="above.json")
    every = load(tmp_path, split_file="beside.json", depth="every")
    assert every.facts()["examples"]["test"] == 3


@pytest.mark.parametrize("depth", [0, -1, True, 1.5, "all", [1]])
def test_a_depth_is_a_number_of_folders(tmp_path, depth):
    fill(tmp_path, EACH)
    with pytest.raises(UserError, match=r"data\.depth=.*: give how many folders down classes are"):
        load(tmp_path, depth=depth)


def test_a_folder_is_a_class_once(tmp_path):
    """Letters composed or not: two folders of one name are not put together unasked."""
    fill(tmp_path, ["caf\u00e9/a", "cafe\u0301/b", "owl/c", "dog/d"])
    with pytest.raises(UserError, match="there are two classes 'caf\u00e9', which differ only in"):
        load(tmp_path, depth=1)


def test_the_header_tells_of_folders_in_folders(metarun):
    fill(metarun.folder / "tree", EACH)
    metarun.main("mode=prepare", "data=image_folder", "data.root=tree", "data.size=16")
    assert (
        "class folders  each with pictures, such as x/a of superclass x"
        in metarun.capsys.readouterr().out
    )
    paint(metarun.folder / "tree/x/0.png", "red")
    said = metarun.error("mode=prepare", "data=image_folder", "data.root=tree", "data.size=16")
    assert said.startswith("tree can be read in two ways, tree/x/0.png is 1 folder down")
    assert metarun.error("data=image_folder", "data.root=tree", "data.depth=0").startswith(
        "data.de"
    )
