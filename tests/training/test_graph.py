"""All of the recorded step but the recording, which needs a GPU: the "graph" here does the work
itself, in the memory of the recording."""

import pytest
import torch
from torch import nn

from metarun import ranks
from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.samplers.ahead import rows_ahead
from metarun.samplers.uniform import Uniform
from metarun.training.graph import WARM_UP, CapturedStep, obstacle
from metarun.training.step import Step
from tests.algos import tasks

CPU = Device(torch.device("cpu"), "fp32")
SAMPLER = Uniform(way=3, shot=1, query=2, tasks=2)
STEPS = 12
OPTIMIZERS = {  # fused, as on a GPU; rates that float32 holds exactly, as the graph reads them
    "adam": lambda p: torch.optim.Adam(p, lr=2**-7, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2**-7, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=2**-5, momentum=0.9, fused=True),
}


class Eager:
    """As a CUDA graph: its figures are in the same place each time. It keeps what it is given."""

    def __init__(self):
        self.events, self.figures = [], {}

    def warm_up(self, work):
        self.events.append("warm up")
        return work()

    def capture(self, work):
        self.events.append("capture")
        self.work = work

    def replay(self):
        self.events.append("replay")
        for name, value in self.work().items():
            self.figures.setdefault(name, torch.empty_like(value)).copy_(value)
        return self.figures


class Unable(Eager):
    def capture(self, work):
        super().capture(work)
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nMore of it.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def some_split():
    generator = torch.Generator().manual_seed(0)
    return stack_classes(
        "images",
        {
            name: torch.randint(256, (5, 1, 16, 16), dtype=torch.uint8, generator=generator)
            for name in "abcdef"
        },
    )


class Run:
    """Twelve steps of a prototypical network: its figures at each, and what a checkpoint has."""

    def __init__(self, optimizer="adam", graph=None, algorithm=None):
        torch.manual_seed(0)
        self.algorithm = algorithm or ProtoNet(Conv4((1, 16, 16), width=4, batch_norm="running"))
        self.optimizer = OPTIMIZERS[optimizer](self.algorithm.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.5)
        self.places, self.generator = [], torch.Generator().manual_seed(1)
        self.optimizer.register_step_pre_hook(lambda *_: self.note_rate())
        step, split = Step(self.algorithm, self.optimizer, CPU, clip_norm=1.0), some_split()

        def on_rows(rows):
            self.places[-1]["rows"] = rows.data_ptr()
            return step(SAMPLER.batch(split, rows))

        take = CapturedStep(on_rows, self.optimizer, graph) if graph else on_rows
        rows = rows_ahead(SAMPLER, split, self.generator, steps=5)
        self.figures = []
        for _ in range(STEPS):
            self.places.append({})
            self.figures.append(take(next(rows)))
            schedule.step()

    def note_rate(self):
        self.places[-1]["rate"] = self.optimizer.param_groups[0]["lr"]

    def outcome(self):
        state = self.optimizer.state_dict()
        tensors = [t for values in state["state"].values() for t in values.values()]
        return [*self.algorithm.state_dict().values(), *tensors, self.generator.get_state()]


def assert_same(a, b):
    """Bit for bit, at every step and at the end; the optimiser's settings too."""
    for mine, its in zip(a.figures, b.figures, strict=True):
        assert mine == its
    assert all(torch.equal(x, y) for x, y in zip(a.outcome(), b.outcome(), strict=True))
    groups = a.optimizer.state_dict()["param_groups"]
    assert groups == b.optimizer.state_dict()["param_groups"]
    assert isinstance(groups[0]["lr"], float)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_recorded_step_is_the_plain_one(optimizer, capsys):
    graph = Eager()
    assert_same(Run(optimizer, graph), Run(optimizer))
    replays = STEPS - WARM_UP
    assert graph.events == [*["warm up"] * WARM_UP, "capture", *["replay"] * replays]
    assert capsys.readouterr().err == ""


def test_what_changes_is_read_from_one_place():
    """Rows and learning rate, by the recorded steps: a replay could not see them elsewhere."""
    recorded = Run(graph=Eager()).places[WARM_UP:]
    assert len({place["rows"] for place in recorded}) == 1
    assert len({place["rate"].data_ptr() for place in recorded}) == 1
    plain = Run().places
    assert len({place["rows"] for place in plain}) > 5
    assert len({place["rate"] for place in plain}) == STEPS // 2


def test_what_cannot_be_recorded_goes_on_without(capsys):
    graph = Unable()
    assert_same(Run(graph=graph), Run())
    assert graph.events == [*["warm up"] * WARM_UP, "capture"]
    assert capsys.readouterr().err == (
        "metarun: device.graph: the step cannot be recorded (operation not permitted when stream "
        "is capturing): going on without a graph\n"
    )


class Undecided(ProtoNet):
    """Its loss depends on a random number that no recording would draw again."""

    def loss(self, episodes):
        loss, metrics = super().loss(episodes)
        return loss * torch.rand(()), metrics


def test_an_algorithm_that_draws_on_the_cpu_is_not_recorded(capsys):
    graph = Eager()

    def undecided():
        torch.manual_seed(0)
        return Undecided(Conv4((1, 16, 16), width=4, batch_norm="running"))

    assert_same(Run(graph=graph, algorithm=undecided()), Run(algorithm=undecided()))
    assert graph.events == ["warm up"]
    assert "draws random numbers on the CPU: going on without" in capsys.readouterr().err


def test_what_is_known_beforehand(monkeypatch):
    weight = [nn.Parameter(torch.ones(1))]
    fused, plain = torch.optim.Adam(weight, fused=True), torch.optim.Adam(weight)
    assert obstacle(nn.Linear(1, 1), fused) is None
    assert obstacle(nn.Linear(1, 1), plain) == "Adam has no fused form here"
    assert "MAMLPlusPlus does not do the same" in obstacle(tasks.algorithm("mamlpp"), fused)
    monkeypatch.setattr(ranks, "size", lambda: 2)
    assert "ranks exchange" in obstacle(nn.Linear(1, 1), fused)
