"""The table of finished runs."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from metarun.tables import methods

SCRIPT = Path(__file__).parents[2] / "scripts" / "table.py"
spec = importlib.util.spec_from_file_location("table_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def results(algo, accuracy, shot=1, seconds=100.0, status="finished", seed=0, **options):
    test = {"metric": "accuracy", "accuracy": accuracy, "ci95": 0.004, "way": 5, "shot": shot}
    return {
        "status": status,
        "names": {"algo": algo, "data": "omniglot"},
        "test": test | {"batch_norm": "running"},
        "train": {"steps": 700},
        "config": {"seed": seed, "algo": {"way": 5, **options}},
        "cpu_seconds": seconds,
    }


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """The lines that the script prints for these results."""

    def lines(*runs):
        for i, run in enumerate(runs):
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "results.json").write_text(json.dumps(run))
        monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path)])
        script.main()
        return capsys.readouterr().out.splitlines()

    return lines


def test_cells(table):
    """The better algorithm first; a run's interval; a cell that is not there is empty."""
    assert table(
        results("maml", 0.9), results("protonet", 0.95, seconds=50.4), results("maml", 0.97, shot=5)
    ) == [
        "| algorithm | batch norm | omniglot, 5-way 1-shot | omniglot, 5-way 5-shot |",
        "|---|---|---|---|",
        "| protonet | running | 95.00 ± 0.40<br>700 steps, 50 s |  |",
        "| maml | running | 90.00 ± 0.40<br>700 steps, 100 s | 97.00 ± 0.40<br>700 steps, 100 s |",
    ]


def test_seeds_become_one_cell(table):
    """Mean 94, and the half-width of Student's t with two degrees of freedom."""
    accuracies = [0.93, 0.94, 0.95]
    (cell,) = table(*(results("maml", a, seed=i) for i, a in enumerate(accuracies)))[2:]
    half = 4.303 * statistics.stdev([93, 94, 95]) / 3**0.5
    assert f"94.00 ± {half:.2f} (3 seeds)<br>700 steps, 100 s" in cell


def test_other_options_are_another_row(table):
    """They are no seeds of one run; what tells them apart is named."""
    runs = [results("maml", 0.9, inner_steps=1), results("maml", 0.2, inner_steps=0)]
    names = [line.split(" |")[0] for line in table(*runs)[2:]]
    assert names == ["| maml (inner_steps=1)", "| maml (inner_steps=0)"]


def test_one_seed_twice_is_refused(table):
    with pytest.raises(SystemExit, match="maml, omniglot, 5-way 1-shot: runs of seeds"):
        table(results("maml", 0.9), results("maml", 0.8))


def test_the_lowest_error_comes_first(table):
    runs = []
    for algo, error in (("anil", 0.9), ("maml", 0.5)):
        runs.append(results(algo, 0.0))
        runs[-1]["test"] |= {"metric": "mse", "mse": error}
    assert [line.split(" |")[0] for line in table(*runs)[2:]] == ["| maml", "| anil"]


def test_a_figure_that_is_not_finite_comes_last(table):
    """Of one run, or of one seed of several; the others keep theirs."""
    runs = [results("maml", None), results("anil", 0.9), results("boil", 0.8, seed=0)]
    runs.append(results("boil", None, seed=1))
    runs[0]["test"]["ci95"] = None
    cells = [line.split("<br>")[0] for line in table(*runs)[2:]]
    assert cells == [
        "| anil | running | 90.00 ± 0.40",
        "| boil | running | – (2 seeds)",
        "| maml | running | –",
    ]


def test_what_is_not_finished_is_left_out(table):
    lines = table(results("maml", 0.9), results("anil", 0.9, status="interrupted"))
    assert len(lines) == 3


def test_without_a_test_or_damaged_is_left_out(table, tmp_path, capsys):
    """The damaged one is named."""
    embedded = results("maml", 0.9)
    del embedded["test"]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/results.json").write_text('{"status": "fin')
    assert len(table(results("maml", 0.9), embedded)) == 3
    script.main()
    assert str(tmp_path / "torn/results.json") in capsys.readouterr().err


def test_an_error_is_no_percentage(table):
    run = results("maml", 0.0)
    run["test"] = {"metric": "mse", "mse": 0.5, "ci95": 0.02, "shot": 10, "batch_norm": "none"}
    assert table(run)[0].endswith("| omniglot, 10-shot |")
    assert "0.50 ± 0.02" in methods.table([run])
