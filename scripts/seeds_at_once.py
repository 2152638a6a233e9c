"""How much faster seeds=S trains than S runs one after another.

    python scripts/seeds_at_once.py                              the cases below, 1 to 16 seeds
    python scripts/seeds_at_once.py --seeds 8 algo=protonet way=20 device.precision=bf16

In one process S trainings take their steps by turns: as in single runs, one after another, and at
once, in alternating rounds. Printed are training steps of all the seeds per second, median of the
rounds, and their ratio with its extremes. Validation and tests, which are the same either way, do
not count. On a GPU the speed-up grows until the seeds fill it; on a CPU there is little to fill,
and large networks are slower at once.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

CASES = {
    "maml, sine curves": "experiment=sinusoid/maml",
    "maml, 5-way 1-shot, width 8": "algo=maml sampler.tasks=4 backbone.width=8",
    "protonet, mlp of 64": "algo=protonet backbone=mlp backbone.widths=[64,64]",
    "protonet, width 8": "algo=protonet backbone.width=8",
    "protonet, width 64": "algo=protonet",
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what metarun is told")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of")
    parser.add_argument("--seconds", type=float, default=0.5, help="about, of each half of a round")
    arguments = parser.parse_args()
    cases = {"as told": " ".join(arguments.overrides)} if arguments.overrides else CASES
    print(f"{'case':<30}{'seeds':>5}{'one by one':>12}{'at once':>10}   ratio")
    for case, line in cases.items():
        for seeds in arguments.seeds:
            one_by_one, at_once = trainings(line.split(), seeds)
            alone, together = rates(one_by_one, at_once, seeds, arguments.rounds, arguments.seconds)
            ratios = [b / a for a, b in zip(alone, together, strict=True)]
            extremes = f"[{min(ratios):.2f} .. {max(ratios):.2f}]"
            print(
                f"{case:<30}{seeds:>5}{median(alone):>12.1f}{median(together):>10.1f}   "
                f"{median(ratios):.2f} {extremes}",
                flush=True,
            )


def rates(
    one_by_one: Callable[[], None],
    at_once: Callable[[], None],
    seeds: int,
    rounds: int,
    seconds: float,
) -> tuple[list[float], list[float]]:
    """Steps of all the seeds per second in each round; of both, after a few that do not count."""
    for _ in range(3):
        one_by_one(), at_once()
    both: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, measured in zip((one_by_one, at_once), both, strict=True):
            began, steps = perf_counter(), 0
            while perf_counter() - began < seconds:
                step()
                steps += seeds
            measured.append(steps / (perf_counter() - began))
    return both


def trainings(overrides: list[str], seeds: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two functions that take a step with each of so many seeds."""
    from hydra import compose, initialize_config_dir

    from metarun import many_seeds
    from metarun.configs.composing import plain
    from metarun.configs.rules import conf_folder
    from metarun.parts import Parts, build, build_training
    from metarun.training.loop import steps
    from metarun.training.stacked import meta_batches

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = plain(compose("config", overrides))
    first = build(config)
    sampler, device, split = first.sampler, first.device, first.training_split()

    def built() -> list[Parts]:
        several = []
        for seed in range(seeds):
            own = {**config, "seed": seed}
            training, _ = build_training(own, first.data, device)
            training.algorithm.train()
            several.append(first._replace(config=own, training=training))
        return several

    plan, wait = first.plan, waiting(device.torch_device)
    single = [steps(parts.training, plan, sampler, split, device) for parts in built()]
    several = built()
    stacked = many_seeds.stacked(several)
    batches = meta_batches(sampler, split, [parts.training.generator for parts in several])

    def one_by_one() -> None:
        for of_seed in single:
            next(of_seed)
        wait()

    def at_once() -> None:
        stacked.step(next(batches))
        wait()

    return one_by_one, at_once


def waiting(device) -> Callable[[], None]:  # type: ignore[no-untyped-def]
    """A function that returns when the device has done all that it was asked to do."""
    import torch

    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


if __name__ == "__main__":
    main()
