import os
import random
import unicodedata

import pytest
import torch
from PIL import Image

from metarun.data import csv_file
from metarun.errors import UserError
from tests.data.tables import OPTIONS, load, rows_of, written


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), colour).save(path)


def members(data):
    return {split: list(outline.classes) for split, outline in data.outlines.items()}


def test_pictures_by_their_path(tmp_path):
    """Row by row: another order than the files', a picture of two classes, paths with folders."""
    for i, name in enumerate(("a/1.png", "2.png", "b/c/3.jpg", "4.png", "5.png"), start=1):
        paint(tmp_path / name, (10 * i, 0, 0))
    table = written(
        tmp_path / "table.csv",
        "label,note,path,split,superclass",
        "dog,good,4.png,train,pet",
        "cow,,2.png,test,farm",
        'dog,"a, b",a/1.png,train,pet',
        "owl,x,b/c/3.jpg,validation,wild",
        "hen,x,4.png,train,farm",
        "cow,,5.png,test,farm",
    )
    data = load(table)
    facts = data.facts()
    assert facts["split"] == "by column 'split'"
    assert facts["left_out"] == {"note": "beside the paths"}
    (said,) = facts["doubts"]
    assert said.startswith("1 picture stands in two classes, byte for byte, such as ")
    assert members(data) == {"train": ["dog", "hen"], "val": ["owl"], "test": ["cow"]}
    train = data.open("train")
    assert train.x.shape == (3, 3, 8, 8)
    assert train.x[:, 0, 4, 4].tolist() == [40, 10, 40]
    assert train.first_row.tolist() == [0, 2, 3]
    assert [train.superclasses[i] for i in train.superclass] == ["pet", "farm"]
    assert train.mean[0] == pytest.approx((40 + 10 + 40) / 3 / 255)
    assert load(table, grey=True, size=4).open("test").x.shape == (2, 1, 4, 4)


def test_paths_start_where_the_user_says(tmp_path):
    for name, colour in zip("abc", ("red", "green", "blue"), strict=True):
        paint(tmp_path / "elsewhere" / f"{name}.png", colour)
    table = written(tmp_path / "t.csv", "path,label", "a.png,a", "b.png,b", "c.png,c")
    with pytest.raises(UserError, match=r"line 2: there is no file .*a\.png: data\.root=FOLDER"):
        load(table)
    assert load(table, root=str(tmp_path / "elsewhere")).facts()["examples"] == {
        "train": 1,
        "val": 1,
        "test": 1,
    }


def test_numbers_in_columns(tmp_path):
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
    facts = data.facts()
    assert facts["features"] == ["width", "height"]
    assert facts["left_out"] == {"name": "no numbers"}
    assert facts["split"] == "by column 'split'"
    assert facts["doubts"] == []
    assert data.summary() == "split by column 'split': 2 / 1 / 1 classes (train / val / test)"


