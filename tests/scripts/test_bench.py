"""The benchmark: its count of useful arithmetic, its workers and its table."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from metarun.backbones.conv4 import Conv4
from metarun.configs.composing import plain
from metarun.parts import build

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import bench  # noqa: E402
import bench_cases  # noqa: E402
from bench_worker import Clock  # noqa: E402

TINY = (6, 8, (2, 16, 16))  # classes, examples of each, shape
TASK = "way=3 shot=2 query=4 sampler.query=4 sampler.tasks=2 device=cpu"


@pytest.fixture
def composed(monkeypatch):
    """The config of a command line on tiny made-up images."""

    def config(line):
        monkeypatch.setitem(bench_cases.IMAGES, "tiny", TINY)
        small = "" if "widths" in line else "backbone.width=4"
        monkeypatch.setitem(bench_cases.CASES, "tiny", ("tiny", f"{line} {TASK} {small}"))
        return bench_cases.composed("tiny", [])

    return config


def counted(work) -> int:
    """The floating-point operations of all convolutions in `work()`."""
    with FlopCounterMode(display=False) as counter:
        work()
    total = counter.get_flop_counts()["Global"]
    return sum(flop for operation, flop in total.items() if "convolution" in str(operation))


RESNET12 = "algo=protonet backbone=resnet12 backbone.widths=[4,6,8,9]"


@pytest.mark.parametrize("line", ["algo=protonet", "algo=matching", "algo=anil", RESNET12])
def test_arithmetic_of_a_step_is_what_torch_counts(composed, line):
    config = composed(line)
    parts = build(plain(config))
    batch = parts.sampler(parts.data.open("train"), parts.training.generator)
    step = counted(lambda: parts.training.algorithm.loss(batch)[0].backward())
    assert step == config.sampler.tasks * bench_cases.flop_per_task(config)


def test_arithmetic_of_a_test_episode_is_what_torch_counts(composed):
    config = composed("algo=protonet mode=test")
    parts = build(plain(config))
    episodes = parts.episodes_of("test", 2)[parts.data.name].batch(slice(0, 2))
    with torch.no_grad():  # whole episodes: work that a test avoids counts as useful
        test = counted(lambda: parts.training.algorithm.predict(episodes))
    assert test == 2 * bench_cases.flop_per_task(config)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("algo", ["maml", "fomaml"])
def test_arithmetic_of_inner_loops_is_what_torch_counts(composed, algo, steps):
    """For one task, written out: torch miscounts the grouped convolutions that vmap makes."""
    config = composed(f"algo={algo} algo.inner_steps={steps}")
    network = Conv4(TINY[2], config.backbone.width, "batch").double()
    support_x, query_x = (torch.randn(3 * n, *TINY[2], dtype=torch.float64) for n in (2, 4))

    def task():
        params = dict(network.named_parameters())
        for _ in range(steps):
            loss = functional_call(network, params, support_x).square().sum()
            second = not config.algo.first_order
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=second)
            params = {n: p - g for (n, p), g in zip(params.items(), grads, strict=True)}
        functional_call(network, params, query_x).square().sum().backward()

    assert counted(task) == bench_cases.flop_per_task(config)


def test_clock_counts_calls_within_calls_once():
    class Sleeper:
        def long(self):
            time.sleep(0.05)
            self.short()

        def short(self):
            time.sleep(0.05)

    sleeper, clock = Sleeper(), Clock(torch.device("cpu"))
    clock.watch(sleeper, "short")
    clock.watch(sleeper, "long")
    start = clock.now()
    sleeper.long()
    time.sleep(0.05)
    spent = clock.now() - start
    assert 0.1 <= clock.taken() <= spent - 0.05
    assert clock.taken() == 0


def start(*arguments):
    """The script as a process."""
    pipe = subprocess.PIPE
    command = [sys.executable, SCRIPTS / "bench.py", "--device", "cpu", *arguments]
    return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def test_worker_speaks_the_protocol_and_nothing_else():
    worker = start("--worker", "mann", "--set", "algo.units=8", "--set", "algo.rows=8")
    out, errors = worker.communicate("run 0.1\nrun 0\n")
    ready, longer, shorter = map(json.loads, out.splitlines())
    assert worker.returncode == 0, errors
    assert ready["ready"] is True
    assert ready["first_step_seconds"] > 0
    assert longer["seconds"] >= 0.1
    assert longer["units"] % 16 == shorter["units"] % 16 == 0  # whole batches of sequences
    assert shorter["units"] > 0
    for answer in (longer, shorter):
        assert 0 < answer["data_seconds"] == answer["outside_seconds"] < answer["seconds"]
        assert answer["peak_mib"] >= 0  # a small one may need no more than the imports took


def test_two_ranks_share_the_tasks_of_a_case():
    small = ["--set", "backbone.width=4", "--set", "sampler.tasks=4"]
    worker = start("--ranks", "2", "--worker", "fomaml-omni", *small)
    out, errors = worker.communicate("run 0.1\n")
    ready, done = map(json.loads, out.splitlines())
    assert worker.returncode == 0, errors
    assert ready["ready"] is True
    assert done["units"] % 4 == 0  # whole meta-batches
    assert done["units"] > 0


def test_a_case_that_ranks_cannot_share_says_why():
    """In the row's words, not in those of torchrun, which reports an end of its own."""
    arguments = ["--ranks", "2", "proto-omni-5w", "--set", "backbone.width=4", "--rounds", "1"]
    out, _ = start(*arguments, "--seconds", "0").communicate()
    assert "not run: 2 ranks share the tasks of a meta-batch" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["proto-omni"], "proto-omni: there is no such case; there are proto-omni-5w, "),
        (["--worker", "proto-omni"], "proto-omni: there is no such case; "),
        (["mann", "--rounds", "0"], "--rounds, --ranks: 1 or more are needed"),
        (["mann", "--ranks", "0"], "--rounds, --ranks: 1 or more are needed"),
        (["mann", "--json", "no/such/file"], "--json no/such/file: there is no such folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    with pytest.raises(SystemExit) as leaving:
        bench.main()
    assert leaving.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"bench.py: {text}")
    assert printed.err.count("\n") == 1


