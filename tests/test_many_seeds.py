"""seeds=S: whole runs, each as its single run would be."""

import csv
from types import SimpleNamespace

import pytest
import torch

from metarun import experiment, many_seeds
from metarun.errors import UserError
from metarun.parts import Parts
from metarun.runs import folder as runfolder
from metarun.signals import StopSignals
from metarun.tracking import jsonlines
from metarun.training import loop as train
from metarun.training.stacked import Stacked
from tests.conftest import QUICK
from tests.test_experiment import took_longer

# Plain gradient descent, which blows no rounding up.
PLAIN = ("optim=sgd", "optim.lr=0.01", "optim.momentum=0")
STEPS = [1, 2, 2, 3, 4, 4, 4]  # of the records: training, validation and test
ALGOS = {
    "protonet": ("algo=protonet", *PLAIN, "backbone.batch_norm=running"),
    "maml": ("algo=maml", *PLAIN, "sampler.tasks=3", "train.clip_norm=0.5"),
}


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def state(metarun, name: str, which: str = "last") -> dict:
    """The content of a checkpoint."""
    path = metarun.folder / "outputs" / name / "checkpoints" / f"{which}.pt"
    return torch.load(path, weights_only=True)


def assert_same_run(metarun, got: str, wanted: str) -> None:
    """What one run left is, to rounding, what another of the same config and seed left."""
    for which in ("last", "best"):
        mine, its = (state(metarun, name, which) for name in (got, wanted))
        torch.testing.assert_close(mine["algorithm"], its["algorithm"], rtol=0, atol=1e-4)
        torch.testing.assert_close(mine["optimizer"], its["optimizer"], rtol=0, atol=1e-4)
        assert mine["schedule"] == its["schedule"]
        assert torch.equal(mine["sampler"], its["sampler"])
        incidental = {"name": "", "resume": "", "train": {}}  # steps: the best may be of before
        assert mine["config"] | incidental == its["config"] | incidental
    mine, its = (metarun.results(name) for name in (got, wanted))
    assert mine["status"] == its["status"] == "finished"
    assert mine["test"]["episodes_sha256"] == its["test"]["episodes_sha256"]
    assert mine["train"]["episodes"] == its["train"]["episodes"]
    assert mine.keys() == its.keys() | {"seeds_at_once"}
    tables = []
    for name in (got, wanted):
        with open(metarun.folder / "outputs" / name / "episodes.csv") as file:
            tables.append([float(row["accuracy"]) for row in csv.DictReader(file)])
    assert tables[0] == pytest.approx(tables[1], abs=1e-9)
    lines = [
        jsonlines.read(metarun.folder / "outputs" / name / "metrics.jsonl")
        for name in (got, wanted)
    ]
    for my_line, its_line in zip(*lines, strict=True):
        assert my_line.keys() == its_line.keys()
        for key in my_line:
            if "per_second" not in key:
                assert my_line[key] == pytest.approx(its_line[key], rel=1e-3), key


@pytest.mark.drawing
@pytest.mark.parametrize("algo", ALGOS)
def test_each_seed_is_its_single_run(metarun, algo):
    """The same files with the same in them."""
    metarun.main(
        *(*metarun.data, *QUICK, *ALGOS[algo]), "seed=3", "seeds=2", "hydra.run.dir=outputs/set"
    )
    metarun.run("name=single", "seed=4", *ALGOS[algo])
    assert_same_run(metarun, "set/seed4", "single")
    of_set, single = (files(metarun.folder / "outputs" / n) for n in ("set/seed4", "single"))
    assert of_set == single == files(metarun.folder / "outputs/set/seed3")
    assert metarun.results("set/seed3")["config"]["seed"] == 3
    overrides = (metarun.folder / "outputs/set/seed4/.hydra/overrides.yaml").read_text()
    assert "- seed=4\n" in overrides
    assert "seeds=" not in overrides


