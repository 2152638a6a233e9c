"""metarun table=NAME, and what any sweep leaves."""

import json
import shutil
import signal
import time

import pytest
from filelock import FileLock

from metarun.tables import cells
from tests.conftest import QUICK

TABLE = """\
title: Two distances
source: Nobody 2020, Table 1
data: made-up pictures
metric: accuracy
seeds: [0, 1]
cells:
  - {experiment: nobody/near, paper: 50.0, ci95: 1.0, read_in: paper}
  - {experiment: nobody/far, paper: 99.0, ci95: null, read_in: memory}
"""


@pytest.fixture
def table(metarun):
    """The command line of a table of one's own, on made-up pictures; --config-dir and all."""
    conf = metarun.folder / "conf"
    for part in ("experiment/nobody", "table"):
        (conf / part).mkdir(parents=True)
    for name, distance in (("near", "euclidean"), ("far", "cosine")):
        (conf / "experiment/nobody" / f"{name}.yaml").write_text(
            "# @package _global_\ndefaults:\n  - override /data: image_folder\n"
            f"algo: {{distance: {distance}}}\ndata: {{size: 16, grey: true}}\n"
            "way: 3\nquery: 5\nbackbone: {width: 8}\n"
            "train: {steps: 4, val_every: 2, log_every: 1}\n"
            "eval: {episodes: 6, val_episodes: 4}\n"
        )
    (conf / "table" / "nobody.yaml").write_text(TABLE)
    (root,) = (o for o in metarun.data if o.startswith("data.root="))
    metarun.table = ["--config-dir", str(conf), "table=nobody", root, "tracker=none", "device=cpu"]
    return metarun


def rows(table, name="nobody"):
    """The rows of the rendered table, by experiment."""
    text = (table.folder / "outputs/table" / name / "table.json").read_text()
    return {row["experiment"]: row for row in json.loads(text)["rows"]}


def folders(table):
    """The run folders of the tables, with the time at which their results were last written."""
    found = (table.folder / "outputs/table").rglob("results.json")
    return {str(path.relative_to(table.folder)): path.stat().st_mtime_ns for path in found}


def test_cells_are_run_once_and_rendered(table, capsys):
    """Two experiments of two seeds; asked again, nothing is run again, whatever is incidental."""
    table.main(*table.table)
    first = folders(table)
    assert len(first) == 4
    assert {cell.split("/")[3] for cell in first} == {"nobody-near", "nobody-far"}
    found = rows(table)
    assert found["nobody/near"]["seeds"] == [0, 1]
    assert found["nobody/near"]["difference"] is not None
    assert found["nobody/near"]["disjoint"] <= 6
    out = capsys.readouterr().out
    assert "[4 of 4] nobody-" in out
    assert "| nobody/near | 50.0 ± 1.00 |" in out
    assert "On the same test episodes" in out
    pair = json.loads((table.folder / "outputs/table/nobody/table.json").read_text())["pairs"]
    assert [(p["first"], p["second"]) for p in pair] == [("nobody/near", "nobody/far")]
    table.main(*table.table, "eval.tasks=3", "train.log_every=2", "name=again")
    assert folders(table) == first
    table.main(*table.table, "seed=2", "experiment=nobody/far")
    assert len(folders(table)) == 5
    assert rows(table)["nobody/far"]["seeds"] == [0, 1, 2], "those of before are still in it"
    made = {path.name for path in (table.folder / "outputs/table").iterdir()}
    assert made == {"nobody"}, "no stray folders"


def test_other_conditions_are_another_table(table):
    """It says so in the title and in every cell, and gives no verdict."""
    table.main(*table.table, "train.steps=2", "seed=0")
    (folder,) = (table.folder / "outputs/table").iterdir()
    assert folder.name.startswith("nobody-")
    assert "NOT under the paper's conditions: train.steps=2" in (folder / "table.md").read_text()
    for row in rows(table, folder.name).values():
        assert row["conditions"] == ["train.steps=2"]
        assert row["verdict"] is None


