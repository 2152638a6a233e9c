"""A sweep's runs that differ in their tests alone share one training."""

import json
import shutil

import pytest

from metarun.algos.protonet import ProtoNet
from tests.conftest import QUICK
from tests.test_experiment import records, same, weights

SWEEP = ["-m", "resume=auto", "train.split=trainval", "sampler.way=3", "sampler.shot=1"]


@pytest.fixture
def steps(monkeypatch):
    """The shapes of the support sets of all steps of training, in turn."""
    taken, loss = [], ProtoNet.loss

    def watched(self, episodes):
        taken.append(tuple(episodes.support_x.shape[:2]))
        return loss(self, episodes)

    monkeypatch.setattr(ProtoNet, "loss", watched)
    return taken


def sweep(metarun, name, *overrides):
    """The results of a sweep's runs by their test's way."""
    metarun.main(*metarun.data, *QUICK, f"hydra.sweep.dir=outputs/{name}", *SWEEP, *overrides)
    paths = (metarun.folder / "outputs" / name).glob("*/*/results.json")
    found = [json.loads(path.read_text()) | {"folder": path.parent} for path in paths]
    return {(r["config"]["eval"]["way"], r["config"]["seed"]): r for r in found}


def named(results):
    """The run's folder as `weights` and `records` name it."""
    return "/".join(results["folder"].parts[-3:])


def test_one_training_serves_two_tests_as_two_trainings_do(metarun, steps, capsys):
    """Weights, records and each test episode are those of the run that trained for itself."""
    both = sweep(metarun, "both", "way=3,5")
    assert len(steps) == 4, "of one training"
    alone = sweep(metarun, "alone", "way=5")
    assert len(steps) == 8
    first, second, own = both[3, 0], both[5, 0], alone[5, 0]
    assert first["trained_in"] is own["trained_in"] is None
    where = "/".join(named(first).split("/")[1:])
    assert second["trained_in"] == {"folder": where, "provenance": first["provenance"]}
    said = f"trained in {where}, which differs in its test alone"
    assert said in capsys.readouterr().out
    assert second["test"] == own["test"] != first["test"]
    for key in ("status", "mode", "parameters", "data", "val", "trained_on"):
        assert second[key] == own[key], key
    assert second["train"]["steps"] == 4
    assert second["train"] == first["train"], "of the one training"
    assert second["cpu_seconds"] >= first["cpu_seconds"], "the whole run's and its own test's"
    assert second["wandb_id"] != first["wandb_id"]
    assert same(weights(metarun, named(second)), weights(metarun, named(own)))
    assert records(metarun, named(second)) == records(metarun, named(own))
    csv = [(run["folder"] / "episodes.csv").read_text() for run in (second, own)]
    assert csv[0] == csv[1]
    assert sweep(metarun, "both", "way=3,5")[5, 0]["test"] == own["test"]
    assert len(steps) == 8, "nothing is done again"


@pytest.mark.parametrize(
    ("other", "trained"),
    [
        (["way=3,5", "train.split=train"], 2),  # its validation has the test's way
        (["way=3,5", "resume=none"], 2),
        (["way=3,5", "eval.episodes=6,7"], 1),
        (["seed=0,1"], 2),
        (["sampler.shot=1,2"], 2),
        (["optim.lr=0.001,0.002"], 2),
        (["backbone.batch_norm=batch", "sampler.chunk=0,1"], 2),
        (["way=3,5", "train.log_every=1,2"], 2),
    ],
)
def test_only_a_training_that_is_the_same_is_shared(metarun, steps, other, trained):
    """What a sweep compares counts, even where results do not depend on it."""
    sweep(metarun, "both", *other)
    found = list((metarun.folder / "outputs/both").glob("*/*/results.json"))
    own = [json.loads(path.read_text())["trained_in"] for path in found].count(None)
    assert own == trained
    assert len(steps) == 4 * trained


def test_whoever_trained_is_named(metarun):
    """Though another took its training over in between, and is the first to be found."""
    sweep(metarun, "both", "way=3")
    two = sweep(metarun, "both", "way=4")
    shutil.rmtree(two[3, 0]["folder"])
    three = sweep(metarun, "both", "way=5")
    assert three[5, 0]["trained_in"] == two[4, 0]["trained_in"]
    assert three[5, 0]["trained_in"]["folder"] == "/".join(named(two[3, 0]).split("/")[1:])


def test_a_run_that_trains_on_is_its_own(metarun, steps, capsys):
    """Two runs of four steps from one training, and four more of one of them."""
    folder = sweep(metarun, "both", "way=3,5")[5, 0]["folder"]
    there = f"hydra.run.dir={folder.relative_to(metarun.folder)}"
    on = [o for o in [*metarun.data, *QUICK, *SWEEP[1:]] if not o.startswith(("way=", "train.st"))]
    capsys.readouterr()
    metarun.main(*on, "way=5", "train.steps=8", there)
    assert "going on after step 4" in capsys.readouterr().out
    assert len(steps) == 8
    results = json.loads((folder / "results.json").read_text())
    assert results["trained_in"] is None
    assert results["train"]["steps"] == 8


@pytest.mark.parametrize("part", ["checkpoints/last.pt", "metrics.jsonl"])
def test_a_training_that_is_lost_is_done_again(metarun, steps, part):
    """A checkpoint cut short, or no records."""
    first = sweep(metarun, "both", "way=3")[3, 0]
    path = first["folder"] / part
    if part.endswith(".pt"):
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
    second = sweep(metarun, "both", "way=5")[5, 0]
    assert len(steps) == 8
    assert second["trained_in"] is None
    assert second["status"] == "finished"


def test_a_training_on_other_data_is_not_taken(metarun, steps, pictures):
    """The same files by name, one of them changed."""
    root = metarun.folder / "pictures"
    shutil.copytree(pictures, root)
    there = f"data.root={root}"
    sweep(metarun, "both", "way=3", there)
    (root / "train/train00/0.png").unlink()
    other = sweep(metarun, "both", "way=5", there)[5, 0]
    assert len(steps) == 8
    assert other["trained_in"] is None


def test_a_run_killed_while_it_took_over_trains_for_itself(metarun, steps):
    """Without its last checkpoint the training is not there; the result is the same."""
    before = sweep(metarun, "both", "way=3,5")[5, 0]
    folder = before["folder"]
    results = {k: v for k, v in before.items() if k not in ("test", "folder", "sha256")}
    (folder / "results.json").write_text(json.dumps(results | {"status": "interrupted"}))
    (folder / "checkpoints/last.pt").unlink()
    after = sweep(metarun, "both", "way=3,5")[5, 0]
    assert len(steps) == 8
    assert after["trained_in"] is None
    assert after["test"] == before["test"]


def test_another_version_s_training_is_not_taken(metarun, steps, monkeypatch):
    """No more than its finished runs are."""
    sweep(metarun, "both", "way=3")
    monkeypatch.setattr("metarun.__version__", "0.0.1")
    sweep(metarun, "both", "way=5")
    assert len(steps) == 8


def test_a_folder_with_other_files_is_left_alone(metarun, capsys):
    """And the run is refused, as it would be without another's training."""
    found = sweep(metarun, "both", "way=3,5")
    folder = found[5, 0]["folder"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        sweep(metarun, "both", "way=3,5")
    assert "holds other files: choose another name=" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
