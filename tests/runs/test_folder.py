import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from metarun import files
from metarun.errors import UserError
from metarun.runs import folder as runfolder
from metarun.runs.folder import claimed, earlier

HOLDER = """\
import sys
from pathlib import Path
from metarun.runs.folder import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_has_ended(tmp_path):
    """Also when it was killed."""
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"claimed\n"
        with pytest.raises(UserError, match=r"run is in use by another process"), claimed(folder):
            pass
        assert folder.exists()
    finally:
        holder.kill()
        holder.communicate()
    with claimed(folder):
        pass


def test_claimed_twice_by_this_process(tmp_path):
    with claimed(tmp_path / "run"):
        with pytest.raises(UserError, match="in use"), claimed(tmp_path / "run"):
            pass
        with claimed(tmp_path / "other"):
            pass


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claimed(folder):
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(UserError, match="nothing"), claimed(folder):
        raise UserError("nothing came of it")
    assert not folder.exists()


def test_a_folder_with_something_in_it_stays(tmp_path):
    folder = tmp_path / "run"
    with claimed(folder):
        (folder / "metrics.jsonl").touch()
    assert (folder / "metrics.jsonl").exists()
    with claimed(folder):
        pass
    assert (folder / "metrics.jsonl").exists()


def test_a_new_folder_has_no_earlier_run(tmp_path):
    with claimed(tmp_path / "run"):
        assert earlier(tmp_path / "run", "none", "train") is None
        assert earlier(tmp_path / "run", "auto", "train") is None


@pytest.mark.parametrize("resume", ["none", "auto"])
def test_a_folder_of_other_files_is_refused(tmp_path, resume):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files: choose another name="):
        earlier(tmp_path, resume, "train")


def test_an_earlier_run_is_gone_on_with_only_if_asked(tmp_path):
    content = {"status": "interrupted", "mode": "train"}
    runfolder.write_json(tmp_path / "results.json", content)
    with pytest.raises(UserError, match=r"already holds a run \(interrupted\).* or resume=auto"):
        earlier(tmp_path, "none", "train")
    assert earlier(tmp_path, "auto", "train") == content


def test_a_run_of_another_mode_is_refused(tmp_path):
    runfolder.write_json(tmp_path / "results.json", {"status": "finished", "mode": "train"})
    with pytest.raises(UserError, match="holds a run with mode=train: choose another name="):
        earlier(tmp_path, "auto", "test")


def test_a_run_killed_before_it_began_is_no_run(tmp_path):
    files.temporary_name(tmp_path / "results.json").write_text("{")
    assert earlier(tmp_path, "none", "train") is None


def test_json_comes_back(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "é"}}
    runfolder.write_json(tmp_path / "new" / "a.json", content)
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    runfolder.write_json(path, {"status": "running"})

    def cut_short(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", cut_short)
    with pytest.raises(KeyboardInterrupt):
        runfolder.write_json(path, {"status": "finished"})
    monkeypatch.undo()
    assert runfolder.results(tmp_path) == {"status": "running"}


def test_two_write_at_once(tmp_path, monkeypatch):
    """Neither takes the other's file for its own; the later one stays."""
    path = tmp_path / "table.md"

    def meanwhile(descriptor):
        monkeypatch.undo()
        runfolder.write_text(path, "of another process")

    monkeypatch.setattr(os, "fsync", meanwhile)
    runfolder.write_text(path, "of this one")
    assert path.read_text() == "of this one"
    assert list(tmp_path.iterdir()) == [path]


def test_csv(tmp_path):
    path = tmp_path / "episodes.csv"
    runfolder.write_csv(path, {"episode": [0, 1], "accuracy": [0.5, 1.0]})
    assert path.read_text().splitlines() == ["episode,accuracy", "0,0.5", "1,1.0"]
    with pytest.raises(ValueError, match="zip"):
        runfolder.write_csv(path, {"episode": [0, 1, 2], "accuracy": [0.5]})
    assert path.read_text().splitlines() == ["episode,accuracy", "0,0.5", "1,1.0"]


def test_a_folder_that_somebody_else_removes(tmp_path):
    """As another rank did, in the midst of removing it here."""
    with claimed(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_no_run_begins_is_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"), claimed(tmp_path):
        earlier(tmp_path, "none", "train")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_killed_processes_left_is_swept(tmp_path):
    left = [files.temporary_name(tmp_path / name) for name in ("a.csv", "checkpoints/last.pt")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "a.csv").touch()
    with claimed(tmp_path):
        assert not any(path.exists() for path in left)
        assert (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("place", [".lock", "results.json"])
def test_a_folder_in_place_of_a_file(tmp_path, place):
    (tmp_path / place).mkdir()
    with pytest.raises(UserError, match=f"{place}"), claimed(tmp_path):
        earlier(tmp_path, "auto", "train")


FINISHED = {"status": "finished", "mode": "train", "test": {"metric": "accuracy", "accuracy": 0.5}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "the run"),
        ("{}", "status"),
        ("null", "the run"),
        ('{"status": 3}', "status"),
        (json.dumps(FINISHED | {"config": []}), "config"),
        (json.dumps(FINISHED | {"test": 5}), "test"),
        (json.dumps(FINISHED | {"test": {"accuracy": 0.5}}), "test.metric"),
        (json.dumps(FINISHED | {"test": {"metric": "accuracy"}}), "test.accuracy"),
        (json.dumps(FINISHED | {"test": {"metric": "mse", "mse": "0.5"}}), "test.mse"),
    ],
)
def test_results_of_the_right_syntax_and_the_wrong_shape(tmp_path, text, said):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        runfolder.results(tmp_path)
    assert str(refused.value).startswith(f"{path} is damaged: {said} is not there")


@pytest.mark.parametrize("content", [b"", b"{", 200_000 * b"[", b'{"status": "\xff"}', bytes(99)])
def test_results_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path} cannot be read: "):
        runfolder.results(tmp_path)


def test_results_that_are_sound(tmp_path):
    runfolder.write_results(tmp_path / "results.json", FINISHED)
    assert runfolder.results(tmp_path) == FINISHED


def test_one_digit_is_enough_to_be_refused(tmp_path):
    path = tmp_path / "results.json"
    runfolder.write_results(path, {**FINISHED, "seconds": float("nan"), "config": {3: [0.1, 1e30]}})
    assert runfolder.results(tmp_path) is not None
    path.write_text(path.read_text().replace("0.5", "0.7"))
    with pytest.raises(UserError, match=rf"^{path} is damaged: it is not what was written"):
        runfolder.results(tmp_path)


def test_episodes_are_put_by_whatever_they_hold(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "episodes.csv").write_bytes(b"\xff\x00")
    runfolder.put_by(tmp_path)
    assert (tmp_path / "episodes.1.csv").read_bytes() == b"\xff\x00"
    assert (tmp_path / "results.1.json").read_bytes() == b"{}"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which file is meant")
@pytest.mark.parametrize("full", [False, True])
def test_results_are_put_by_together_or_not_at_all(tmp_path, monkeypatch, full):
    """A disk that holds the one copy and not the other keeps neither."""
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "episodes.csv").write_text("episode,accuracy\n")
    sync = os.fsync

    def sync_but_for_episodes(number):
        if full and "episodes" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", sync_but_for_episodes)
    names = {"results.json", "episodes.csv"}
    if full:
        with pytest.raises(UserError, match=r"cannot write .*episodes\.1\.csv: No space left"):
            runfolder.put_by(tmp_path)
    else:
        runfolder.put_by(tmp_path)
        names |= {"results.1.json", "episodes.1.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
