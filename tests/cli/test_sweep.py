"""What a sweep leaves and tells, also one that is stopped when none of its jobs is at work."""

import signal

import pytest

from metarun.cli import main as command_line
from metarun.errors import UserError
from metarun.tables import summary
from tests.conftest import QUICK

SWEEP = ["-m", "seed=0,1", "name=s", "hydra.sweep.dir=outputs/s", "hydra.sweep.subdir=${seed}"]


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGTERM, "asked_for"), (signal.SIGINT, "objective")]
)
def test_a_signal_between_two_jobs(metarun, monkeypatch, number, moment):
    """Before the second job's run, and after it: one line, whole runs alone, and it goes on."""
    really, calls = getattr(command_line, moment), []

    def then_the_signal(*given):
        calls.append(given)
        if len(calls) == 2:
            signal.raise_signal(number)
        return really(*given)

    monkeypatch.setattr(command_line, moment, then_the_signal)
    sweep = [*SWEEP, *metarun.data, *QUICK]
    metarun.monkeypatch.setattr("sys.argv", ["metarun", *sweep])
    metarun.capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        command_line.main()
    said = metarun.capsys.readouterr().err.splitlines()
    assert leaving.value.code == 130
    assert said[-1].startswith("metarun: stopped; go on with: metarun -m seed=0,1 ")
    assert said[-1].endswith(" name=s resume=auto")
    assert [line for line in said if line.startswith("metarun:")] == said[-1:]
    done = ["0"] if moment == "asked_for" else ["0", "1"]
    assert [metarun.results(f"s/{seed}")["status"] for seed in done] == ["finished"] * len(done)
    folders = [path for path in (metarun.folder / "outputs/s").iterdir() if path.is_dir()]
    begun = sorted(path.name for path in folders if any(path.iterdir()))
    assert begun == done

    metarun.main(*sweep, "resume=auto")
    assert [metarun.results(f"s/{seed}")["status"] for seed in "01"] == ["finished"] * 2


def test_why_runs_failed_is_told_though_the_summary_cannot_be_written(metarun, monkeypatch):
    """As on a full disk."""

    def full(folder):
        raise UserError(f"cannot write {folder}/summary.md: No space left on device")

    monkeypatch.setattr(summary, "write", full)
    sweep = ("-m", *metarun.data, *QUICK, "hydra.sweep.dir=outputs")
    metarun.capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*sweep, "algo.distance=manhattan,cosine")
    assert leaving.value.code == 2
    said = metarun.capsys.readouterr().err.splitlines()
    assert said[-1].startswith("metarun: algo.distance=manhattan: choose one of")
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*sweep, "algo.distance=cosine,euclidean", "resume=auto")
    assert leaving.value.code == 2
    assert "cannot write outputs/summary.md" in metarun.capsys.readouterr().err
