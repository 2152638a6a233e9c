"""How a training step's time and memory grow with tasks, way, shot, image size and inner steps.

    python scripts/growth.py                                   all curves, some minutes
    python scripts/growth.py maml/tasks maml/way               some of them
    python scripts/growth.py protonet --json growth.json       those of an algorithm
    python scripts/growth.py --quick                           a look at everything, on a small net

One factor at a time is varied around a base case, and every case trains for some steps through
`metarun.training.loop.fit`, on made-up images, in a process of its own. Printed are the median time
of a step and the peak memory beyond that of the loaded program, with the exponent of their growth:
the slope of log cost against log factor over the upper half of the values, 1 where cost is linear.
Images are counted in pixels. `--json FILE` keeps the figures beside those of other curves that FILE
has, and growth.png is drawn next to it: the curves, and straight lines through their ends.
"""

import argparse
import json
import math
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from metarun.algos.maml import MAML
from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.data.split import Split, stack_classes
from metarun.device import choose
from metarun.functional.metrics import ACCURACY
from metarun.samplers.uniform import Uniform
from metarun.training.loop import Plan, Progress, Training, fit

STEPS = 5  # the first of them is not timed
WIDTH = 64  # of conv4
PROTONET = {"tasks": 2, "way": 5, "shot": 5, "query": 5, "pixels": 28**2}
MAML_BASE = {"tasks": 4, "way": 5, "shot": 1, "query": 1, "pixels": 28**2, "inner_steps": 1}
SIZES = [28**2, 42**2, 56**2, 84**2]
MAML_FACTORS = {
    "tasks": [2, 4, 8, 16, 32],
    "way": [5, 10, 20, 40],
    "shot": [1, 2, 5, 10],
    "pixels": SIZES,
    "inner_steps": [1, 2, 5, 10],
}
# Of each algorithm the base case, and the values of each factor.
CURVES: dict[str, tuple[dict[str, int], dict[str, list[int]]]] = {
    "protonet": (
        PROTONET,
        {"tasks": [1, 2, 4, 8, 16], "way": [5, 10, 20, 40], "shot": [1, 5, 10, 20, 40]}
        | {"pixels": SIZES},
    ),
    "maml": (MAML_BASE, MAML_FACTORS),
    "fomaml": (MAML_BASE, MAML_FACTORS),
    "maml-checkpointed": (MAML_BASE, {"inner_steps": MAML_FACTORS["inner_steps"]}),
}
COSTS = {"seconds": "seconds a step", "mib": "peak memory, MiB"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [f"{algo}/{factor}" for algo, (_, factors) in CURVES.items() for factor in factors]
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=f"of: {', '.join(names)}")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="two values each, of a net of width 8")
    parser.add_argument("--json", type=Path, default="growth.json", help="file for the figures")
    arguments = parser.parse_args()
    unknown = [c for c in arguments.curves if c not in names and c not in CURVES]
    if unknown:
        parser.error(f"no such curve: {', '.join(unknown)}; choose of {', '.join(names)}")
    wanted = arguments.curves or names
    chosen = [name for name in names if name in wanted or name.split("/")[0] in wanted]

    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    known = (
        json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    )
    # Forked off a process that has loaded torch and done nothing: fresh, and quick to start.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch._dynamo", "__main__"])
    with processes.Pool(1, maxtasksperchild=1) as pool:
        for name in chosen:
            algo, factor = name.split("/")
            base, factors = CURVES[algo]
            values = factors[factor][: 2 if arguments.quick else None]
            width = 8 if arguments.quick else WIDTH
            cases = [
                {"algo": algo, "width": width, "device": arguments.device, **base, factor: value}
                for value in values
            ]
            figures = pool.map(measure, cases, chunksize=1)
            costs = {cost: [f[cost] for f in figures] for cost in COSTS}
            exponents = {cost: exponent(values, costs[cost]) for cost in COSTS}
            known[name] = {"values": values, "base": base, **costs, "exponents": exponents}
            print(table(name, known[name]), flush=True)
            arguments.json.write_text(json.dumps(known, indent=2), encoding="utf-8")
    draw(known, arguments.json.with_name("growth.png"))


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Median seconds of a training step, and peak MiB beyond what there was before the first."""
    device = choose(case["device"], "fp32", deterministic=False)
    side = math.isqrt(case["pixels"])
    split = made_up(case["way"], case["shot"] + case["query"], (1, side, side))
    torch.manual_seed(0)
    algorithm = algorithm_of(case, split.input_shape).to(device.torch_device)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    training = Training(
        algorithm, optimizer, schedule, torch.Generator().manual_seed(0), Progress()
    )
    device.watch_memory()
    before = device.peak_memory()
    records = fit(
        training,
        Plan(steps=STEPS, val_every=STEPS, log_every=1, patience=0, clip_norm=0.0, split="train"),
        Uniform(*(case[key] for key in ("way", "shot", "query", "tasks"))),
        split.to(device.torch_device),
        device,
        metric=ACCURACY,
        validate=lambda: (0.0, 0.0),
        save=lambda best: None,
        stop=lambda: False,
    )
    rates = [r["train/episodes_per_second"] for r in records if "train/loss" in r]
    return {
        "seconds": statistics.median(case["tasks"] / rate for rate in rates[1:]),
        "mib": (device.peak_memory() - before) / 2**20,
    }


def algorithm_of(case: dict[str, Any], shape: tuple[int, ...]) -> torch.nn.Module:
    """The algorithm of the case, on the Conv4 of its paper."""
    if case["algo"] == "protonet":
        return ProtoNet(Conv4(shape, case["width"], "running"))
    return MAML(
        Conv4(shape, case["width"], "batch", strides=True),
        case["way"],
        inner_lr=0.01,
        inner_steps=case["inner_steps"],
        test_steps=case["inner_steps"],
        first_order=case["algo"] == "fomaml",
        measured_steps=[],
        checkpoint_steps=case["algo"] == "maml-checkpointed",
    )


def made_up(classes: int, examples: int, shape: tuple[int, ...]) -> Split:
    """Random images, uint8 [classes × examples, *shape]."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (classes, examples, *shape), dtype=torch.uint8, generator=draw)
    return stack_classes(
        "images", {str(c): images[c] for c in range(classes)}, mean=(0.5,), std=(0.25,)
    )