def test_splits_by_list_and_by_chance(tmp_path):
    table = written(
        tmp_path / "t.csv", "x,label,split", *(f"{i}.5,c{i % 5},train" for i in range(10))
    )
    (tmp_path / "lists.json").write_text('{"train": ["c3"], "val": ["c1"], "test": ["c0", "c4"]}')
    listed = load(table, split_file="lists.json")
    assert members(listed) == {"train": ["c3"], "val": ["c1"], "test": ["c0", "c4"]}
    assert listed.open("test").x[:, 0].tolist() == [0.5, 5.5, 4.5, 9.5]
    assert listed.facts()["split"] == "by data.split_file=lists.json"
    plain = written(tmp_path / "p.csv", "x,label", *(f"{i}.5,c{i % 5}" for i in range(10)))
    chance = members(load(plain))
    said = "split at random by data.split_seed=0: 3 / 1 / 1 classes (train / val / test)"
    assert load(plain).summary() == said
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
    rows = ["x,label", "1,a", "2,b", "5,c"]
    table = written(tmp_path / "t.csv", *rows)
    before = load(table).checksum
    with monkeypatch.context() as patch:
        patch.setattr(csv_file, "read", None)  # not called
        assert load(table).checksum == before
    assert load(written(table, *rows[:-1], "7,c")).checksum != before
    for name, colour in zip("abc", ("red", "green", "white"), strict=True):
        paint(tmp_path / f"{name}.png", colour)
    pictures = written(tmp_path / "p.csv", "path,label", "a.png,a", "b.png,b", "c.png,c")
    before = load(pictures).checksum
    paint(tmp_path / "b.png", "blue")
    os.utime(tmp_path / "b.png", ns=(1, 1))
    assert load(pictures).checksum != before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x,klass", "1,a"], "no column label, only x, klass: is 'klass' meant? data.label=klass"),
        (["x,lable", "1,a"], "no column label, only x, lable: is 'lable' meant? data.label=lable"),
        (["x,kind", "1,a"], "no column label, only x, kind: data.label=NAME says which"),
        (["x,y,label", "1,2,a"], "'y' and 'label' can both be the label: data.label=label says"),
        (["x,label,splits", "1,a,1st"], "is column 'splits' the split? Then call it split; else"),
        (["x,label,set", "1,a,train"], "is column 'set' the split? Then call it split; else"),
        (["file,x,label", "a.png,1.5,a", "b.png,3,b"], "data.columns=[file] takes the pictures"),
        (["label,name", "a,b", "b,c", "c,d"], "neither a column path nor columns of numbers"),
        (["i,label", "1,a", "2,b", "3,c"], "neither a column path nor columns of numbers"),
        (["x,label", "1,a", "2"], "line 3: it has 1 columns, but the first line has 2"),
        (["x,label", "1,a", "2,b,c"], "line 3: it has 3 columns"),
        (["x,label", "1,a", "2,", "3,c"], "line 3: its label is empty"),
        (["x,label", "1,a", "n/a,b", "3,c"], "line 3: 'n/a' in column x is not a finite number"),
        (["x,label", "1,a", "2,b", "1e99,c"], "line 4: '1e99' in column x is not a finite number"),
        (["x,label", "1,a", "2,b", "inf,c"], "line 4: 'inf' in column x is not a finite number"),
        (["x,label,split", "1,a,train", "2,a,test"], "'a' has the split 'test' in some rows and"),
        (["x,label,split", "1,a,train", "2,b,eval"], "'b' is in the split 'eval': the splits are"),
        (["x,label,split", "1,a,train", "2,b,test"], "gives no class to val"),
        (["x,label,superclass", "1,a,u", "2,a,v", "5,b,v", "4,c,u"], "'a' has the superclass 'u'"),
        (["x,label", "1,a", "2,b"], "2 classes cannot be split in three"),
        (["x,label"], "has no rows"),
        ([], "has no column label, only nothing"),
        (['x,label', '"1,a'], "cannot be read"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
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


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("", lambda i: i, "row index"),
        ("Unnamed: 0", lambda i: 3 * i, "row index"),
        ("n", lambda i: i + 1, "row index"),
        ("fold", lambda i: i % 4, "folds"),
        ("customer_id", lambda i: 7 * i + i % 3, "an id"),
        ("ImageID", lambda i: 7 * i + i % 3, "an id"),
        ("class_number", lambda i: 4 - i // 8, "a copy of the label"),
        ("Timestamp", lambda i: i / 7, "dates or times"),
        ("Datum", lambda i: i / 7, "dates or times"),
        ("Datum/Zeit", lambda i: i / 7, "dates or times"),
        ("created_at", lambda i: i / 7, "dates or times"),
        ("Funddatum", lambda i: 45000 + i * i % 91, "dates or times"),
        ("Fecha de muestreo", lambda i: 45000 + i * i % 91, "dates or times"),
        ("samplingDate", lambda i: 30000 + i * i % 91, "dates or times"),
        ("Time (local)", lambda i: 60000 - i * i % 91, "dates or times"),
        ("taken", lambda i: 1.6e9 + 977 * (i % 9), "dates or times"),
        ("on", lambda i: 20240130 + i % 2, "dates or times"),
        ("seen", lambda i: f"2024-01-{i % 28 + 1:02}", "no numbers"),
        ("nothing", lambda i: "", "empty"),
    ],
)
def test_what_is_no_measurement_is_left_out(tmp_path, name, value, why, shuffled):
    """Whatever the order of the rows, and told; data.columns takes it all the same."""
    lines = [f"{value(i)},{x},{label}" for i, (label, x) in enumerate(rows_of())]
    if shuffled:
        random.Random(0).shuffle(lines)
    table = written(tmp_path / "t.csv", f"{name},f,label", *lines)
    facts = load(table).facts()
    assert facts["features"] == ["f"]
    assert facts["left_out"] == {name: why}
    assert facts["doubts"] == []
    if why not in ("no numbers", "empty"):
        chosen = load(table, columns=["*"])
        assert chosen.facts()["features"] == [name, "f"]
        assert chosen.outlines["test"].input_shape == (2,)
    assert load(table, exclude=[name]).facts()["left_out"] == {name: "data.exclude"}


