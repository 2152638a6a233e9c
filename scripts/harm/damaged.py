"""Files that are cut, empty, something else or of another shape, and are read again."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_cases import make_data
from harm.disk import untold
from harm.kills import AGAIN, own_table
from harm.place import SHORT, Place, Tries, numbers, refused_or
from harm.rot import LONGER, MORE_TESTS, came_to, of_reader, run_of, spelled

from metarun.runs import checkpoint
from metarun.runs.folder import digest

READERS: dict[str, list[list[str]]] = {
    "results.json": [["rerun=RUN"], LONGER, MORE_TESTS],
    "episodes.csv": [["rerun=RUN"], MORE_TESTS],
    "metrics.jsonl": [LONGER, MORE_TESTS],
    "checkpoints/best.pt": [["TEST"], MORE_TESTS],
    "checkpoints/last.pt": [LONGER, MORE_TESTS],
}
ODD: list[Any] = [None, True, -1, 2**70, 1e300, "", "x", [], [1], {}, {"a": 1}, [[]], "a\nb"]
TEXTS = (b"[]", b"{}", b"null", b"5", b'"x"', 100_000 * b"[", b"{" + b'"a":{' * 5_000, b"\xff\xfe")
# Data of one's own, and how it is read.
DATA = {
    "table.csv": ["data=csv", "data.file=table.csv", "backbone=mlp"],
    "arrays.npz": ["data=npz", "data.file=arrays.npz", "backbone=mlp"],
    "pictures": ["data=image_folder", "data.root=pictures", "data.size=16"],
    "split.csv": ["data=csv", "data.file=table.csv", "backbone=mlp", "data.split_file=split.csv"],
    "split.json": ["data=csv", "data.file=table.csv", "backbone=mlp", "data.split_file=split.json"],
}


def of_a_run(file: str, place: Place) -> Tries:
    """A file of a run's folder."""
    begun, readers = place.new(), READERS[file]
    place.finished(SHORT, begun)
    wanted = [came_to(place, begun, words) for words in readers]
    for number in range(place.tries):
        folder = place.new()
        shutil.copytree(begun, folder, dirs_exist_ok=True)
        path = run_of(folder) / file
        shapes = {".json": odd_json, ".pt": odd_checkpoint}.get(path.suffix)
        told = harmed(path, place.chance, shapes)
        which = number % len(readers)
        outcome = place.run(spelled(readers[which], folder), folder)
        same = outcome.code == 1 or of_reader(folder) == wanted[which]
        # A csv or a log that is not there any more is no number; a checkpoint that is another is.
        yield refused_or(outcome, same, f"{file}, {told}, then {readers[which][-1]}")
        shutil.rmtree(folder)


def of_a_table(place: Place) -> Tries:
    """A file of one cell of a table, which shows it as failed, or runs it again."""
    begun, words = place.new(), ["--config-dir", "conf", "table=two", *AGAIN]
    own_table(begun)
    place.finished(words, begun)
    wanted = numbers(begun)
    names = ("results.json", "episodes.csv", "metrics.jsonl", "last.pt", "best.pt", "table_of.json")
    for number in range(place.tries):
        folder = place.new()
        shutil.copytree(begun, folder, dirs_exist_ok=True)
        path = place.chance.choice(sorted(folder.rglob(names[number % len(names)])))
        told = harmed(path, place.chance, odd_json if path.suffix == ".json" else None)
        outcome = place.run(words, folder)
        said = "is damaged" in outcome.out or (outcome.code == 1 and untold(outcome) is None)
        odd = refused_or(outcome, said or numbers(folder) == wanted, f"{path.name}, {told}")
        others = [p for p in folder.rglob("results.json") if p.parent != path.parent]
        alive = all(json.loads(p.read_bytes())["status"] == "finished" for p in others)
        yield odd or (None if alive else f"{path.name}, {told}: the other cell has gone")
        shutil.rmtree(folder)


def of_data(file: str, place: Place) -> Tries:
    """Data of one's own: a result, or one line."""
    shelf = place.new()
    make_data(shelf)
    classes = [f"c{number}" for number in range(12)]
    splits = dict(zip(classes, 4 * ["train"] + 4 * ["val"] + 4 * ["test"], strict=True))
    rows = ["label,split", *(f"{name},{split}" for name, split in splits.items()), ""]
    (shelf / "split.csv").write_text("\n".join(rows), encoding="utf-8")
    lists = {s: [c for c in classes if splits[c] == s] for s in ("train", "val", "test")}
    (shelf / "split.json").write_text(json.dumps(lists), encoding="utf-8")
    words = [*(w for w in SHORT if not w.startswith("backbone.")), *DATA[file]]
    words += ["train.steps=1", "way=2"]
    place.finished(words, shelf)
    for _ in range(place.tries):
        folder = place.new()
        shutil.copytree(shelf, folder, ignore=lambda *_: {"outputs"}, dirs_exist_ok=True)
        path = folder / file
        if path.is_dir():
            path = place.chance.choice(sorted(path.rglob("*.png")))
        shapes = {".npz": odd_arrays, ".json": odd_json, ".csv": odd_rows}.get(path.suffix)
        told = harmed(path, place.chance, shapes)
        yield refused_or(place.run(words, folder), True, f"{file}, {told}")
        shutil.rmtree(folder)