def test_the_experiments_own_values_and_the_precision_are_no_other_conditions(table):
    """A table in bf16 takes no other's place all the same, says what it is in, and is judged."""
    near = [*table.table, "seed=0", "experiment=nobody/near"]
    table.main(*near, "train.steps=4")
    table.main(*near, "device.precision=bf16")
    made = {path.name: path for path in (table.folder / "outputs/table").iterdir()}
    assert set(made) == {"nobody", "nobody-bf16"}
    for name, title in (("nobody", "Two distances"), ("nobody-bf16", "Two distances, in bf16")):
        assert (made[name] / "table.md").read_text().startswith(f"## {title}\n")
        assert rows(table, name)["nobody/near"]["verdict"] is not None
        assert len(list(made[name].rglob("results.json"))) == 1


def test_a_failing_cell_is_told_and_the_others_go_on(table, capsys):
    """Exit code 1, the reason in the table; once it can be run it is run."""
    path = table.folder / "conf/experiment/nobody/far.yaml"
    text = path.read_text()
    path.write_text(text.replace("cosine", "manhattan"))
    with pytest.raises(SystemExit) as leaving:
        table.main(*table.table, "seed=0")
    assert leaving.value.code == 1
    assert "metarun: job 1: algo.distance=manhattan: choose one of" in capsys.readouterr().err
    found = rows(table)
    assert found["nobody/near"]["seeds"] == [0]
    assert found["nobody/far"]["states"] == {"0": "failed"}
    assert found["nobody/far"]["errors"]["0"].startswith("algo.distance=manhattan: choose one of")
    path.write_text(text)
    table.main(*table.table, "seed=0")
    assert rows(table)["nobody/far"]["states"] == {"0": "finished"}


def test_a_reason_is_told_in_full_once(table, capsys):
    """And once more in the table, however many runs it stopped."""
    path = table.folder / "conf/experiment/nobody/far.yaml"
    path.write_text(path.read_text().replace("cosine", 99 * "x"))
    with pytest.raises(SystemExit):
        table.main(*table.table)
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if line.startswith("metarun: job")]
    reason = rows(table)["nobody/far"]["errors"]["0"]
    assert told == [f"metarun: job 2: {reason}", "metarun: job 3: the same as job 2"]
    assert printed.out.count(reason) == 1
    assert f"* nobody/far, seed 0, 1: failed: {reason}" in printed.out