def several(metarun, *overrides: str) -> None:
    """Seeds 0 and 1 in outputs/set, unless told otherwise."""
    given = (*metarun.data, *QUICK, *ALGOS["protonet"], "seeds=2", "hydra.run.dir=outputs/set")
    later = {override.partition("=")[0] for override in overrides}
    metarun.main(*(o for o in given if o.partition("=")[0] not in later), *overrides)


def test_seeds_go_on(metarun):
    """Longer, one by itself and then all, as if it had been asked at once; done ones are let be."""
    several(metarun)
    took_longer(metarun, "set/seed1")
    alone = ("seed=0", "seeds=1", "train.steps=6", "resume=auto", "hydra.run.dir=outputs/set/seed0")
    several(metarun, *alone)
    several(metarun, "train.steps=8", "resume=auto")  # from steps 4 and 6
    assert metarun.results("set/seed1")["seconds"] > 1000
    metarun.run("name=single", "seed=0", *ALGOS["protonet"], "train.steps=8")
    assert_same_run(metarun, "set/seed0", "single")
    folder = metarun.folder / "outputs/set"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    several(metarun, "train.steps=8", "resume=auto", "seeds=3")
    changed = [p for p in before if p.stat().st_mtime_ns != before[p] and p.name != ".lock"]
    assert not changed
    assert metarun.results("set/seed2")["train"]["steps"] == 8


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_tests_that_are_not_finite_are_told(metarun, capsys):
    """As when they are done, so when they are only shown again, and without a warning."""
    task = ("data=sinusoid", "algo=maml", "algo.inner_lr=1e30", "algo.test_steps=3")
    short = ("train.steps=0", "eval.episodes=4", "tracker=none", "device=cpu")
    for _ in range(2):
        metarun.main(*task, *short, "seeds=2", "resume=auto", "hydra.run.dir=outputs/set")
        told = [
            line for line in capsys.readouterr().out.splitlines() if line.endswith("  not a number")
        ]
        assert [line.split("  ")[0] for line in told] == ["seed 0", "seed 1", "mean"]
    assert metarun.results("set/seed0")["test"]["mse"] is None


def test_the_time_is_that_of_the_steps(metarun, monkeypatch):
    """Of each seed, whichever validates or saves meanwhile: here steps take a second."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = clock.monotonic = lambda: clock.now
    monkeypatch.setattr(train, "time", clock)

    def taking(seconds, what):
        def slow(*given, **named):
            clock.now += seconds
            return what(*given, **named)

        return slow

    monkeypatch.setattr(Stacked, "step", taking(1, Stacked.step))
    monkeypatch.setattr(Parts, "score", taking(100, Parts.score))
    monkeypatch.setattr(experiment, "save", taking(10000, experiment.save))
    several(metarun)
    for seed in (0, 1):
        assert metarun.results(f"set/seed{seed}")["train"]["seconds"] == 4
        lines = jsonlines.read(metarun.folder / f"outputs/set/seed{seed}/metrics.jsonl")
        rates = {line.get("train/episodes_per_second") for line in lines} - {None}
        assert rates == {1.0}, "one task a step"


def test_the_mean_has_an_interval_over_seeds():
    """The mean of 0.5 and 0.6 has the deviation 0.05; Student's t of one degree is 12.71."""
    values = {0: 0.5, 1: 0.6}
    results = {
        seed: {"test": {"metric": "accuracy", "accuracy": value, "ci95": 0.01}}
        for seed, value in values.items()
    }
    assert many_seeds.rows(results)["mean"] == "55.00 ± 63.53 %"
    assert many_seeds.rows({0: results[0]})["mean"] == "50.00 %"


def test_no_training(metarun, capsys):
    """Only a test of each seed, with no validation that a search could go by."""
    several(metarun, "train.steps=0")
    assert "mean" in capsys.readouterr().out
    assert metarun.results("set/seed1")["status"] == "finished"


