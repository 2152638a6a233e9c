"""How fast metarun trains and tests here, and where a training step's time goes.

    python scripts/bench.py                          every case, on the GPU if there is one
    python scripts/bench.py proto-omni-5w --precision bf16 --rounds 5 --json bench.json

Every case runs through `metarun.train.fit` or `metarun.evaluate.answers`, as a run does, on
made-up images of the data set's shape, kept in memory. Cases take turns, round by round, so that a
slow minute of the machine falls on all of them; the figures are medians over the rounds, with the
slowest and fastest round beside them. "outside" is the share of a training step's time that is not
spent in the algorithm's forward pass, the backward pass or the optimiser: drawing and gathering
episodes, the learning-rate schedule, logging.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.data.split import Split, stack_classes
from metarun.device import Device, choose
from metarun.evaluate import answers, fixed_episodes
from metarun.samplers.uniform import Uniform
from metarun.train import Plan, Progress, Training, fit

OMNIGLOT = {"classes": 964, "examples": 20, "shape": (1, 28, 28)}
MINI = {"classes": 64, "examples": 100, "shape": (3, 84, 84)}
CASES: dict[str, dict[str, Any]] = {
    "proto-omni-5w": {"data": OMNIGLOT, "way": 5, "shot": 5, "query": 15},
    "proto-omni-60w": {"data": OMNIGLOT, "way": 60, "shot": 5, "query": 5},
    "proto-mini-5w": {"data": MINI, "way": 5, "shot": 5, "query": 15},
    "eval-proto": {"data": OMNIGLOT, "way": 5, "shot": 1, "query": 15, "episodes": 600},
}


class Clock:
    """Seconds spent in the calls it watches."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = 0.0

    def now(self) -> float:
        """The time, once the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, function: Callable) -> Callable:
        """`function`, with its time added to `seconds`."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds += self.now() - start
            return result

        return watched


class Case:
    """One case, ready to work."""

    def __init__(self, settings: dict[str, Any], device: Device):
        self.settings, self.device = settings, device
        self.split = made_up(**settings["data"]).to(device.torch_device)
        torch.manual_seed(0)
        backbone = Conv4(self.split.input_shape, width=64, batch_norm="running")
        self.algorithm = ProtoNet(backbone).to(device.torch_device)
        self.optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2000, 0.5)
        self.generator = torch.Generator().manual_seed(0)

    def work(self, seconds: float) -> tuple[float, float | None]:
        """Episodes per second and the share outside, over about that long."""
        if "episodes" in self.settings:
            return self.test(), None
        steps, spent, outside = 1, 0.0, 0.0
        while spent < seconds:
            spent, outside = self.train(steps)
            steps = max(steps + 1, int(steps * min(8, 1.2 * seconds / spent)))
        return self.last_steps / spent, outside / spent

    def train(self, steps: int) -> tuple[float, float]:
        """Seconds that `steps` steps took, and those of them outside."""
        task = {key: self.settings[key] for key in ("way", "shot", "query")}
        clock = Clock(self.device.torch_device)
        optimizer = SimpleNamespace(
            step=clock.watch(self.optimizer.step), zero_grad=self.optimizer.zero_grad
        )
        training = Training(self.algorithm, optimizer, self.schedule, self.generator, Progress())
        loss, backward = ProtoNet.loss, torch.Tensor.backward
        ProtoNet.loss, torch.Tensor.backward = clock.watch(loss), clock.watch(backward)
        try:
            start = clock.now()
            for _ in fit(
                training,
                Plan(steps=steps, val_every=steps, log_every=20, patience=0, clip_norm=0.0),
                Uniform(**task, tasks=1),
                self.split,
                self.device,
                metric="accuracy",
                validate=lambda: (0.0, 0.0),
                save=lambda best: None,
                stop=lambda: False,
            ):
                pass
            spent = clock.now() - start
        finally:
            ProtoNet.loss, torch.Tensor.backward = loss, backward
        self.last_steps = steps
        return spent, spent - clock.seconds

    def test(self) -> float:
        """Test episodes per second."""
        task = {key: self.settings[key] for key in ("way", "shot", "query", "episodes")}
        start = time.perf_counter()
        episodes = fixed_episodes(self.split, name="test", seed=0, within=False, **task)
        answers(self.algorithm, episodes, tasks=4, device=self.device)
        return len(episodes) / (time.perf_counter() - start)


def made_up(classes: int, examples: int, shape: tuple[int, ...]) -> Split:
    """Random images, uint8 [classes × examples, *shape]."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[0]
    return stack_classes(
        {
            str(c): torch.randint(
                0, 256, (examples, *shape), dtype=torch.uint8, generator=generator
            )
            for c in range(classes)
        },
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all cases")
    parser.add_argument("--seconds", type=float, default=5, help="of each case in a round")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; choose of {', '.join(CASES)}")

    device = choose(arguments.device, arguments.precision, deterministic=False)
    cases = {name: Case(CASES[name], device) for name in arguments.cases or CASES}
    for case in cases.values():
        case.work(1)  # warm up
    rounds: dict[str, list] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, case in cases.items():
            rounds[name].append(case.work(arguments.seconds))

    print(f"torch {torch.__version__}, {device}, {platform.machine()}")
    print(f"{'case':<16}{'episodes/s':>12}  {'[slowest .. fastest]':<22}outside")
    figures = {}
    for name, results in rounds.items():
        rates = [rate for rate, _ in results]
        shares = [share for _, share in results if share is not None]
        rate, share = statistics.median(rates), statistics.median(shares) if shares else None
        spread = f"[{min(rates):.1f} .. {max(rates):.1f}]"
        outside = "" if share is None else f"{100 * share:.1f} %"
        print(f"{name:<16}{rate:>12.1f}  {spread:<22}{outside}")
        figures[name] = {"episodes_per_second": rate, "rounds": rates, "outside": share}
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": torch.__version__, "device": str(device), "cases": figures}, file)


if __name__ == "__main__":
    main()