def exponent(values: list[int], costs: list[float]) -> float:
    """Slope of log cost against log value, by least squares over the upper half of the values."""
    upper = slice((len(values) - 1) // 2, None)
    x, y = ([math.log(v) for v in column[upper]] for column in (values, costs))
    return statistics.linear_regression(x, y).slope


def table(name: str, curve: dict[str, Any]) -> str:
    """The curve in Markdown: a row a cost, with its exponent at the end."""
    values = curve["values"]
    head = [name, *(f"{v}" for v in values), "exponent"]
    seconds = ["ms a step", *(f"{1000 * s:.0f}" for s in curve["seconds"])]
    mib = ["peak MiB", *(f"{m:.0f}" for m in curve["mib"])]
    rows = [head, ["---"] * len(head)]
    for cost, row in (("seconds", seconds), ("mib", mib)):
        rows.append([*row, f"{curve['exponents'][cost]:.2f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def draw(curves: dict[str, Any], path: Path) -> None:
    """Every curve against its factor, a straight line through its ends below it."""
    factors = list(dict.fromkeys(name.split("/")[1] for name in curves))
    rows = [(family, cost) for family in ("protonet", "maml") for cost in COSTS]
    figure = Figure(figsize=(2.6 * len(factors), 2.2 * len(rows)), dpi=120, layout="constrained")
    grid = figure.subplots(len(rows), len(factors), squeeze=False)
    for (family, cost), line in zip(rows, grid, strict=True):
        for factor, axes in zip(factors, line, strict=True):
            drawn = {
                algo: curves[f"{algo}/{factor}"]
                for algo in CURVES
                if family in algo and f"{algo}/{factor}" in curves
            }
            if not drawn:
                axes.set_visible(False)
                continue
            for algo, curve in drawn.items():
                x, y = curve["values"], curve[cost]
                axes.plot([x[0], x[-1]], [y[0], y[-1]], color="#cccccc", linewidth=1)
                label = f"{algo}, {curve['exponents'][cost]:.2f}"
                axes.plot(x, y, marker=".", linewidth=1.2, label=label)
            axes.set_xlabel(factor.replace("_", " "), fontsize=8)
            axes.set_ylabel(COSTS[cost], fontsize=8)
            axes.set_ylim(bottom=0)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=6)
    figure.savefig(path)


if __name__ == "__main__":
    main()
