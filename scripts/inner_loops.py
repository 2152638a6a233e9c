"""What inner loops cost: MAML's tasks per second and peak memory against steps and tasks.

`python scripts/inner_loops.py` measures first and second order on made-up 28×28 images (conv4 of
width 64 with strides, 5-way 1-shot, one query a class) and prints a Markdown table. Each case runs
in a process of its own, so that its peak memory is its own; that of the process before the first
step is taken off.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from statistics import median

STEPS, TASKS, ROUNDS = (1, 2, 5, 10), (4, 16, 32), 3


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="one case as JSON: steps, tasks, first_order, threads")
    parser.add_argument(
        "--threads", type=int, default=None, help="of torch; default: its own choice"
    )
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**json.loads(arguments.case))))
        return
    print("| tasks | inner steps | first order | | second order | |\n|---|---|---|---|---|---|")
    for tasks, steps in itertools.product(TASKS, STEPS):
        cells = []
        for first_order in (True, False):
            case = {"steps": steps, "tasks": tasks, "first_order": first_order}
            case["threads"] = arguments.threads
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout)
            cells += [f"{figures['tasks_per_second']:.0f} tasks/s", f"{figures['mib']:.0f} MiB"]
        print(f"| {tasks} | {steps} | " + " | ".join(cells) + " |", flush=True)


def measure(steps: int, tasks: int, first_order: bool, threads: int | None) -> dict[str, float]:
    """Median tasks per second of a whole training step, and its peak memory in MiB."""
    import torch

    from metarun.algos.maml import MAML
    from metarun.backbones.conv4 import Conv4
    from metarun.device import choose
    from metarun.episodes import Episodes

    if threads:
        torch.set_num_threads(threads)
    device = choose("auto", "fp32", False).torch_device
    torch.manual_seed(0)
    backbone = Conv4((1, 28, 28), width=64, batch_norm="batch", strides=True)
    algorithm = MAML(backbone, 5, 0.4, steps, steps, first_order, [0]).to(device)
    optimizer = torch.optim.Adam(algorithm.parameters())
    y = torch.arange(5).expand(tasks, 5).to(device)
    support_x, query_x = torch.randn(2, tasks, 5, 1, 28, 28).to(device)
    before, seconds = memory(device), []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        algorithm.loss(Episodes(support_x, y, query_x, y, way=5))[0].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "tasks_per_second": tasks / median(seconds[1:]),
        "mib": memory(device) - before,
    }


def memory(device) -> float:  # type: ignore[no-untyped-def]  # torch is not loaded yet
    """The most memory in use so far, in MiB: of the GPU, or of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
