"""results.json tells how a run stands, however it ends, and wherever there is no room."""

import json
import resource
import subprocess
import sys
import time

import pytest

from metarun import files
from metarun.errors import UserError
from metarun.runs import folder as runfolder
from metarun.runs.results import kept
from tests.conftest import QUICK
from tests.test_files import no_room


def told(folder):
    """What results.json says, after its checksum has been compared."""
    assert runfolder.SEAL in json.loads((folder / "results.json").read_text())
    return runfolder.results(folder)


def test_on_a_full_disk_it_has_failed(tmp_path, monkeypatch):
    """Not "running" for ever, though nothing can be written any more."""
    results = {"status": "running", "config": {"way": 5}}

    def run():
        with kept(results, tmp_path, {}, time.time()):
            assert told(tmp_path)["status"] == "running"
            monkeypatch.setattr(files.os, "fsync", no_room)
            runfolder.write_text(tmp_path / "last.pt", "x")

    with pytest.raises(UserError, match=r"cannot write .*last.pt: No space left"):
        run()
    assert told(tmp_path) == {"status": "failed", "config": {"way": 5}, "seconds": 0.0}


def test_where_its_last_word_has_no_room_that_is_told(tmp_path, monkeypatch):
    with (
        pytest.raises(UserError, match=r"cannot write .*results.json: No space left"),
        kept({"status": "running"}, tmp_path, {}, time.time()),
    ):
        monkeypatch.setattr(files.os, "fsync", no_room)
    assert told(tmp_path)["status"] == "failed"


def test_a_quota_ends_a_run_in_one_line(metarun):
    """As a process of its own, which may not write files of more than 30 kB: no checkpoint fits."""
    metarun.run("name=before")  # the data is prepared
    command = [sys.executable, "-m", "metarun", *metarun.data, *QUICK, "name=a"]
    done = subprocess.run(
        [*command, "hydra.run.dir=outputs/a", "backbone.width=64"],
        cwd=metarun.folder,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("metarun: cannot write outputs/a/checkpoints/")
    assert line.endswith("pt: File too large")
    assert metarun.results("a")["status"] == "failed"
    assert not list((metarun.folder / "outputs/a").rglob("*.tmp"))
    metarun.run("name=a", "backbone.width=64", "resume=auto")
    assert metarun.results("a")["status"] == "finished"
