"""Whole runs: what they leave, that they can be repeated, killed and gone on with."""

import csv
import random
import resource
import shlex
import shutil
import signal
import statistics
import sys
import time
from contextlib import suppress

import pytest
import torch

from metarun import experiment
from metarun.data.store import DataSet
from metarun.errors import Interrupted
from metarun.kernels import library
from metarun.runs import folder as runfolder
from metarun.runs import trackers
from metarun.tracking import jsonlines
from tests.conftest import QUICK


def weights(metarun, name: str, which: str = "last") -> dict:
    """The weights in a checkpoint of the run."""
    path = metarun.folder / "outputs" / name / "checkpoints" / f"{which}.pt"
    return torch.load(path, weights_only=True)["algorithm"]


def same(a: dict, b: dict) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    equal = (
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
        for key in a
    )
    return a.keys() == b.keys() and all(equal)


def records(metarun, name: str) -> list[dict]:
    """The run's metrics, without the one that tells the time."""
    found = jsonlines.read(metarun.folder / "outputs" / name / "metrics.jsonl")
    return [{k: v for k, v in record.items() if "per_second" not in k} for record in found]


@pytest.mark.drawing
def test_what_a_run_leaves(metarun):
    """The files of the run folder, and numbers in them that agree with each other."""
    results = metarun.run("name=a", "tracker=wandb", "tracker.mode=offline")
    folder = metarun.folder / "outputs/a"
    for file in (
        ".hydra/config.yaml .hydra/hydra.yaml .hydra/overrides.yaml checkpoints/best.pt "
        "checkpoints/last.pt metrics.jsonl episodes.csv curves.png episode.png wandb"
    ).split():
        assert (folder / file).exists(), file
    with open(folder / "episodes.csv") as file:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(file)]
    test = results["test"]
    assert len(accuracies) == test["episodes"] == 6
    assert test["accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert test["ci95"] == pytest.approx(1.959964 * statistics.stdev(accuracies) / 6**0.5)
    assert (test["way"], test["shot"], test["query"], test["batch_norm"]) == (3, 1, 5, "running")
    logged = records(metarun, "a")
    vals = [line for line in logged if "val/accuracy" in line]
    assert [line["step"] for line in vals] == [2, 4]
    assert results["val"]["accuracy"] == max(line["val/accuracy"] for line in vals)
    assert logged[-1]["test/accuracy"] == test["accuracy"]
    assert results["train"]["steps"] == results["train"]["episodes"] == 4
    assert results["train"]["episodes_per_second"] > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    assert 50 < results["train"]["peak_memory_mib"] <= peak / 2**20 + 0.1
    assert len(results["data"]["checksum"]) == 64
    assert results["provenance"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_seed_decides(metarun):
    """The same seed gives the same weights and results; another gives others."""
    metarun.run("name=a")
    metarun.run("name=b")
    metarun.run("name=c", "seed=1")
    assert same(weights(metarun, "a"), weights(metarun, "b"))
    assert records(metarun, "a") == records(metarun, "b")
    assert not same(weights(metarun, "a"), weights(metarun, "c"))


def test_test_episodes_are_everybodys(metarun):
    """Neither seed, backbone, algorithm's options nor batching change the test episodes."""
    first = metarun.run("name=a")["test"]["episodes_sha256"]
    other = metarun.run("name=b", "seed=5", "algo.distance=cosine", "eval.tasks=1", "train.steps=2")
    assert other["test"]["episodes_sha256"] == first
    assert metarun.run("name=c", "eval.seed=1")["test"]["episodes_sha256"] != first


def test_test_split_is_sealed_while_training(metarun, monkeypatch):
    """The test split is opened once, after training, and could not have been before."""
    opened, really_open = [], DataSet.open

    def watched(data: DataSet, split: str):
        if split == "val":
            with pytest.raises(AssertionError, match="sealed"):
                really_open(data, "test")
        opened.append(split)
        return really_open(data, split)

    monkeypatch.setattr(DataSet, "open", watched)
    metarun.run("name=a")
    assert opened == ["val", "val", "train", "test"]  # one episode, to see that all fits together


def test_trained_on_validation_classes_too(metarun):
    """Way 85 is more than the 64 training classes; the last weights are tested."""
    asked = ["sampler.way=85", "sampler.shot=1", "sampler.query=1"]
    assert "train split" in metarun.error(*metarun.data, *QUICK, *asked)
    joined = "train.split=trainval"
    results = metarun.run("name=a", joined, *asked)
    assert results["val"] is None
    assert not any("val/accuracy" in line for line in records(metarun, "a"))
    assert same(weights(metarun, "a", "best"), weights(metarun, "a", "last"))
    again = metarun.run("name=b", "mode=test", "checkpoint=outputs/a/checkpoints/last.pt")
    assert again["test"] == results["test"]
    assert again["train"]["steps"] == 4
    why = metarun.error(*metarun.data, *QUICK, joined, "train.patience=2")
    assert "set train.patience=0" in why
    why = metarun.error("data=sinusoid", "algo=maml", *QUICK[:-3], "tracker=none", joined)
    assert "use train.split=train" in why


def test_mode_test_repeats_the_test(metarun):
    """mode=test on a run's best checkpoint gives that run's test, on each episode."""
    metarun.run("name=a", "train.steps=6")
    best = "checkpoint=outputs/a/checkpoints/best.pt"
    again = metarun.run("name=b", "mode=test", best)
    assert again["test"] == metarun.results("a")["test"]
    episodes = [(metarun.folder / "outputs" / n / "episodes.csv").read_text() for n in "ab"]
    assert episodes[0] == episodes[1]
    assert again["train"]["steps"] == metarun.results("a")["val"]["step"]
    other = metarun.run("name=c", "mode=test", best, "eval.way=5", "eval.shot=2")
    assert (other["test"]["way"], other["test"]["shot"]) == (5, 2)


def test_checkpoint_of_another_model(metarun):
    """A checkpoint that does not fit is refused with what to say instead."""
    metarun.run("name=a")
    test = [*metarun.data, *QUICK, "mode=test", "checkpoint=outputs/a/checkpoints/best.pt"]
    assert metarun.error(*test, "backbone.width=16") == (
        "the checkpoint was trained with backbone.width=8: say the same"
    )
    assert metarun.error(*test, "algo=matching") == (
        "the checkpoint was trained with algo=protonet: say the same"
    )
    assert "do not fit" in metarun.error(*test, "data.grey=false")


def test_nothing_is_overwritten(metarun):
    """A name that is taken is refused; a finished run that is resumed is only shown."""
    metarun.run("name=a")
    folder = metarun.folder / "outputs/a"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    again = [*metarun.data, *QUICK, "name=a", "hydra.run.dir=outputs/a"]
    assert "already holds a run (finished): choose another name=" in metarun.error(*again)
    metarun.main(*again, "resume=auto")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "started with seed=0" in metarun.error(*again, "resume=auto", "seed=1")
    test = [*again, "resume=auto", "mode=test", "checkpoint=outputs/a/checkpoints/best.pt"]
    assert "holds a run with mode=train" in metarun.error(*test)
    (metarun.folder / "outputs/b").mkdir()
    (metarun.folder / "outputs/b/thesis.tex").write_text("precious")
    again[-1] = "hydra.run.dir=outputs/b"
    assert "outputs/b holds other files" in metarun.error(*again)


def test_a_finished_run_on_other_data_is_not_done(metarun, pictures):
    """Its results are not those of the data that is asked for."""
    metarun.run("name=a")
    others = metarun.folder / "others"
    shutil.copytree(pictures, others)
    shutil.rmtree(others / "test/test00")
    again = [*metarun.data, *QUICK, "hydra.run.dir=outputs/a", "name=a", "resume=auto"]
    before = metarun.results("a")
    assert "the data has changed" in metarun.error(*again, f"data.root={others}")
    metarun.main(*again)
    assert metarun.results("a") == before


def took_longer(metarun, name):
    """As if the run had taken an hour more."""
    results = metarun.results(name)
    results["seconds"] += 3600
    results["cpu_seconds"] += 3600
    runfolder.write_json(metarun.folder / "outputs" / name / "results.json", results)


def test_trained_longer(metarun):
    """A finished run goes on when more steps are asked for, as if it had been asked at once."""
    metarun.run("name=a", "train.steps=8")
    metarun.run("name=b", "train.steps=4")
    folder = metarun.folder / "outputs/b"
    shorter = [(folder / name).read_text() for name in ("results.json", "episodes.csv")]
    metarun.run("name=b", "train.steps=8", "resume=auto")
    put_by = [(folder / name).read_text() for name in ("results.1.json", "episodes.1.csv")]
    assert put_by == shorter
    assert same(weights(metarun, "a"), weights(metarun, "b"))
    assert metarun.results("a")["test"] == metarun.results("b")["test"]
    assert records(metarun, "a") == records(metarun, "b")


def test_fewer_steps_than_were_done(metarun):
    """The model would be of more steps than its config says."""
    metarun.run("name=a", "train.steps=4")
    again = [*metarun.data, *QUICK, "hydra.run.dir=outputs/a", "name=a", "resume=auto"]
    before = metarun.results("a")
    said = metarun.error(*again, "train.steps=3")
    assert "has done 4 steps, and train.steps=3: give 4 or more" in said
    assert metarun.results("a") == before


@pytest.mark.drawing  # so that each takes more than the tenth of a second that is told
def test_the_time_is_that_of_all_processes(metarun):
    """Of one that ended well, of one that was stopped, and of the last one."""
    metarun.run("name=a")
    took_longer(metarun, "a")
    broken = [*metarun.data, *QUICK, "hydra.run.dir=outputs/a", "train.steps=6", "resume=auto"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "test", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            metarun.main(*broken)
    failed = metarun.results("a")
    assert failed["seconds"] > 3600
    metarun.main(*broken)
    assert metarun.results("a")["seconds"] > failed["seconds"]
    assert metarun.results("a")["cpu_seconds"] > failed["cpu_seconds"] > 3600
    assert "wall time      1:0" in metarun.capsys.readouterr().out


def test_more_test_episodes(metarun):
    """A finished run that is asked for more test episodes is tested again, not trained."""
    metarun.run("name=a")
    before = weights(metarun, "a")
    trained = metarun.results("a")["train"]
    results = metarun.run("name=a", "eval.episodes=12", "eval.tasks=3", "resume=auto")
    assert results["test"]["episodes"] == 12
    assert results["train"] == trained
    assert same(weights(metarun, "a"), before)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_episodes_at_once_change_nothing(metarun, mode):
    """Not even when batch norm uses the batch's own statistics, which are each task's own."""
    one, four = (
        metarun.run(f"name={n}", f"eval.tasks={n}", f"backbone.batch_norm={mode}", "optim.lr=0.01")
        for n in (1, 4)
    )
    assert one["test"]["accuracy"] == four["test"]["accuracy"]
    assert one["test"]["batch_norm"] == mode


def test_steps_0_only_tests(metarun):
    """train.steps=0 tests the weights as they were drawn."""
    results = metarun.run("name=a", "train.steps=0", "schedule=cosine")
    assert results["status"] == "finished"
    assert results["train"]["steps"] == 0
    assert results["train"]["peak_memory_mib"] is None
    assert results["val"] is None


def test_loss_that_is_not_finite(metarun):
    """The step is named, the status says failed, and the last good checkpoint is there."""
    broken = [*metarun.data, *QUICK, "hydra.run.dir=outputs/a", "train.steps=50"]
    said = metarun.error(*broken, "optim=sgd", "optim.lr=1e30", "train.val_every=1")
    assert said.startswith("the loss is ")
    step = int(said.split("at step ")[1].split(":")[0])
    assert metarun.results("a")["status"] == "failed"
    assert metarun.results("a")["error"] == said
    for name in ("best", "last"):
        path = metarun.folder / "outputs/a/checkpoints" / f"{name}.pt"
        assert torch.load(path, weights_only=True)["progress"]["step"] < step


def test_a_damaged_checkpoint_is_no_end(metarun):
    """Without it, the run begins anew."""
    metarun.run("name=a")
    again = [*metarun.data, *QUICK, "train.steps=6", "hydra.run.dir=outputs/a", "resume=auto"]
    last = metarun.folder / "outputs/a/checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:100])
    said = metarun.error(*again)
    assert said.endswith("choose another name=, or remove this file to begin anew")
    last.unlink()
    metarun.main(*again)
    assert [line["step"] for line in records(metarun, "a")] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 6]


def arguments(metarun, name: str) -> list[str]:
    """A run of some seconds, as one would type it."""
    return [
        *metarun.data,
        *QUICK,
        *("train.steps=60", "train.val_every=4", "algo.distance=cosine", "train.log_every=2"),
        *(f"name={name}", f"hydra.run.dir=outputs/{name}"),
    ]


def wait_for_checkpoint(metarun, name: str) -> None:
    """Return once the run has saved its first checkpoint."""
    deadline = time.monotonic() + 120
    while not (metarun.folder / "outputs" / name / "checkpoints/last.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_and_resumed(metarun):
    """SIGKILL at a random moment, twice; gone on with, it ends like the run never killed."""
    unbroken = metarun.process(*arguments(metarun, "unbroken"))
    assert unbroken.wait() == 0
    for delay in (random.uniform(0, 0.5), random.uniform(0, 1.5)):
        process = metarun.process(*arguments(metarun, "killed"), "resume=auto")
        wait_for_checkpoint(metarun, "killed")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert metarun.process(*arguments(metarun, "killed"), "resume=auto").wait() == 0
    assert same(weights(metarun, "unbroken"), weights(metarun, "killed"))
    assert same(weights(metarun, "unbroken", "best"), weights(metarun, "killed", "best"))
    assert metarun.results("unbroken")["test"] == metarun.results("killed")["test"]
    assert records(metarun, "unbroken") == records(metarun, "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU])
def test_asked_to_stop(metarun, number):
    """The run saves, says how to go on with it, and going on so ends as if never stopped."""
    process = metarun.process(*arguments(metarun, "a"), "train.steps=100000")
    wait_for_checkpoint(metarun, "a")
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("metarun: stopped at step ")
    assert "resume=auto" in last
    assert metarun.results("a")["status"] == "interrupted"
    step = int(last.split("step ")[1].split(" ")[0])
    checkpoint = metarun.folder / "outputs/a/checkpoints/last.pt"
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == step
    command = shlex.split(last.split("go on with: metarun ")[1])
    going_on = metarun.process(*command, f"train.steps={step + 3}")
    said, _ = going_on.communicate(timeout=120)
    assert f"going on after step {step}" in said
    assert metarun.results("a")["train"]["steps"] == step + 3


@pytest.mark.drawing
def test_a_signal_that_is_lost_while_pictures_are_drawn(metarun, monkeypatch):
    """As in a callback, where what it raises is forgotten: the run stops all the same."""

    def lost(*_):
        with suppress(Interrupted):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trackers, "draw", lost)
    with pytest.raises(SystemExit) as left:
        metarun.run("name=a")
    assert left.value.code == 130
    assert metarun.results("a")["status"] == "interrupted"


def test_saved_by_time_and_killed(metarun):
    """Long before the first validation; what goes on then is as if never killed."""
    slow = ["train.val_every=100000", "train.log_every=7", "train.steps=60"]
    given = arguments(metarun, "a")
    metarun.main(*given, *slow, "train.save_minutes=0")
    process = metarun.process(*arguments(metarun, "b"), *slow, "train.save_minutes=0.00001")
    wait_for_checkpoint(metarun, "b")
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(metarun.folder / "outputs/b/checkpoints/last.pt", weights_only=True)
    assert 0 < step["progress"]["step"] < 60
    assert step["progress"]["episodes"] == step["progress"]["step"]
    metarun.main(*arguments(metarun, "b"), *slow, "resume=auto")
    assert same(weights(metarun, "a"), weights(metarun, "b"))
    assert metarun.results("a")["test"] == metarun.results("b")["test"]
    for key in ("steps", "episodes"):
        assert metarun.results("a")["train"][key] == metarun.results("b")["train"][key]


@pytest.mark.parametrize(
    ("schedule", "longer"),
    [("cosine", "schedule.T_max=4"), ("linear", "schedule.total_iters=4")],
)
def test_a_schedule_that_has_ended(metarun, schedule, longer):
    """It would climb again, or train at a rate of 0; as long as the run it is taken anew."""
    metarun.run("name=a", f"schedule={schedule}")
    common = [*metarun.data, *QUICK, f"schedule={schedule}", "name=a", "hydra.run.dir=outputs/a"]
    said = metarun.error(*common, "train.steps=8", "resume=auto")
    assert said == (
        f"resume=auto: {schedule} falls to 0 at step 4: a longer run needs another name= from the "
        "start, or schedule=constant"
    )
    for given in (["resume=auto"], ["name=b", "hydra.run.dir=outputs/b"]):
        said = metarun.error(*common, "train.steps=8", longer, *given)
        assert said.startswith(f"{schedule} falls to 0 at step 4, and train.steps=8: ")
    assert metarun.run("name=a", f"schedule={schedule}", "resume=auto", "eval.episodes=8")


def test_a_reader_that_leaves(metarun):
    """`metarun | head -1`: the run goes on without one."""
    process = metarun.process(*arguments(metarun, "a"))
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert "Traceback" not in process.stderr.read()
    assert metarun.results("a")["status"] == "finished"


def test_two_runs_at_once_in_one_folder(metarun):
    """The second is refused while the first runs."""
    process = metarun.process(*arguments(metarun, "a"), "train.steps=100000")
    wait_for_checkpoint(metarun, "a")
    said = metarun.error(*arguments(metarun, "a"), "resume=auto")
    process.kill()
    process.wait()
    assert "is in use by another process" in said


def test_an_algorithms_own_measures(metarun):
    """In the results with mean and interval, in the file of episodes, and on the console."""
    maml = ["algo=maml", "sampler.tasks=2", "algo.measured_steps=[0,2]", "algo.test_steps=2"]
    test = metarun.run("name=a", *maml)["test"]
    own = ["accuracy_after_0", "accuracy_after_2"]
    assert list(test["measures"]) == [*own, "macro_f1", "nll", "ece"]
    assert test["measures"]["accuracy_after_2"] == {"mean": test["accuracy"], "ci95": test["ci95"]}
    with open(metarun.folder / "outputs/a/episodes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["accuracy_after_2"] for row in rows] == [row["accuracy"] for row in rows]
    before = statistics.mean(float(row["accuracy_after_0"]) for row in rows)
    assert before == pytest.approx(test["measures"]["accuracy_after_0"]["mean"])
    assert "accuracy after 2" in metarun.capsys.readouterr().out
    assert (test["metric"], test["batch_norm"]) == ("accuracy", "batch")


def test_a_test_may_take_more_inner_steps(metarun):
    """mode=test may change what only a test uses, and nothing else of the model."""
    metarun.run("name=a", "algo=maml", "sampler.tasks=2")
    best = "checkpoint=outputs/a/checkpoints/best.pt"
    again = metarun.run("name=b", "algo=maml", "mode=test", best, "algo.test_steps=5")
    measures = metarun.results("a")["test"]["measures"]
    assert again["test"]["accuracy"] == measures["accuracy_after_5"]["mean"]
    said = metarun.error(*metarun.data, *QUICK, "algo=maml", "mode=test", best, "backbone.width=4")
    assert "the checkpoint was trained with backbone.width=8" in said


@pytest.mark.drawing
@pytest.mark.parametrize("data", ["sinusoid", "harmonics"])
def test_a_regression(metarun, data):
    """The lowest validation error is kept, and the results speak of errors, not of accuracy."""
    metarun.main(
        *(f"data={data}", "algo=maml", "algo.inner_lr=0.01", "train.steps=6", "train.val_every=2"),
        *("eval.episodes=6", "eval.val_episodes=4", "tracker=none", "device=cpu"),
        "hydra.run.dir=outputs/a",
    )
    results, logged = metarun.results("a"), records(metarun, "a")
    assert results["test"]["metric"] == "mse"
    assert "accuracy" not in results["test"]
    vals = [line["val/mse"] for line in logged if "val/mse" in line]
    assert results["val"]["mse"] == min(vals)
    assert logged[-1]["test/mse"] == results["test"]["mse"] > 0
    assert (metarun.folder / "outputs/a/episode.png").exists()
    assert (metarun.folder / "outputs/a/curves.png").exists()
    assert "test mse" in metarun.capsys.readouterr().out


@pytest.mark.parametrize("algo", ["siamese", "mann", "snail", "cnp", "reptile", "mamlpp"])
def test_gone_on_with_equals_unbroken(metarun, algo):
    """Whatever an algorithm draws and remembers in training is in its checkpoint."""
    rate = "schedule.T_max=9" if algo == "mamlpp" else "schedule=constant"  # whatever the steps
    given = [f"algo={algo}", rate, "sampler.tasks=2"]
    given += {"reptile": ["algo.test_steps=2"], "mann": ["backbone=conv4"]}.get(algo, [])
    unbroken = metarun.run("name=a", *given)
    metarun.run("name=b", *given, "train.steps=2")
    gone_on = metarun.run("name=b", *given, "resume=auto")
    assert same(weights(metarun, "a"), weights(metarun, "b"))
    assert unbroken["test"] == gone_on["test"]
    assert gone_on["train"]["steps"] == 4


def test_tasks_computed_in_chunks(metarun):
    """As many at once as chosen, by a run that may go on otherwise: the losses barely move."""
    given = ["algo=maml", "sampler.tasks=5", "train.steps=4"]
    metarun.run("name=a", *given)
    metarun.run("name=b", *given, "sampler.chunk=2", "train.steps=2")
    metarun.run("name=b", *given, "sampler.chunk=3", "resume=auto")
    losses = [
        [line["train/loss"] for line in records(metarun, name) if "train/loss" in line]
        for name in "ab"
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert not same(weights(metarun, "a"), weights(metarun, "b"))  # so chunks there were


def test_chunks_matter_to_training_alone(metarun):
    """What training refuses does not stand in a test's way, nor do chunks of a whole batch."""
    metarun.run("name=a", "sampler.tasks=2", "sampler.chunk=2")
    best = "checkpoint=outputs/a/checkpoints/best.pt"
    metarun.run("name=b", "mode=test", best, "sampler.tasks=2", "sampler.chunk=1")


def test_a_figure_that_is_not_finite(metarun):
    """It is null in results.json, which stays JSON, and is told."""
    metarun.main(
        *("data=sinusoid", "algo=maml", "algo.inner_lr=1e30", "train.steps=0", "tracker=none"),
        *("eval.episodes=4", "device=cpu", "hydra.run.dir=outputs/a"),
    )
    results = (metarun.folder / "outputs/a/results.json").read_text()
    assert "NaN" not in results
    assert "Infinity" not in results
    assert metarun.results("a")["test"]["mse"] is None
    assert "try a smaller algo.inner_lr" in metarun.capsys.readouterr().out


def test_kernels_change_no_more_than_rounding(metarun):
    """And the results say whether they were in use."""
    if library.compiled() is None:
        pytest.skip("the kernels cannot be made here")
    losses = {}
    for asked in ("true", "false"):
        done = metarun.run(f"name={asked}", f"device.compile={asked}", "backbone.width=16")
        assert done["provenance"]["kernels"] == (asked == "true")
        losses[asked] = [r["train/loss"] for r in records(metarun, asked) if "train/loss" in r]
    assert len(losses["true"]) == 4
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)
    metarun.run("name=again", "device.compile=true", "backbone.width=16")
    assert same(weights(metarun, "true"), weights(metarun, "again"))


def test_a_damaged_log_leaves_a_finished_run_finished(metarun):
    """It goes on, tells the line once, and the curves have the other lines."""
    first = metarun.run("name=a", "train.steps=4", "train.log_every=1")
    path = metarun.folder / "outputs/a/metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    number = next(n for n, text in enumerate(lines) if text.startswith(b'{"step": 2, '))
    lines[number] = lines[number].replace(b'"train/loss": ', b'"train/loss": 9')
    path.write_bytes(b"\n".join(lines))
    metarun.capsys.readouterr()
    then = metarun.run("name=a", "train.steps=4", "train.log_every=1", "resume=auto")
    assert then == first, "nothing is left to do"
    more = metarun.run("name=a", "train.steps=5", "train.log_every=1", "resume=auto")
    assert more["status"] == "finished"
    said = metarun.capsys.readouterr().err
    told = f"metarun: outputs/a/metrics.jsonl: left out line {number + 1}, which is damaged"
    assert said.count("damaged") == said.count(told) == 1
    steps = [record["step"] for record in jsonlines.read(path) if "train/loss" in record]
    assert steps == [1, 3, 4, 5]
