"""Convolutions of many tasks, each with weights of its own: which way is fastest here?

    python scripts/per_task_convolutions.py                on the GPU if there is one
    python scripts/per_task_convolutions.py maml-mini --precision tf32 --json ways.json

These are the convolutions of adapted networks, layer by layer, in the shapes of bench.py's cases
and for a whole meta-batch, as a GPU takes it (a CPU takes big tasks a few at a time): tasks ×
images of a task × pixels, and channels → filters. Each way computes the maps of all tasks
and their gradients by images and by weights. Printed are its milliseconds, the median of rounds in
which the ways take turns, and the useful GFLOP/s of the fastest.

metarun   what training does: the convolution of metarun's backbones under torch.vmap
grouped   torch.vmap of conv2d: one convolution of as many groups as there are tasks
im2col    each pixel's 3×3 patch as a column, and a batched matrix product
apart     one convolution a task; on a GPU the tasks take turns on eight streams
"""

import argparse
import json
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from metarun.backbones.convolution import Conv2d
from metarun.device import Device, choose
from metarun.errors import UserError

STREAMS = 8
Way = Callable[[Tensor, Tensor], Tensor]


class Layer(NamedTuple):
    """A 3×3 convolution of `side` × `side` images, done for every task with its own weights."""

    tasks: int
    images: int
    side: int
    channels: int
    filters: int

    def __str__(self) -> str:
        return "{}×{}×{}²  {} → {}".format(*self)

    @property
    def flop(self) -> int:
        """Of the maps and both gradients; a multiplication with its addition counts as two."""
        return 3 * 2 * 9 * self.side**2 * self.tasks * self.images * self.channels * self.filters


def conv4(tasks: int, images: int, side: int, channels: int, filters: int) -> list[Layer]:
    """The layers of a network that halves its maps after each of four convolutions."""
    depths = [channels, filters, filters, filters]
    return [Layer(tasks, images, side // 2**i, c, filters) for i, c in enumerate(depths)]


CASES = {
    "maml-omni": conv4(32, 75, 28, 1, 64),
    "maml-omni-q1": conv4(32, 5, 28, 1, 64),
    "maml-mini": conv4(4, 75, 84, 3, 32),
}


def metarun(x: Tensor, weight: Tensor) -> Tensor:
    """Maps [T, N, F, H, W] of images [T, N, C, H, W] by weights [T, F, C, 3, 3], as all ways."""
    layer = without_weights(*weight.shape[1:3])
    return torch.vmap(lambda x, weight: functional_call(layer, {"weight": weight}, x))(x, weight)


@cache
def without_weights(filters: int, channels: int) -> Conv2d:
    """The layer, whose weights are given in each call."""
    return Conv2d(channels, filters, 3, padding=1, bias=False, device="meta")


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    return torch.vmap(lambda x, weight: F.conv2d(x, weight, padding=1))(x, weight)


def im2col(x: Tensor, weight: Tensor) -> Tensor:
    *_, height, width = x.shape
    x = F.pad(x.transpose(1, 2), (1, 1, 1, 1))
    taps = [x[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = torch.stack(taps, dim=2)  # [T, C, 9, N, H, W]
    maps = weight.flatten(2) @ patches.flatten(1, 2).flatten(2)
    return maps.unflatten(2, patches.shape[3:]).transpose(1, 2)


def apart(x: Tensor, weight: Tensor) -> Tensor:
    if not x.is_cuda:
        return torch.stack([F.conv2d(*task, padding=1) for task in zip(x, weight, strict=True)])
    main = torch.cuda.current_stream()
    maps = []
    for i, (of_task, its_weight) in enumerate(zip(x, weight, strict=True)):
        stream = streams()[i % STREAMS]
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            maps.append(F.conv2d(of_task, its_weight, padding=1))
    for stream in streams():
        main.wait_stream(stream)
    for each in maps:
        each.record_stream(main)
    return torch.stack(maps)


@cache
def streams() -> list[torch.cuda.Stream]:
    """Those of the GPU that the tasks take turns on."""
    return [torch.cuda.Stream() for _ in range(STREAMS)]


WAYS = (metarun, grouped, im2col, apart)


def maps_and_gradients(way: Way, x: Tensor, weight: Tensor) -> list[Tensor]:
    """The maps, and the gradients of half the sum of their squares by images and by weights."""
    maps = way(x, weight)
    return [maps, *torch.autograd.grad(maps, (x, weight), maps.detach())]


def measure(layer: Layer, device: Device, rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds of each way."""
    draw = torch.Generator().manual_seed(0)
    tasks, images, side, channels, filters = layer
    x = torch.randn(tasks, images, channels, side, side, generator=draw)
    weight = torch.randn(tasks, filters, channels, 3, 3, generator=draw) / (3 * channels**0.5)
    x, weight = (t.to(device.torch_device).requires_grad_() for t in (x, weight))
    timers = {
        way.__name__: Timer(
            "maps_and_gradients(way, x, weight)",
            globals={**globals(), "way": way, "x": x, "weight": weight},
            num_threads=torch.get_num_threads(),
        )
        for way in WAYS
    }
    taken = [
        {name: timer.blocked_autorange(min_run_time=seconds).median for name, timer in turn}
        for turn in repeat(list(timers.items()), rounds)
    ]
    return {name: median(each[name] for each in taken) for name in timers}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(CASES)}")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--precision", default="fp32", choices=["fp32", "tf32"])
    add("--rounds", type=int, default=3, help="over the ways of a layer (default: 3)")
    add("--seconds", type=float, default=0.3, help="of each turn (default: 0.3)")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()
    if unknown := [case for case in arguments.cases if case not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds: give at least 1, and --seconds more than 0")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    try:
        device = choose(arguments.device, arguments.precision, deterministic=False)
    except UserError as error:
        parser.error(str(error))

    print(f"torch {torch.__version__} on {device}; milliseconds\n")
    names = [way.__name__ for way in WAYS]
    print(f"{'':<36}" + "".join(f"{heading:>9}" for heading in [*names, "GFLOP/s"]))
    figures = []
    for case in arguments.cases or CASES:
        for layer in CASES[case]:
            seconds = measure(layer, device, arguments.rounds, arguments.seconds)
            gflops = layer.flop / min(seconds.values()) / 1e9
            figures.append({"case": case, **layer._asdict(), "seconds": seconds, "gflops": gflops})
            cells = "".join(f"{1000 * seconds[name]:>9.2f}" for name in names)
            print(f"{case:<14}{layer!s:<22}{cells}{gflops:>9.0f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
