"""What the terminal shows of a sweep."""

import json

from filelock import FileLock
from rich.console import Console

from metarun.tables.live import Watch

TEST = {"metric": "accuracy", "accuracy": 0.9, "ci95": 0.01}


def write(folder, status, way, test=None):
    folder.mkdir(parents=True)
    config = {"seed": 0, "way": way, "sampler": {"way": way}, "train": {"steps": 9}}
    names = {"algo": "protonet", "sweep": "s"}
    content = {"status": status, "config": config, "names": names, "test": test}
    (folder / "results.json").write_text(json.dumps(content))


def test_states_and_best_so_far(tmp_path):
    """One run finished, one at work, one that could not begin, and one still to come."""
    write(tmp_path / "a/seed0-1", "finished", 5, TEST)
    write(tmp_path / "a/seed0-2", "running", 20)
    records = [
        {"step": 3, "val/accuracy": 0.71, "val/best": 0.71},
        {"step": 6, "val/accuracy": 0.62, "val/best": 0.71},
        {"step": 7, "train/loss": 1.0},
    ]
    text = "\n".join(map(json.dumps, records)) + '\n{"step": 8, "tr'  # the last one half-written
    (tmp_path / "a/seed0-2/metrics.jsonl").write_text(text)
    (tmp_path / "a/seed0-3").mkdir()
    (tmp_path / "a/seed0-3/error.txt").write_text("way=99: too few classes\n")
    with FileLock(tmp_path / "a/seed0-2/.lock"):
        console = Console(width=120)
        with console.capture() as captured:
            console.print(Watch(tmp_path, total=4).table())
    lines = captured.get().splitlines()
    rows = [line.split("│")[1:-1] for line in lines if "│" in line]
    assert [[part.strip() for part in row] for row in rows] == [
        ["a/seed0-2", "way=20", "running", "7 of 9", "val 71.00 %"],
        ["a/seed0-1", "way=5", "finished", "", "test accuracy 90.00 ± 1.00 %"],
        ["a/seed0-3", "", "failed", "", "failed: way=99: too few classes"],
    ]
    assert lines[-1].strip() == "1 failed, 1 finished, 1 running, 1 waiting"


def test_runs_asked_for_earlier_do_not_count(tmp_path, capsys):
    """They are in the folder, but not of this sweep."""
    write(tmp_path / "a/seed0-1", "finished", 5, TEST)
    own = [tmp_path / f"a/seed{seed}-1" for seed in (1, 2)]
    watch = Watch(tmp_path, 2, own)
    for folder in own:
        write(folder, "finished", 5, TEST)
        watch.look()
    told = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["[1 of 2] a/seed1-1", "[2 of 2] a/seed2-1"]