def test_columns_as_the_person_says(tmp_path):
    lines = [f"{i // 2},{x},{x}5,{label},{i % 2}" for i, (label, x) in enumerate(rows_of())]
    table = written(tmp_path / "t.csv", "n,f0,f1,kind,target", *lines)
    facts = load(table, label="Kind", columns="f*").facts()
    assert facts["features"] == ["f0", "f1"]
    assert facts["left_out"] == {"n": "not in data.columns", "target": "not in data.columns"}
    facts = load(table, label="kind", exclude=["n", "target"]).facts()
    assert facts["features"] == ["f0", "f1"]
    assert facts["left_out"] == {"n": "data.exclude", "target": "data.exclude"}
    with pytest.raises(UserError, match=r"no column 'f2', which data\.columns names; is 'f"):
        load(table, label="kind", columns=["f0", "f2"])
    ids = [f"{7 * i + i % 3},{x},{label}" for i, (label, x) in enumerate(rows_of())]
    table = written(tmp_path / "t.csv", "n,f,label", *ids)
    with pytest.raises(UserError, match=r"'n' has another whole number in each of the 40 rows"):
        load(table)
    assert load(table, exclude=["n"]).facts()["features"] == ["f"]
    assert load(table, columns=["n", "f"]).facts()["features"] == ["n", "f"]


def test_what_a_column_is_does_not_depend_on_the_first_row(tmp_path):
    lines = ["1,5,a", "n/a,6.5,b", "3,7,c", "x,8,a"]
    for order in (lines, lines[::-1]):
        facts = load(written(tmp_path / "t.csv", "note,f,label", *order)).facts()
        assert (facts["features"], facts["left_out"]) == (["f"], {"note": "no numbers"})


def test_one_value_that_dwarfs_the_others_is_told(tmp_path):
    rows = rows_of()
    rows[3] = ("c0", "99999")
    table = written(tmp_path / "t.csv", "f,label", *(f"{x},{label}" for label, x in rows))
    (said,) = load(table).facts()["doubts"]
    assert said.startswith("f is 99999 in one example, but within ")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_what_spreadsheets_write(tmp_path, separator):
    """Separators, decimal commas beside them, a mark, blank lines, other names and letters."""
    comma = separator != ","
    wanted = load(written(tmp_path / "plain.csv", "f,g,label", "1.5,-2,a", "2,.5,b", "4,3e2,c"))
    lines = ["F , g ,Class ", "1.5,-2,a", "2,.5,b", "", "4,3e2,c", ",,", " "]
    lines = [line.replace(",", separator) for line in lines]
    lines = [line.replace(".", ",") if comma else line for line in lines]
    table = written(tmp_path / "t.csv", "\ufeff" + lines[0], *lines[1:])
    data = load(table)
    assert data.facts()["features"] == ["F", "g"]
    for split in ("train", "val", "test"):
        assert data.open(split).x.tolist() == wanted.open(split).x.tolist()
        assert data.outlines[split].classes == wanted.outlines[split].classes
    excels = written(tmp_path / "e.csv", f"sep={separator}", *lines)
    assert load(excels).open("test").x.tolist() == wanted.open("test").x.tolist()


