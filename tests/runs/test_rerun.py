"""A run once more: equal when nothing changed, and what changed when it is not."""

import json
import math
import shutil

import pytest
import torch

from metarun import files
from metarun.runs import rerun
from tests.conftest import QUICK


def again(metarun, *arguments: str) -> int:
    """The exit code of `metarun rerun=…`."""
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*arguments)
    return leaving.value.code


@pytest.fixture
def run(metarun):
    """A folder with a finished run, and a function that changes what its results.json says."""
    metarun.run("name=a", "train.steps=2", "eval.seed=3", "optim.lr=0.01")
    folder = metarun.folder / "outputs/a"

    def change(*keys: str, value) -> None:
        results = json.loads((folder / "results.json").read_text())
        results.pop("sha256", None)
        inner = results
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / "results.json").write_text(json.dumps(results))

    return folder, change


def content(folder) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_the_same(metarun, run, capsys):
    """Training and a test are repeated bit for bit, each in a folder of its own."""
    folder, _ = run
    before = content(folder)
    assert again(metarun, "rerun=outputs/a") == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed == "rerun  equal within rounding: outputs/a-rerun1 repeats outputs/a"
    assert again(metarun, "rerun=outputs/a/", "tracker.mode=disabled") == 0
    assert again(metarun, f"rerun={folder}", "name=b") == 0
    assert content(folder) == before, "the run itself is left alone"
    first = metarun.results("a")
    for name in ("a-rerun1", "a-rerun2", "b"):
        repeated = metarun.results(name)
        for key in ("test", "val", "mode", "data"):
            assert repeated[key] == first[key]
        assert repeated["config"] == first["config"] | {"name": name}
        said = json.loads((metarun.folder / "outputs" / name / "rerun.json").read_text())
        assert said == {"rerun of": "outputs/a", "equal": True, "differences": {}}
        episodes = (metarun.folder / "outputs" / name / "episodes.csv").read_bytes()
        assert episodes == before["episodes.csv"]


def test_on_as_many_threads(metarun, run):
    """A CPU adds in another order on another number of them."""
    here = torch.get_num_threads()
    for threads in (here + 1, here):
        run[1]("provenance", "threads", value=threads)
        again(metarun, "rerun=outputs/a", f"name=on{threads}")
        assert metarun.results(f"on{threads}")["provenance"]["threads"] == threads
    assert torch.get_num_threads() == here


def test_a_test_of_a_checkpoint(metarun, run):
    checkpoint = "checkpoint=outputs/a/checkpoints/best.pt"
    metarun.main(*metarun.data, *QUICK, "mode=test", checkpoint, "hydra.run.dir=outputs/tested")
    assert again(metarun, "rerun=outputs/tested") == 0
    assert metarun.results("tested-rerun1")["mode"] == "test"
    (metarun.folder / "outputs/a/checkpoints/best.pt").rename(metarun.folder / "moved.pt")
    told = metarun.error("rerun=outputs/tested")
    assert told == "checkpoint=outputs/a/checkpoints/best.pt: there is no such file"
    assert again(metarun, "rerun=outputs/tested", "checkpoint=moved.pt") == 0


def test_another_result(metarun, run, capsys):
    """What is not as it was is told, result and cause; the causes alone make no difference."""
    folder, change = run
    change("provenance", "packages", "torch", value="2.0.0")
    assert again(metarun, "rerun=outputs/a") == 0
    assert "packages.torch  2.0.0 then" in " ".join(capsys.readouterr().out.split("\n"))
    change("test", "accuracy", value=0.123456)
    change("data", "checksum", value="abc")
    text = (folder / "episodes.csv").read_text().splitlines()
    episode, accuracy, *others = text[3].split(",")
    text[3] = ",".join([episode, str(float(accuracy) + 0.25), *others])
    (folder / "episodes.csv").write_text("\n".join(text) + "\n")
    change("episodes_csv_sha256", value=files.sha256_of(folder / "episodes.csv"))
    assert again(metarun, "rerun=outputs/a") == 1
    said = json.loads((metarun.folder / "outputs/a-rerun2/rerun.json").read_text())
    assert said["equal"] is False
    rows = said["differences"]
    assert rows["test.accuracy"].startswith("0.123456 then, ")
    assert rows["data.checksum"].startswith("abc then, ")
    assert rows["episodes' accuracy"] == "1 of 6 differ, by up to 0.25"
    assert set(rows) == {"packages.torch", *list(rows)[1:]}
    assert len(rows) == 4


