"""Two ranks on the CPU give what one process gives, and end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from metarun import ranks
from metarun.data.split import stack_classes
from metarun.errors import UserError
from metarun.runs.rerun import columns
from metarun.samplers.uniform import Uniform
from metarun.samplers.variable import Variable
from metarun.seeds import stream
from metarun.tracking import jsonlines
from metarun.training.share import own_share
from tests.algos.tasks import normal
from tests.conftest import QUICK

SGD = ["optim=sgd", "optim.lr=0.1", "backbone.batch_norm=batch"]  # Adam makes much of rounding
SHARED = {  # three tasks: one rank has two of them
    "maml": ["algo=maml", "sampler.tasks=3", *SGD],
    "anil": ["algo=anil", "sampler.tasks=3", *SGD, "train.clip_norm=0.5"],
    "mamlpp": ["algo=mamlpp", "sampler.tasks=3", *SGD],
    "protonet": ["algo=protonet", "sampler.tasks=3", *SGD],
}
VARIABLE = Variable(5, 2, 0, 0, 3, 20, 8, 0.5, 2.0, "any", tasks=5)
PATIENCE = 240  # seconds, on a machine that does much else

# Runs one command line after another, each with a meeting place of its own, which the first rank
# chooses when it gets there: a port that is free now can be taken a minute later.
RANK = """
import json, os, socket, sys, time
from pathlib import Path
from torch import distributed
from metarun import experiment
from metarun.cli.main import main

experiment.draw_pictures = lambda *given: None

def meeting_place(name):
    told = Path(f"{name}.port")
    if os.environ["RANK"] == "0":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        told.with_suffix(".new").write_text(port)
        told.with_suffix(".new").rename(told)
    while not told.exists():
        time.sleep(0.01)
    return told.read_text()

codes = {}
for name, arguments in json.loads(sys.argv[1]).items():
    os.environ["MASTER_PORT"] = meeting_place(name)
    sys.argv = ["metarun", *arguments]
    try:
        main()
    except SystemExit as leaving:
        codes[name] = leaving.code
        distributed.destroy_process_group()
with open(f"codes{os.environ['RANK']}.json", "w") as file:
    json.dump(codes, file)