def test_both_marks_in_one_column(tmp_path):
    table = written(tmp_path / "t.csv", "f;label", "1,5;a", "2.5;b", "3,5;c")
    with pytest.raises(UserError, match=r"column f has both 1,5 and 2\.5"):
        load(table)


def test_splits_however_they_are_written(tmp_path):
    table = written(
        tmp_path / "t.csv", "x,label, SPLIT", "1,a,Train", "2,b,dev ", "5,c,TESTING", "7,d,training"
    )
    data = load(table)
    assert members(data) == {"train": ["a", "d"], "val": ["b"], "test": ["c"]}
    assert data.facts()["split"] == "by column 'SPLIT'"
    alone = written(tmp_path / "t.csv", "x,label,split", "1,a,test", "2,b,test")
    assert members(load(alone)) == {"train": [], "val": [], "test": ["a", "b"]}


def test_paths_from_windows_and_names_from_a_mac(tmp_path):
    for i, name in enumerate(("a", "b", "caf\u00e9")):
        paint(tmp_path / "images" / unicodedata.normalize("NFD", name) / "1.png", (50 * i, 0, 0))
    table = written(
        *(tmp_path / "t.csv", "path,label,split"),
        *(
            f"images\\{n}\\1.png,{n},{s}"
            for n, s in zip(("a", "b", "caf\u00e9"), ("train", "val", "test"), strict=True)
        ),
    )
    assert load(table).open("test").x[0, 0, 0, 0] == 100


def test_two_classes_that_unicode_writes_in_two_ways(tmp_path):
    table = written(tmp_path / "t.csv", "x,label", "1,caf\u00e9", "2,cafe\u0301", "5,c", "7,d")
    with pytest.raises(UserError, match="there are two classes 'caf\u00e9', which differ only in"):
        load(table)


def test_classes_that_are_too_small_are_left_out(tmp_path):
    lines = [f"{i}.5,c{i % 4}" for i in range(12)] + ["1.25,small", "2.25,smaller", "1.75,small"]
    data = load(written(tmp_path / "t.csv", "x,label", *lines), min_examples=3)
    assert sorted(n for names in members(data).values() for n in names) == ["c0", "c1", "c2", "c3"]
    assert data.facts()["doubts"] == [
        "left out 2 of 6 classes, which have fewer than data.min_examples=3 examples: "
        "small, smaller"
    ]
    with pytest.raises(UserError, match=r"data\.min_examples=9 leaves out all 6 classes: the larg"):
        load(tmp_path / "t.csv", min_examples=9)


def test_what_was_understood_is_told_of_data_from_the_cache_too(tmp_path, monkeypatch):
    lines = [f"{i},{x},{label}" for i, (label, x) in enumerate(rows_of())]
    table = written(tmp_path / "t.csv", ",f,label", *lines)
    facts = load(table).facts()
    monkeypatch.setattr(csv_file, "read", None)  # not called
    assert load(table).facts() == facts


def test_from_the_command_line(metarun, capsys):
    """A table with a row index and noise: the answer is chance, and the header has the columns."""
    lines = [f"{i},{x},{label}" for i, (label, x) in enumerate(rows_of(12, 20))]
    written(metarun.folder / "t.csv", ",f,label", *lines)
    typed = "data=csv data.file=t.csv backbone=identity train.steps=0 query=5 way=3"
    metarun.main(
        *typed.split(), "eval.episodes=100", "tracker=none", "device=cpu", "hydra.run.dir=outputs/a"
    )
    said = capsys.readouterr().out
    assert "1 feature: f; left out: '' (row index)" in said
    assert "csv, split at random by data.split_seed=0: 13 / 3 / 4 classes" in said
    results = metarun.results("a")
    assert 0.25 < results["test"]["accuracy"] < 0.45
    assert results["data"]["features"] == ["f"]
    assert results["data"]["split"] == "at random by data.split_seed=0"


def test_labels_in_two_spellings_are_told_across_splits(tmp_path):
    lines = ["klee,1.5,train", "Klee,2.5,test", "moos,3.5,val"]
    (said,) = load(written(tmp_path / "t.csv", "label,f,split", *lines)).facts()["doubts"]
    assert said == "'klee' and 'Klee' differ in capitals alone: they are read as two classes"