def test_another_seed_is_another_result(metarun, run):
    """The comparison sees what really changes when a run does."""
    _, change = run
    change("config", "seed", value=1)
    assert again(metarun, "rerun=outputs/a") == 1
    said = json.loads((metarun.folder / "outputs/a-rerun1/rerun.json").read_text())
    assert "episodes' accuracy" in said["differences"]


def test_a_key_that_the_run_did_not_know(metarun, run):
    """It is as it is by default, which is told."""
    _, change = run
    results = metarun.results("a")
    results["config"]["train"].pop("patience")
    change("config", value=results["config"])
    assert again(metarun, "rerun=outputs/a") == 0
    assert metarun.results("a-rerun1")["config"]["train"]["patience"] == 0


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("rerun=outputs/nowhere", "there is no results.json"),
        ("rerun=outputs", "there is no results.json"),
        ("rerun=outputs/a train.steps=3", "train.steps: rerun= repeats a run as it was"),
        ("rerun=outputs/a algo=maml", "algo: rerun= repeats a run as it was"),
        ("rerun=outputs/a name=a", "outputs/a already holds a run (finished): choose another name"),
        ("rerun=outputs/a name=b/c", "name=b/c: not a folder's name"),
        ("rerun=outputs/a -m", "leave out -m"),
        ("rerun=", "say which run, rerun=RUN_FOLDER"),
        ("rerun=[x", "[x: there is no results.json"),
        ("rerun=a:b,c=d", "a:b,c=d: there is no results.json"),
        ("rerun=outputs/a name=[x", "name=[x: cannot be read: write key=value"),
        ("rerun=outputs/a name=b,c", "give each key one value"),
        ("rerun=outputs/a tracker.mode=of", "tracker.mode=of: choose one of"),
    ],
)
def test_refused(metarun, run, typed, said):
    before = content(metarun.folder)
    assert said in metarun.error(*typed.split())
    assert content(metarun.folder) == before


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["status"], "interrupted", "the run is interrupted: nothing to compare with"),
        (["config", "train", "stepz"], 3, "train.stepz: there is no such key"),
        (["config", "algo", "_target_"], "os.system", "os.system: not allowed to run"),
        (["config", "algo", "_target_"], "mine.Mine", "if you trust it, add plugins.allow=[mine]"),
    ],
)
def test_a_run_that_cannot_be_repeated(metarun, run, keys, value, said):
    """Nor does a folder that came from elsewhere run what it likes, whatever it says is allowed."""
    _, change = run
    change(*keys, value=value)
    change("config", "plugins", "allow", value=["os", "mine"])
    assert said in metarun.error("rerun=outputs/a")


def test_a_folder_that_was_copied(metarun, run):
    folder, _ = run
    shutil.copytree(folder, metarun.folder / "elsewhere")
    metarun.monkeypatch.chdir(metarun.folder / "elsewhere")
    assert again(metarun, "rerun=.") == 0
    assert (metarun.folder / "elsewhere-rerun1" / "results.json").exists()
    (metarun.folder / "elsewhere" / "results.json").write_text("{")
    assert "elsewhere/results.json cannot be read" in metarun.error("rerun=.")


def test_the_same_number_twice():
    """Whatever rounding does, and if it is none."""
    assert rerun.same(1.0, 1.0 + 1e-7)
    assert not rerun.same(1.0, 1.001)
    assert rerun.same(math.nan, math.nan)
    assert not rerun.same(math.nan, 0.5)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["test"], None, "had no test"),
        (["test"], [], "results.json is damaged: test is not"),
        (["provenance"], {}, "results.json is damaged: provenance.threads=None"),
        (["provenance", "threads"], 0, "results.json is damaged: provenance.threads=0"),
        (["provenance", "threads"], 100_000, "provenance.threads=100000"),
        (["provenance", "threads"], "x", "provenance.threads=x"),
        (["config"], {}, "results.json is damaged: it has no config"),
        (["config"], {"way": 5}, "data: it is no choice of metarun's"),
        (["config", "algo"], 7, "algo: it is no choice of metarun's"),
        (["names"], {}, "results.json is damaged: it has no names"),
        (["data"], [], "results.json is damaged: data is not"),
    ],
)
def test_damaged_results_are_not_repeated(metarun, run, keys, value, said):
    _, change = run
    change(*keys, value=value)
    before = content(metarun.folder)
    assert said in metarun.error("rerun=outputs/a")
    assert content(metarun.folder) == before


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"episode,accuracy\n0,0.5\n"])
def test_damaged_episodes_are_told_before_the_run(metarun, run, damage):
    folder, _ = run
    (folder / "episodes.csv").write_bytes(damage)
    said = metarun.error("rerun=outputs/a")
    assert said.endswith("episodes.csv is damaged: it is not what the run wrote")