def harmed(path: Path, chance: random.Random, shapes: Callable | None) -> str:
    """Damage the file; how. Half of the time by `shapes`, which keeps its syntax."""
    if shapes and chance.random() < 0.5:
        return str(shapes(path, chance))
    content = path.read_bytes()
    kind = chance.choice(["cut", "empty", "random", "text", "folder", "gone", "torn", "zeros"])
    if kind in ("folder", "gone"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        return kind
    place = chance.randrange(1 + len(content))
    new = {
        "cut": content[:place],
        "empty": b"",
        "random": chance.randbytes(len(content)),
        "text": chance.choice(TEXTS),
        "torn": content[:place] + chance.randbytes(20) + content[place:],
        "zeros": content[:place] + bytes(len(content) - place),
    }[kind]
    path.write_bytes(new)
    return f"{kind} ({new[:20]!r}, {len(new)} bytes)"


def odd_json(path: Path, chance: random.Random) -> str:
    """Something in it is missing, or has something else in its place; its checksum is right."""
    content = json.loads(path.read_bytes())
    sealed = content.pop("sha256", None) is not None
    told = changed(content, chance)
    seal = {"sha256": digest(content)} if sealed else {}
    path.write_bytes(json.dumps(content | seal).encode())
    return told


def odd_checkpoint(path: Path, chance: random.Random) -> str:
    """The same of a checkpoint, which is sealed again."""
    content = checkpoint.load(path)
    told = changed(content, chance)
    checkpoint.save(path, content)
    return told


def odd_arrays(path: Path, chance: random.Random) -> str:
    """Arrays of other types and shapes, or missing."""
    content = dict(np.load(path))
    name = chance.choice(sorted(content))
    x = content.pop(name)
    shapes = [x[:0], x[None], x.ravel(), x[:5], x.astype(object), x.astype("U5"), x.astype(bool)]
    shapes += [
        np.full_like(x, -1),
        x.astype(complex),
        np.float32(3),
        x.astype("datetime64[s]"),
        None,
    ]
    shapes += [np.where(np.arange(x.size).reshape(x.shape) % 7, x, np.nan), x.astype(np.float16)]
    new = chance.choice(shapes)
    np.savez(path, **content, **({} if new is None else {name: new}))
    return f"{name} is {None if new is None else (new.dtype, new.shape)}"


def odd_rows(path: Path, chance: random.Random) -> str:
    """Rows that are too short or long, or hold something else."""
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    row = chance.randrange(len(rows))
    new = chance.choice(["", "nan", "inf", "x", "1e999", '"', "数", "\x00", 9_999 * "7", "train"])
    kind = chance.choice(["cell", "more", "less", "twice", "column"])
    if kind == "cell":
        rows[row][chance.randrange(len(rows[row]))] = new
    elif kind == "more":
        rows[row].append(new)
    elif kind == "less":
        rows[row].pop()
    elif kind == "twice":
        rows += rows
    else:
        for each in rows[1:]:
            each[-1] = new
    path.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    return f"{kind} {new[:10]!r} at row {row}"


def changed(content: dict[str, Any], chance: random.Random) -> str:
    """Take one thing out of the content, or put another there; which."""
    places = [*inside(content)]
    top = [place for place in places if place[0] is content]
    parent, key = chance.choice(top if chance.random() < 0.5 else places)
    if chance.random() < 0.3:
        del parent[key]
        return f"without {key}"
    old = parent[key]
    odd = [*ODD, torch.zeros(2), torch.full((1,), torch.nan)] if "algorithm" in content else ODD
    parent[key] = chance.choice(odd)
    return f"{key}={parent[key]!r} in the place of {type(old).__name__}"


def inside(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in the content: what holds it, and its key there."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from inside(content[key])


RUNS = {f"damaged-{Path(file).name}": partial(of_a_run, file) for file in READERS}
OWN = {f"damaged-{file}": partial(of_data, file) for file in DATA}
FAMILIES = {**RUNS, "damaged-cells": of_a_table, **OWN}
