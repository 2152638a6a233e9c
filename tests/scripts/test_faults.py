"""What is done to runs: the verdicts, and a try of each family that is quick."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the forks of a run need what Linux alone has", allow_module_level=True)

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import faults  # noqa: E402
from forked import Outcome  # noqa: E402
from harm import damaged, disk, kills, place  # noqa: E402

from metarun.runs import checkpoint  # noqa: E402


def outcome(code, err="", out=""):
    return Outcome(code, out, err, 1.0, 100.0)


@pytest.mark.parametrize(
    ("ended", "right", "survived"),
    [
        (outcome(0), True, True),
        (outcome(0), False, False),
        (outcome(2, "metarun: it is damaged\n"), False, True),
        (outcome(2, "metarun: one\nmetarun: two\n"), True, False),
        (outcome(1, "Traceback (most recent call last):\n"), True, False),
        (outcome(-9), True, False),
        (outcome(None), True, False),
    ],
)
def test_refused_or_right(ended, right, survived):
    assert (place.refused_or(ended, right, "x") is None) == survived


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (outcome(0), True),
        (outcome(2, "metarun: cannot write x\n"), True),
        (outcome(1, "metarun: job 0: x\nError executing job with overrides: []\n"), True),
        (outcome(1, "oh\n"), False),
        (outcome(2, ""), False),
        (outcome(1, "metarun: x\nTraceback (most recent call last):\n"), False),
    ],
)
def test_told_of_no_room(ended, told):
    assert (disk.untold(ended) is None) == told


def test_one_bit_turns_round(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    before = path.stat().st_mtime_ns
    place.flip(path, random.Random(0))
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
    assert path.stat().st_mtime_ns == before


def test_half_written(tmp_path):
    checkpoint.save(tmp_path / "last.pt", {"progress": {}})
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (tmp_path / "episodes.csv").write_text("episode\n0\n")
    assert place.half_written(tmp_path) is None
    for name in ("last.pt", "results.json", "episodes.csv"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1])
        assert place.half_written(tmp_path).startswith(str(tmp_path / name))
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "metrics.jsonl").write_text('{"st\n{"step": 2}\n')
    assert "a torn line" in place.half_written(tmp_path)


def test_a_mistake_of_ours_is_no_half_written_file(tmp_path, monkeypatch):
    def mistaken(path):
        raise AttributeError("load")

    monkeypatch.setattr(checkpoint, "load", mistaken)
    (tmp_path / "last.pt").touch()
    with pytest.raises(AttributeError):
        place.half_written(tmp_path)


def test_numbers(tmp_path):
    """Of every run below, one that cannot be read among them."""
    test = {"accuracy": 0.5, "ci95": 0.1, "episodes": 20, "measures": {}}
    for name, text in {"a": json.dumps({"status": "finished", "test": test}), "b": "["}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    found = place.numbers(tmp_path)
    assert found == {"a": ["finished", 0.5, 0.1, 20, {}, None, None], "b": ["unreadable"]}


def test_left_over(tmp_path):
    assert place.left_over(tmp_path) is None
    (tmp_path / "x.1234abcd.tmp").touch()
    assert place.left_over(tmp_path) == "x.1234abcd.tmp stays"


@pytest.mark.parametrize("seed", range(20))
def test_harm_changes_the_file(tmp_path, seed):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"status": "finished", "test": {"accuracy": 0.5}}))
    before = path.read_bytes()
    assert damaged.harmed(path, random.Random(seed), damaged.odd_json)
    assert not path.is_file() or path.read_bytes() != before


def test_what_it_does_not_know(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["faults.py", "--only", "fire"])
    with pytest.raises(SystemExit) as left:
        faults.main()
    assert left.value.code == 2
    assert "no such family: fire; choose of kill-training" in capsys.readouterr().err


def test_each_family_says_what_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["faults.py", "--list"])
    faults.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(faults.FAMILIES)
    assert all(line.endswith((".", "mounted.")) and len(line) > 30 for line in lines)


QUICK = ("kill-preparing", "disk-cache", "rot-best.pt", "damaged-table.csv", "hostile-configs")


def test_a_try_of_each():
    command = [sys.executable, SCRIPTS / "faults.py", "--only", ",".join(QUICK), "--tries", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(QUICK)
    assert all("tried   1, survived   1;" in line for line in lines)


def test_a_kill_leaves_a_table_to_go_on_with(tmp_path):
    kills.own_table(tmp_path)
    names = sorted(path.name for path in tmp_path.rglob("*.yaml"))
    assert names == ["a.yaml", "b.yaml", "two.yaml"]