def test_a_programming_error_of_a_cell_leaves_its_traceback(table, monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("metarun.algos.protonet.ProtoNet.loss", broken)
    with pytest.raises(SystemExit) as leaving:
        table.main(*table.table, "seed=0", "experiment=nobody/near")
    assert leaving.value.code == 1
    assert "ZeroDivisionError: a mistake of ours" in capsys.readouterr().err
    (error,) = (table.folder / "outputs/table/nobody").rglob("error.txt")
    assert "Traceback" in error.read_text()


def test_killed_and_taken_up_again(table):
    """The finished cell stays as it is, the killed one goes on from its checkpoint."""
    long = [*table.table, "seed=0", "train.steps=150", "train.val_every=3"]
    process = table.process(*long)
    near, far = "nobody-near", "nobody-far"
    place = table.folder / "outputs/table"
    for _ in range(600):
        if list(place.glob(f"*/{far}/*/checkpoints/last.pt")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = folders(table)
    (done,) = (path for path in before if near in path)
    (killed,) = place.glob(f"*/{far}/*")
    assert cells.read(killed).state == "interrupted"
    table.main(*long)
    assert folders(table)[done] == before[done]
    assert cells.read(killed).state == "finished"
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(set(steps)), "no step twice"
    assert steps[-1] == 150


def test_a_cell_that_another_process_runs_is_left_to_it(table, capsys):
    """It counts as running, and the others go on."""
    near_alone = [*table.table, "seed=0", "experiment=nobody/near"]
    table.main(*near_alone)
    (near,) = (table.folder / "outputs/table/nobody/nobody-near").iterdir()
    results = cells.read(near).results
    (near / "results.json").write_text(json.dumps(results | {"status": "running"}))
    with FileLock(near / ".lock"):
        table.main(*table.table, "seed=0")
    assert f"{near.name} is being run by another process" in capsys.readouterr().out
    assert rows(table)["nobody/near"]["states"] == {"0": "running"}
    assert rows(table)["nobody/far"]["states"] == {"0": "finished"}


def test_a_cell_done_on_other_data_is_not_done(table, pictures, capsys):
    """It fails, with the reason, until its own data is there again; nothing of it is lost."""
    again = [*table.table, "seed=0", "experiment=nobody/near"]
    table.main(*again)
    first, own = folders(table), rows(table)["nobody/near"]
    others = table.folder / "others"
    shutil.copytree(pictures, others)
    shutil.rmtree(others / "test/test00")
    with pytest.raises(SystemExit) as leaving:
        table.main(*again, f"data.root={others}")
    assert leaving.value.code == 1
    assert "job 0: resume=auto: the data has changed" in capsys.readouterr().err
    found = rows(table)["nobody/near"]
    assert found["states"] == {"0": "failed"}
    assert found["errors"]["0"].startswith("resume=auto: the data has changed")
    assert "ours" not in found
    table.main(*again)
    assert rows(table)["nobody/near"] == own
    assert folders(table) == first


def test_a_killed_cell_that_cannot_go_on_says_why(table):
    """Its reason is in the table until it does go on."""
    again = [*table.table, "seed=0", "experiment=nobody/near"]
    table.main(*again)
    (near,) = (table.folder / "outputs/table/nobody/nobody-near").iterdir()
    results = cells.read(near).results
    (near / "results.json").write_text(json.dumps(results | {"status": "running"}))
    with pytest.raises(SystemExit) as leaving:
        table.main(*again, "data.root=nowhere")
    assert leaving.value.code == 1
    found = rows(table)["nobody/near"]
    assert (found["states"], "nowhere" in found["errors"]["0"]) == ({"0": "failed"}, True)
    table.main(*again)
    assert rows(table)["nobody/near"]["states"] == {"0": "finished"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("table=nobdy", "table=nobdy: there is no such choice, did you mean nobody?"),
        ("table=nobody mode=test", "mode=test: table= trains and tests"),
        ("table=nobody way=3,4", "way: table= sweeps over experiment= and seed= alone"),
        ("table=nobody experiment=sinusoid/maml", "experiment=sinusoid/maml: not in table=nobody"),
        ("table=nobody train.stepz=4", "train.stepz: there is no such key"),
        ("table=nobody seeds=2", "seeds=2: a table has seeds of its own, and seed=0,1,2 chooses"),
        ("table=nobody hydra.sweep.subdir=x", "hydra.sweep.subdir: table= names its runs' folders"),
        ("table=nobody --cfg job", "table= is many runs: experiment=NAME shows the config of one"),
    ],
)
def test_refused(table, typed, said):
    assert said in table.error(*table.table[:2], *typed.split())
    assert [path.name for path in table.folder.iterdir()] == ["conf"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds: [0, 1]\n", ""), "nobody.yaml: table.seeds: it cannot be left out"),
        (("seeds: [0, 1]", "seeds: 3"), "table.seeds=3: a list is needed"),
        (("seeds: [0, 1]", "seeds: []"), "table.seeds=[]: a list is needed"),
        (("seeds: [0, 1]", "seeds: [a]"), "table.seeds=[a]: whole numbers are needed"),
        (("metric: accuracy", "metric: acc"), "table.metric=acc: choose one of accuracy, mse"),
        ((" paper: 50.0,", ""), "table.cells.paper: it cannot be left out"),
        ((" paper: 50.0,", " paper: high,"), "table.cells.paper=high: a number or null is needed"),
        ((" paper: 50.0,", " pepper: 1, paper: 50.0,"), "pepper: there is no such key, did you me"),
        (("cells:\n", "cells:\n  - 3\n"), "table.cells: a group of keys is needed, experiment, "),
        (("title: Two", "title: [Two"), "nobody.yaml: it cannot be read: while parsing"),
        ((TABLE, "- 1"), "nobody.yaml: a config file holds keys, as in key: value"),
    ],
)
def test_a_file_that_is_no_table_is_refused(table, change, said):
    (table.folder / "conf/table/nobody.yaml").write_text(TABLE.replace(*change))
    assert said in table.error(*table.table)
    assert [path.name for path in table.folder.iterdir()] == ["conf"]