def test_stopped_and_gone_on_with(metarun, monkeypatch, capsys):
    """A signal stops all the seeds after the same step; W&B gets each when it is over."""

    class Stop(StopSignals):
        calls = 0

        def __call__(self) -> bool:
            self.calls += 1
            return self.calls >= 3

    monkeypatch.setattr(many_seeds, "StopSignals", Stop)
    with pytest.raises(SystemExit) as leaving:
        several(metarun)
    monkeypatch.setattr(many_seeds, "StopSignals", StopSignals)
    assert leaving.value.code == 130
    assert "stopped at step 3 of 4; go on with: metarun " in capsys.readouterr().err
    for seed in (0, 1):
        assert metarun.results(f"set/seed{seed}")["status"] == "interrupted"
        assert state(metarun, f"set/seed{seed}")["progress"]["step"] == 3
    several(metarun, "resume=auto", "tracker=wandb", "tracker.mode=offline")
    for seed in (0, 1):
        folder = metarun.folder / f"outputs/set/seed{seed}"
        assert metarun.results(f"set/seed{seed}")["status"] == "finished"
        assert [line["step"] for line in jsonlines.read(folder / "metrics.jsonl")] == STEPS
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


def test_a_seed_that_fails(metarun, monkeypatch):
    """It is told; the others go on."""
    looked_at = []

    def refuse_second(algorithm, step):
        looked_at.append(step)
        if len(looked_at) == 2:
            raise UserError(f"a weight is not finite after step {step}")

    monkeypatch.setattr(train, "refuse_lost_weights", refuse_second)
    given = (*metarun.data, *QUICK, *ALGOS["protonet"], "seeds=3", "hydra.run.dir=outputs/set")
    assert metarun.error(*given) == (
        "seed 1: a weight is not finite after step 2 (2 other seeds are done)"
    )
    statuses = [metarun.results(f"set/seed{seed}")["status"] for seed in range(3)]
    assert statuses == ["finished", "failed", "finished"]
    assert metarun.results("set/seed1")["error"].startswith("a weight is not finite")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["seeds=0"], "seeds=0: it must be at least 1"),
        (["train.patience=3"], "seeds=2: it needs train.patience=0, or seeds=1"),
        (["sampler.chunk=1"], "seeds=2: it needs sampler.chunk=0, or seeds=1"),
        (["device.graph=true"], "seeds=2: it needs device.graph=false, or seeds=1"),
        (["augment=crop_flip"], "seeds=2: it needs augment=none, or seeds=1"),
        (["mode=prepare"], "seeds=2: it needs mode=train, or seeds=1"),
        (["algo=reptile"], "seeds=2: the loss of Reptile cannot be computed for several seeds"),
        (["algo=mamlpp"], "seeds=2: MAMLPlusPlus counts its steps"),
        (["sampler=variable", "way=5"], "seeds=2: tasks of unlike sizes"),
        (["optim._target_=torch.optim.NAdam"], "seeds=2: NAdam may move"),
    ],
)
def test_refusals(metarun, overrides, why):
    """In one line, and nothing is left behind."""
    given = (*metarun.data, *QUICK, "seeds=2", "hydra.run.dir=outputs/set", *overrides)
    assert metarun.error(*given).startswith(why)
    assert not (metarun.folder / "outputs/set").exists()


def test_seeds_that_cannot_be_trained_at_once(metarun):
    """What to type instead stands in the line, and nothing of torch's own words."""
    said = metarun.error(*metarun.data, *QUICK, "seeds=2", "seed=3", "algo=reptile")
    assert said == (
        "seeds=2: the loss of Reptile cannot be computed for several seeds at once: train them one "
        "after another, with -m 'seed=range(3,5)' and without seeds="
    )


def test_other_runs_folders(metarun):
    """A single run's is not taken for that of several seeds, nor the other way round."""
    for folder in ("single", "set/seed1"):
        runfolder.write_json(
            metarun.folder / "outputs" / folder / "results.json", {"status": "finished"}
        )
    given = (*metarun.data, *QUICK)
    for asked, why in {
        ("seeds=2", "hydra.run.dir=outputs/single"): "outputs/single holds other files",
        ("seeds=2", "hydra.run.dir=outputs/set"): "seed1 already holds a run (finished)",
        ("hydra.run.dir=outputs/set",): "outputs/set holds other files",
    }.items():
        assert why in metarun.error(*given, *asked)
