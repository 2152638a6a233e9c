"""A paper's table from run folders that a test has written."""

import csv
import json
import math

import numpy as np
import pytest

from metarun import files
from metarun.tables import cells, render
from metarun.tables.figures import figure, pairs
from metarun.tables.statistics import over_seeds

ABOUT = {
    "name": "table",
    "title": "Some table",
    "source": "Somebody 2017, Table 1",
    "data": "Omniglot",
    "metric": "accuracy",
    "seeds": [0, 1],
    "cells": [
        {"experiment": "a/one", "paper": 98.0, "ci95": 0.5, "read_in": "paper"},
        {"experiment": "a/two", "paper": 50.0, "ci95": None, "read_in": "memory"},
    ],
    "notes": ["A note."],
    "runs": [],
}


def write_run(folder, episodes, seed=0, status="finished", sha256="e", disjoint=4, **more):
    """A run folder with these figures of its test episodes."""
    folder.mkdir(parents=True)
    accuracy = float(np.mean(episodes))
    results = {
        "status": status,
        "names": {"backbone": "conv4", "algo": "protonet", "data": "omniglot"},
        "config": {
            "seed": seed,
            "sampler": {"way": 60, "shot": 1, "query": 5, "tasks": 1},
            "backbone": {"width": 64},
            "device": {"precision": "fp32"},
        },
        "train": {"steps": 10, "seconds": 61.0, "peak_memory_mib": 100.0},
        "seconds": 75.0,
        "data": {"checksum": "c" * 64},
        "test": {
            "metric": "accuracy",
            "accuracy": accuracy,
            "ci95": 0.1,
            "measures": {},
            **{"way": 5, "shot": 1, "query": 15, "episodes": len(episodes)},
            "batch_norm": "running",
            "disjoint_episodes": disjoint,
            "episodes_sha256": sha256,
        },
        **more,
    }
    (folder / "results.json").write_text(json.dumps(results))
    with open(folder / "episodes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "accuracy"])
        writer.writerows(enumerate(episodes))


@pytest.fixture
def folder(tmp_path):
    """One cell with two seeds, done; of the other one run failed before it began."""
    write_run(tmp_path / "one/0", [0.9, 1.0, 0.9, 1.0], seed=0)
    write_run(tmp_path / "one/1", [1.0, 1.0, 1.0, 1.0], seed=1)
    (tmp_path / "two/0").mkdir(parents=True)
    (tmp_path / "two/0/error.txt").write_text("no such data\n")
    return tmp_path


def about(folder, departures=(), **more):
    runs = [("a/one", 0, "one/0"), ("a/one", 1, "one/1"), ("a/two", 0, "two/0"), ("a/two", 1, "x")]
    keys = ("experiment", "seed", "folder")
    told = [dict(zip(keys, r, strict=True)) | {"departures": list(departures)} for r in runs]
    (folder / "table_of.json").write_text(json.dumps({**ABOUT, **more, "runs": told}))


def test_one_process_writes_it_at_a_time(folder, monkeypatch):
    """So that its files are of one moment."""
    about(folder)
    picture, held = render.picture, []

    def watched(*given):
        held.append(cells.in_use(folder))
        picture(*given)

    monkeypatch.setattr(render, "picture", watched)
    render.write(folder)
    assert held == [True]
    assert not cells.in_use(folder)


def test_numbers_by_hand(folder):
    """Seeds 95 and 100: mean 97.5, t = 12.706 of one degree, s = 5 / sqrt(2)."""
    about(folder)
    text = render.write(folder)
    (row, other) = json.loads((folder / "table.json").read_text())["rows"]
    assert row["ours"] == pytest.approx(97.5)
    assert row["over_seeds"] == pytest.approx(12.7062 * 2.5, abs=1e-3)
    s = np.std([95, 100, 95, 100], ddof=1)  # of the episodes' means over the seeds
    assert row["closed"] == pytest.approx(1.959964 * s / 2)
    assert row["open"] == pytest.approx(3.18245 * s / 2, rel=1e-5)
    assert row["difference"] == pytest.approx(-0.5)
    halves = (row["over_seeds"], row["closed"], 0.5)
    assert row["difference_ci95"] == pytest.approx(math.hypot(*halves))
    assert row["verdict"] == "equal within the intervals"
    assert "| a/one | 98.0 ± 0.50 | 97.50 % |" in text
    assert "60 | 1 | 5 | 1 | 5-way 1-shot, 15 queries | 4 |" in text
    assert "running | conv4 64 | fp32 | 0, 1 | 10 | 1:01 | 1:15 | 100 MiB |" in text
    assert other["states"] == {"0": "failed", "1": "waiting"}
    assert "| a/two | 50.0² | 1 failed, 1 waiting |" in text
    assert "* a/two, seed 0: failed: no such data" in text
    assert "* A note." in text


@pytest.mark.parametrize(
    ("gain", "said"), [(0.2, "equal within the intervals"), (2, "better"), (-2, "worse")]
)
def test_verdicts(gain, said):
    assert render.verdict(gain, 1.0) == said


def test_other_conditions_are_told_everywhere_and_not_judged(folder):
    about(folder, departures=["train.steps=10"])
    text = render.write(folder)
    assert "NOT under the paper's conditions: train.steps=10" in text.splitlines()[0]
    assert text.count("none: train.steps=10") == 2, "every cell"
    row = json.loads((folder / "table.json").read_text())["rows"][0]
    assert row["difference"] is None
    assert row["verdict"] is None
    assert "equal" not in text
    tex = (folder / "table.tex").read_text()
    assert "Not under the paper's conditions" in tex
    assert tex.count(r"& none: train.steps=10 \\") == 2, "every cell"


def test_a_shared_training_is_marked(folder):
    """Its time is that of the one training; the wall time is of the whole runs."""
    about(folder)
    assert "| 1:01 | 1:15 | 100 MiB |" in render.write(folder)
    path = folder / "one/0/results.json"
    results = json.loads(path.read_text()) | {"trained_in": {"folder": "one/1"}}
    path.write_text(json.dumps(results))
    assert "| 1:01 (shared) | 1:15 | 100 MiB |" in render.write(folder)


def test_conditions_of_some_cells(folder):
    """Those that are under the paper's conditions keep their verdict, and the title says so."""
    about(folder, departures=["way=5"])
    told = json.loads((folder / "table_of.json").read_text())
    for run in told["runs"][:2]:
        run["departures"] = []
    (folder / "table_of.json").write_text(json.dumps(told))
    text = render.write(folder)
    assert text.startswith("## Some table, in part NOT under the paper's conditions: way=5\n")
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert rows[0]["verdict"] == "equal within the intervals"


def test_a_measure_that_the_test_lacks_is_told(folder):
    cells = [{**ABOUT["cells"][0], "measure": "accuracy_presentation_2", "label": "k = 2"}]
    about(folder, cells=cells)
    text = render.write(folder)
    assert "| k = 2 | 98.0 ± 0.50 | 2 finished |" in text
    assert "* k = 2: its test has no measure accuracy_presentation_2\n" in text


def test_every_form(folder):
    about(folder)
    render.write(folder)
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == ["a/one", "a/two"]
    assert float(rows[0]["ours"]) == pytest.approx(97.5)
    assert rows[0]["train_way"] == "60"
    tex = (folder / "table.tex").read_text()
    assert r"a/one & 98.0 $\pm$ 0.50 & 97.50 \%" in tex
    assert tex.count(r"\\") == 3
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


def test_other_data_under_one_cell_is_told(folder):
    (folder / "one/1/results.json").unlink()
    (folder / "one/1/episodes.csv").unlink()
    (folder / "one/1").rmdir()
    write_run(folder / "one/1", [1.0] * 4, seed=1, data={"checksum": "d" * 64})
    about(folder)
    assert "a/one: its runs had data of 2 checksums: cccccccccccc, dddddddddddd" in (
        render.write(folder)
    )


def test_lower_is_better_of_an_error():
    found = figure_of([0.5, 0.5])
    row = render.ours(found, {"paper": 60.0, "ci95": None}, "mse", comparable=True)
    assert row["verdict"] == "better"


def figure_of(episodes, tmp=None, **more):
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from metarun.tables.cells import read

    with TemporaryDirectory() as folder:
        write_run(Path(folder) / "run", episodes, **more)
        return figure([read(Path(folder) / "run")])


def test_paired_difference():
    """Episodes of very unlike difficulty, answered alike but for one point each."""
    easy_and_hard = np.array([0.1, 0.9, 0.5, 0.7])
    a = figure_of(easy_and_hard + np.array([0.01, 0.03, 0.01, 0.03]))
    (pair,) = pairs({"a": a, "b": figure_of(easy_and_hard)})
    assert pair["difference"] == pytest.approx(2.0)
    assert pair["closed"] == pytest.approx(1.959964 * np.std([1, 3, 1, 3], ddof=1) / 2)
    assert pair["closed"] < a.closed / 10
    assert pairs({"a": a, "b": figure_of(easy_and_hard, sha256="other")}) == []


def test_figures_of_the_same_trainings_are_compared_training_by_training():
    """3, 5, 4 less 2, 3, 2 is 1, 2, 2: far surer than 4 less 2.3 of other trainings."""
    episodes = figure_of([0.1, 0.9])
    values = {"mse_after_1": [3.0, 5.0, 4.0], "mse_after_5": [2.0, 3.0, 2.0]}
    a, b = (
        episodes._replace(
            name=name, values=dict(zip("rst", of_runs, strict=True)), over_seeds=over_seeds(of_runs)
        )
        for name, of_runs in values.items()
    )
    (pair,) = pairs({"a": a, "b": b})
    assert pair["over_seeds"] == pytest.approx(4.30265 * np.std([1, 2, 2], ddof=1) / 3**0.5)
    others = b._replace(values=dict(zip("xyz", values["mse_after_5"], strict=True)))
    (pair,) = pairs({"a": a, "b": others})
    assert pair["over_seeds"] == pytest.approx(math.hypot(a.over_seeds, b.over_seeds))


def test_measures_of_different_kinds_are_not_compared():
    figure = figure_of([0.1, 0.9])
    assert figure.name == "accuracy"
    assert pairs({"a": figure, "b": figure._replace(name="verification_accuracy")}) == []
    assert len(pairs({"a": figure, "b": figure._replace(name="accuracy_presentation_2")})) == 1


def spoilt(folder, part, content):
    """The file of the second run of the first cell has this content, or what it makes of its."""
    path = folder / "one/1" / part
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    return path


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("results.json", b"[]"),
        ("results.json", b"{}"),
        ("results.json", b'{"status": "finished"}'),
        ("results.json", 200_000 * b"["),
        ("results.json", b"\xff\xfe"),
        ("results.json", lambda text: text.replace(b'"accuracy": 1.0', b'"accuracy": "1.0"')),
        ("results.json", lambda text: text.replace(b'"measures"', b'"measure"')),
        ("results.json", lambda text: text.replace(b'"seconds": 61.0', b'"seconds": "long"')),
        ("results.json", lambda text: text.replace(b'"backbone": {"width": 64}', b'"backbone": 4')),
        ("episodes.csv", b""),
        ("episodes.csv", b"\xff\x00"),
        ("episodes.csv", b"episode,accuracy\n0,many\n"),
        ("episodes.csv", b"episode,mse\n0,1.0\n"),
    ],
)
def test_a_damaged_run_takes_nothing_from_the_others(folder, part, content):
    """It is told as such; its cell has the figure of the other seed."""
    about(folder)
    path = spoilt(folder, part, content)
    text = render.write(folder)
    (row, _) = json.loads((folder / "table.json").read_text())["rows"]
    assert row["ours"] == pytest.approx(95)
    assert row["states"] == {"0": "finished", "1": "failed"}
    (line,) = [line for line in text.splitlines() if "seed 1: failed: " in line]
    assert str(path) in line
    assert " damaged" in line or "cannot be read" in line


def test_episodes_that_are_not_what_the_run_wrote(folder):
    """Numbers like any others: only the checksum in results.json tells."""
    about(folder)
    for seed in (0, 1):
        run = folder / f"one/{seed}"
        results = json.loads((run / "results.json").read_text())
        results["episodes_csv_sha256"] = files.sha256_of(run / "episodes.csv")
        (run / "results.json").write_text(json.dumps(results))
    assert "| a/one | 98.0 ± 0.50 | 97.50 % |" in render.write(folder)
    path = spoilt(folder, "episodes.csv", lambda text: text.replace(b"3,1.0", b"3,0.0"))
    text = render.write(folder)
    assert f"* a/one, seed 1: failed: {path} is damaged: it is not what the run wrote" in text
    assert "| a/one | 98.0 ± 0.50 | 95.00 % |" in text
