import os

import pytest
import torch
from PIL import Image

from metarun.data import csv_file
from metarun.errors import UserError

OPTIONS = {
    "root": None,
    "size": 8,
    "grey": False,
    "split_file": None,
    "fractions": [0.6, 0.2, 0.2],
    "split_seed": 0,
}


def load(path, **changes):
    return csv_file.load(str(path), **{**OPTIONS, **changes})


def written(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), colour).save(path)


def members(data):
    return {split: list(outline.classes) for split, outline in data.outlines.items()}


def test_pictures_by_their_path(tmp_path):
    """Row by row: another order than the files', a picture of two classes, paths with folders."""
    for name, red in (("a/1.png", 10), ("2.png", 20), ("b/c/3.jpg", 30), ("4.png", 40)):
        paint(tmp_path / name, (red, 0, 0))
    table = written(
        tmp_path / "table.csv",
        "label,note,path,split,superclass",
        "dog,good,4.png,train,pet",
        "cow,,2.png,test,farm",
        'dog,"a, b",a/1.png,train,pet',
        "owl,x,b/c/3.jpg,validation,wild",
        "hen,x,2.png,train,farm",
    )
    data = load(table)
    assert members(data) == {"train": ["dog", "hen"], "val": ["owl"], "test": ["cow"]}
    train = data.open("train")
    assert train.x.shape == (3, 3, 8, 8)
    assert train.x[:, 0, 4, 4].tolist() == [40, 10, 20]
    assert train.first_row.tolist() == [0, 2, 3]
    assert [train.superclasses[i] for i in train.superclass] == ["pet", "farm"]
    assert train.mean[0] == pytest.approx((40 + 10 + 20) / 3 / 255)
    assert load(table, grey=True, size=4).open("test").x.shape == (1, 1, 4, 4)


def test_paths_start_where_the_user_says(tmp_path):
    for name in "abc":
        paint(tmp_path / "elsewhere" / f"{name}.png", "red")
    table = written(tmp_path / "t.csv", "path,label", "a.png,a", "b.png,b", "c.png,c")
    with pytest.raises(UserError, match=r"line 2: there is no file .*a\.png: data\.root=FOLDER"):
        load(table)
    assert load(table, root=str(tmp_path / "elsewhere")).facts()["examples"] == {
        "train": 1,
        "val": 1,
        "test": 1,
    }


def test_numbers_in_columns(tmp_path, caplog):
    """All columns of numbers, in the table's order; others are told of."""
    table = written(
        tmp_path / "t.csv",
        "name,width,label,height,split",
        "anna,1.5,a,-2,train",
        "bert,1e3,b,0,val",
        "carl,3,a,4,train",
        "dora,5,c,.25,test",
        "emil,6,10,7,train",
    )
    data = load(table)
    assert members(data) == {"train": ["10", "a"], "val": ["b"], "test": ["c"]}
    train = data.open("train")
    assert train.x.dtype == torch.float32
    assert train.x.tolist() == [[6, 7], [1.5, -2], [3, 4]]
    assert train.take(torch.tensor([1])).tolist() == [[1.5, -2]], "as they are"
    assert data.open("val").x.tolist() == [[1000, 0]]
    assert not train.superclasses
    assert "1 column without numbers: name" in caplog.text


def test_splits_by_list_and_by_chance(tmp_path):
    table = written(
        tmp_path / "t.csv", "x,label,split", *(f"{i},c{i % 5},train" for i in range(10))
    )
    (tmp_path / "lists.json").write_text('{"train": ["c3"], "val": ["c1"], "test": ["c0", "c4"]}')
    listed = load(table, split_file="lists.json")
    assert members(listed) == {"train": ["c3"], "val": ["c1"], "test": ["c0", "c4"]}
    assert listed.open("test").x[:, 0].tolist() == [0, 5, 4, 9]
    plain = written(tmp_path / "p.csv", "x,label", *(f"{i},c{i % 5}" for i in range(10)))
    chance = members(load(plain))
    assert {split: len(names) for split, names in chance.items()} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    assert members(load(plain)) == chance
    assert any(members(load(plain, split_seed=seed)) != chance for seed in (1, 2, 3))


def test_a_table_is_needed():
    with pytest.raises(UserError, match="with a column label and one path, or columns of numbers"):
        csv_file.load(None, **OPTIONS)


def test_a_change_is_noticed(tmp_path, monkeypatch):
    rows = ["x,label", "1,a", "2,b", "3,c"]
    table = written(tmp_path / "t.csv", *rows)
    before = load(table).checksum
    with monkeypatch.context() as patch:
        patch.setattr(csv_file, "read", None)  # not called
        assert load(table).checksum == before
    assert load(written(table, *rows[:-1], "4,c")).checksum != before
    for name in "abc":
        paint(tmp_path / f"{name}.png", "red")
    pictures = written(tmp_path / "p.csv", "path,label", "a.png,a", "b.png,b", "c.png,c")
    before = load(pictures).checksum
    paint(tmp_path / "b.png", "blue")
    os.utime(tmp_path / "b.png", ns=(1, 1))
    assert load(pictures).checksum != before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x,class", "1,a"], "has no column label, only x, class: name the column of the classes"),
        (["label,name", "a,b", "b,c", "c,d"], "neither a column path nor columns of numbers"),
        (["x,label", "1,a", "2"], "line 3: it has 1 columns, but the first line has 2"),
        (["x,label", "1,a", "2,b,c"], "line 3: it has 3 columns"),
        (["x,label", "1,a", "2,", "3,c"], "line 3: its label is empty"),
        (["x,label", "1,a", "n/a,b", "3,c"], "line 3: 'n/a' in column x is not a finite number"),
        (["x,label", "1,a", "2,b", "1e99,c"], "line 4: '1e99' in column x is not a finite number"),
        (["x,label", "1,a", "2,b", "inf,c"], "line 4: 'inf' in column x is not a finite number"),
        (["x,label,split", "1,a,train", "2,a,test"], "'a' has the split 'test' in some rows and"),
        (["x,label,split", "1,a,train", "2,b,dev"], "'b' is in the split 'dev': the splits are"),
        (["x,label,split", "1,a,train", "2,b,test"], "no class is in the split val"),
        (["x,label,superclass", "1,a,u", "2,a,v", "3,b,v", "4,c,u"], "'a' has the superclass 'u'"),
        (["x,label", "1,a", "2,b"], "2 classes cannot be split in three"),
        (["x,label"], "has no rows"),
        ([], "has no column label, only nothing"),
        (['x,label', '"1,a'], "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path, lines, said):
    with pytest.raises(UserError) as error:
        load(written(tmp_path / "t.csv", *lines))
    assert said in str(error.value)


def test_no_table(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.file="):
        csv_file.load(None, **OPTIONS)
    with pytest.raises(UserError, match="there is no such file"):
        load(tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes("x,label\n1,gr\xfcn\n".encode("latin-1"))
    with pytest.raises(UserError, match="save it as CSV in UTF-8"):
        load(tmp_path / "latin.csv")