"""


def in_two_ranks(folder, lines):
    """Exit codes other than 0 of each of the command lines, and what was said, by rank."""
    processes = []
    for rank in range(2):
        meeting = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        environment = {key: str(value) for key, value in meeting.items()}
        environment["PICTURES"] = os.environ["PICTURES"] if rank == 0 else "nowhere"
        command = [sys.executable, "-c", RANK, json.dumps(lines)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                text=True,
                stderr=subprocess.PIPE,
            )
        )
    said = []
    try:
        for process in processes:
            said.append(process.communicate(timeout=PATIENCE)[1])
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"codes{rank}.json").read_text()) for rank in range(2)], said


def weights(folder, checkpoint="last"):
    path = folder / "checkpoints" / f"{checkpoint}.pt"
    return torch.load(path, weights_only=True)["algorithm"]


def records(folder):
    found, timed = jsonlines.read(folder / "metrics.jsonl"), "train/episodes_per_second"
    return [{k: v for k, v in record.items() if k != timed} for record in found]


def assert_same_run(mine, its):
    """Weights, every record and every test episode agree to rounding."""
    for checkpoint in ("last", "best"):
        for name, tensor in weights(its, checkpoint).items():
            torch.testing.assert_close(weights(mine, checkpoint)[name], tensor, rtol=0, atol=2e-5)
    for one, other in zip(records(mine), records(its), strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    one, other = (columns(folder / "episodes.csv") for folder in (mine, its))
    assert one.keys() == other.keys()
    for name, values in one.items():
        exact = name not in ("nll", "ece")  # which move with every weight
        assert values == (other[name] if exact else pytest.approx(other[name], abs=2e-4))


def test_two_ranks_equal_one_process(metarun, monkeypatch, pictures):
    """And one goes on with a run of two; a mistake on one of them ends both, said once."""
    monkeypatch.setenv("PICTURES", str(pictures))
    outputs = metarun.folder / "outputs"

    def line(name, *overrides):
        folder = [f"name={name}", f"hydra.run.dir=outputs/{name}"]
        return [*metarun.data, *QUICK, *overrides, *folder]

    for name, overrides in SHARED.items():
        metarun.run(f"name={name}", *overrides)
    lines = {name: line(f"{name}_shared", *overrides) for name, overrides in SHARED.items()}
    lines["half"] = line("half", *SHARED["maml"], "train.steps=2")
    metarun.run("name=grown", *SHARED["maml"], "train.steps=2")
    lines["grown"] = line("grown", *SHARED["maml"], "resume=auto")
    lines["tested"] = line("tested", "algo=maml", "mode=test", *SGD)
    lines["tested"].append("checkpoint=outputs/maml/checkpoints/best.pt")
    lines["few"] = line("few", *SHARED["maml"], "sampler.tasks=1")
    lines["taken"] = line("maml", *SHARED["maml"])
    lines["lonely"] = line("lonely", *SHARED["maml"], "data.root=${oc.env:PICTURES}")
    codes, (said, nothing) = in_two_ranks(metarun.folder, lines)

    refused = ["few", "taken", "lonely"]
    assert codes == 2 * [dict.fromkeys(refused, 2)]
    assert "metarun" not in nothing
    found = [line for line in said.splitlines() if line.startswith("metarun: ")]
    expected = ["sampler.tasks=1", "already holds a run", "nowhere"]
    for text, part in zip(found, expected, strict=True):
        assert part in text
    assert {path.name for path in outputs.iterdir()} == {
        *(name for each in SHARED for name in (each, f"{each}_shared")),
        *("half", "grown", "tested"),
    }

    for name in SHARED:
        assert_same_run(outputs / f"{name}_shared", outputs / name)
        assert metarun.results(f"{name}_shared")["provenance"]["ranks"] == 2
    assert metarun.results("tested")["test"] == metarun.results("maml")["test"]
    metarun.run("name=half", *SHARED["maml"], "resume=auto")
    for name in ("half", "grown"):
        assert_same_run(outputs / name, outputs / "maml")


def test_a_signal_to_one_rank_stops_both(metarun):
    """At the same step, from where one process goes on."""
    run = ["name=stopped", "hydra.run.dir=outputs/stopped", "resume=auto"]
    line = [*metarun.data, *QUICK, *SHARED["anil"], "train.val_every=100000", *run]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*torchrun, "--nproc-per-node=2", "-m", "metarun", *line, "train.steps=100000"],
        cwd=metarun.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = metarun.folder / "outputs" / "stopped" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + PATIENCE
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        os.kill(max(map(int, found.stdout.split())), signal.SIGTERM)  # the last to be started
        said = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    (told,) = [text for text in said.splitlines() if text.startswith("metarun: ")]
    assert told.startswith("metarun: stopped at step ")
    assert "go on with: torchrun --nproc-per-node=2 -m metarun " in told
    assert metarun.results("stopped")["status"] == "interrupted"
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    metarun.main(*line, f"train.steps={step + 2}")
    assert metarun.results("stopped")["status"] == "finished"
    steps = [record["step"] for record in records(log.parent) if "train/loss" in record]
    assert steps == list(range(1, step + 3))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("algo=maml eval.val_episodes=2", "eval.val_episodes=2: give each of the 3 ranks at least"),
        (
            "algo=reptile sampler.tasks=2",
            "sampler.tasks=2: set it to 3 or more, or use fewer ranks",
        ),
        ("sampler.tasks=3", "3 ranks: batch norm of mode running .* or use one process"),
        (
            "algo=siamese",
            "and PairSampler draws no tasks: use one process",
        ),
        ("mode=prepare", "mode=prepare is for one process: leave out torchrun"),
        ("-m seed=0,1", "-m is for one process: leave out torchrun"),
        ("table=koch2015", "table= is for one process: leave out torchrun"),
    ],
)
def test_what_ranks_cannot_share(metarun, monkeypatch, typed, said):
    monkeypatch.setattr(ranks, "size", lambda: 3)
    assert re.search(said, metarun.error(*metarun.data, *QUICK, *typed.split()))


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_removes_a_folder(metarun, monkeypatch, rank):
    """Two that did so took it from under each other's hands, now and then."""
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    with pytest.raises(SystemExit) as leaving:
        metarun.main(*metarun.data, *QUICK, "mode=prepare", "hydra.run.dir=outputs/few")
    assert leaving.value.code == 2
    assert (metarun.folder / "outputs/few").exists() == bool(rank)


def one_of(size, rank):
    """What `ranks.group` gives this rank."""
    return SimpleNamespace(get_rank=lambda: rank, get_world_size=lambda: size)


@pytest.mark.parametrize("sampler", [Uniform(3, 1, 2, tasks=5), VARIABLE])
def test_every_rank_draws_the_same_tasks(monkeypatch, sampler):
    """And computes its own of them, whether or not their rows are drawn first."""
    split = stack_classes("vectors", {str(c): normal(12, 4, seed=c) for c in range(6)})
    whole, parts, generators = sampler(split, stream(0, "train")), [], []
    for rank in range(2):
        monkeypatch.setattr(ranks, "group", lambda rank=rank: one_of(2, rank))
        generators.append(stream(0, "train"))
        own, share = own_share(sampler)
        parts.append(own(split, generators[-1]))
        assert (own.tasks, share) == (5, len(parts[-1].query_y) / 5)
    for tensor, *of_ranks in zip(whole[:4], *(part[:4] for part in parts), strict=True):
        assert torch.equal(torch.cat(of_ranks), tensor)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 3), (5, 5), (2, 3), (0, 2)])
def test_shares_are_even_and_leave_nothing_out(monkeypatch, count, size):
    shares = []
    for rank in range(size):
        monkeypatch.setattr(ranks, "group", lambda rank=rank: one_of(size, rank))
        shares.append(range(count)[ranks.share(count)])
    assert list(chain(*shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_others():
    assert (ranks.rank(), ranks.size(), ranks.share(5)) == (0, 1, slice(0, 5))
    assert ranks.gathered("mine") == ["mine"]
    assert ranks.from_first(lambda: 3) == 3
    assert ranks.on_any(True)
    assert not ranks.on_any(False)
    with pytest.raises(UserError, match="mine"), ranks.agreed():
        raise UserError("mine")