class Done(SimpleNamespace):
    """A worker that has worked."""

    rates = bench.Worker.rates


def worked(*rates, failure=""):
    """A worker of 2 GFLOP per task that did this many tasks in each round's 2 seconds."""
    facts = {"gflop_per_unit": 2.0, "convolutions": ["a", "b"], "first_step_seconds": 1.5}
    rounds = [
        {"units": 2 * rate, "seconds": 2.0, "outside_seconds": 0.5, "peak_mib": 100 + rate}
        for rate in rates
    ]
    return Done(facts=facts, rounds=rounds, failure=failure)


def test_figures_are_medians_over_the_rounds():
    ceiling = {"a": 40.0, "b": 20.0, "matrix product fp32": 1000.0}
    row = bench.figures(ceiling, worked(10, 5, 9), worked(5, 10, 3))
    assert row["tasks_per_second"] == 9
    assert (row["slowest"], row["fastest"]) == (5, 10)
    assert row["gflops"] == 18
    assert row["of_ceiling"] == 18 / 40  # of the network's own convolutions
    assert row["outside"] == 0.25
    assert row["ratio"] == 2  # of 2, 0.5 and 3; that of the medians would be 1.8


def test_a_revision_that_cannot_run_a_case_says_so_in_its_row(capsys):
    ceiling = {"matrix product fp32": 1.0, "matrix product bf16": 2.0, "a": 40.0, "b": 20.0}
    rows = {
        "ours": bench.figures(ceiling, worked(10), worked(failure="no such key")),
        "theirs": bench.figures(ceiling, worked(failure="no such class"), worked(10)),
    }
    machine = {"torch": "2", "device": "CPU", "threads": 1, "processor": "fast"}
    asked = {"vs": "main"}
    bench.show({"machine": machine, "asked": asked, "ceiling": ceiling, "cases": rows})
    ours, theirs = capsys.readouterr().out.splitlines()[-2:]
    assert ours.split()[:2] == ["ours", "10.00"]
    assert ours.endswith("main not run: no such key")
    assert theirs.split() == "theirs not run: no such class".split()