def test_a_sweep_ends_with_a_summary(metarun, capsys):
    """Mean over seeds for each config; given again with its name, all is done already."""
    sweep = ["-m", *metarun.data, *QUICK, "seed=0,1", "algo.distance=euclidean,cosine", "name=s"]
    metarun.main(*sweep)
    out = capsys.readouterr().out
    place = metarun.folder / "outputs/multirun/s"
    text = (place / "summary.md").read_text()
    assert text in out
    kept = json.loads((place / "summary.json").read_text())
    assert {row["config"] for row in kept["rows"]} == {
        "algo.distance=euclidean",
        "algo.distance=cosine",
    }
    for row in kept["rows"]:
        values = [
            run.value
            for run in cells.below(place)
            if run.results["config"]["algo"]["distance"] in row["config"]
        ]
        assert row["mean"] == pytest.approx(50 * sum(values))
        assert "| 0, 1 |" in text
    assert len(kept["pairs"]) == 1
    before = {
        run.folder: (run.folder / "results.json").stat().st_mtime_ns for run in cells.below(place)
    }
    assert len(before) == 4
    metarun.main(*sweep, "resume=auto")
    after = {
        run.folder: (run.folder / "results.json").stat().st_mtime_ns for run in cells.below(place)
    }
    assert after == before


def test_seeds_at_once_in_a_sweep(metarun, capsys):
    """The summary has them all. Without resume=auto they are refused, and stay as they are."""
    sweep = ["-m", *metarun.data, *QUICK, "seeds=2", "algo.distance=euclidean,cosine", "name=s"]
    metarun.main(*sweep)
    place = metarun.folder / "outputs/multirun/s"
    runs = cells.below(place)
    assert [(run.folder.name, run.state) for run in runs] == 2 * [
        ("seed0", "finished"),
        ("seed1", "finished"),
    ]
    assert (place / "summary.md").read_text().count("| 0, 1 |") == 2
    killed = runs[0].folder
    (killed / "results.json").write_text(json.dumps(runs[0].results | {"status": "running"}))
    (runs[2].folder.parent / "error.txt").write_text("seed 2: no memory\n")
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*sweep)
    assert leaving.value.code == 2
    assert "job 1:" in capsys.readouterr().err
    assert [path.read_text() for path in place.rglob("error.txt")] == ["seed 2: no memory\n"]
    assert f"{killed.relative_to(place)}: interrupted\n" in (place / "summary.md").read_text()
    metarun.main(*sweep, "resume=auto")
    assert [run.state for run in cells.below(place)] == 4 * ["finished"]


def test_a_refused_job_does_not_fail_the_run_that_is_there(metarun):
    """One that was killed still is, and can be gone on with."""
    sweep = ["-m", *metarun.data, *QUICK, "seed=0,1", "name=s"]
    metarun.main(*sweep)
    place = metarun.folder / "outputs/multirun/s"
    killed, _ = cells.below(place)
    (killed.folder / "results.json").write_text(json.dumps(killed.results | {"status": "running"}))
    with pytest.raises(SystemExit):
        metarun.main(*sweep)
    assert [run.state for run in cells.below(place)] == ["interrupted", "finished"]
    assert not list(place.rglob("error.txt"))


def test_a_sweep_over_experiments_takes_the_keys_of_their_data(metarun, table):
    """Which the default data does not have: Hydra alone refuses them."""
    (root,) = (o for o in metarun.data if o.startswith("data.root="))
    metarun.main(
        *("-m", *table.table[:2], "experiment=nobody/near,nobody/far", root, "data.grey=false"),
        *("tracker=none", "device=cpu", "name=s"),
    )
    runs = cells.below(metarun.folder / "outputs/multirun/s")
    assert [run.results["config"]["data"]["grey"] for run in runs] == [False, False]
