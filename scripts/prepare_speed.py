"""How long miniImageNet takes to prepare in each of its layouts, to open again and to train on.

    python scripts/prepare_speed.py                      every layout, 60,000 pictures, minutes
    python scripts/prepare_speed.py images cache         some of them
    python scripts/prepare_speed.py --pictures 30        a look at everything

The set is made up: 64 / 16 / 20 classes of 600 pictures, 84×84, each a smooth pattern of its class
and itself with noise on it, so that a JPEG file has the size of a photograph's. It is made in a
temporary folder; --folder DIR makes it there, and finds there what was made before. Each layout is
prepared by `metarun mode=prepare` in a process of its own, and opened from the cache by another.
Of the last layout the start on prepared data is measured, as startup.py does, and the speed of
ProtoNet's training, with the split on the device and read from the memory map.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bench_worker import peak_rss
from PIL import Image
from startup import STAGES, one_start

# metarun and torch are imported by the processes that are measured, not by the one that waits: a
# process starts with its parent's memory as its peak.

SIZE = 84
LAYOUTS = {
    "imagenet": "class folders in train/ and CSV files",
    "splits": "class folders in train/, val/ and test/",
    "images": "images/ and CSV files",
    "cache": "mini-imagenet-cache-*.pkl",
    "category": "miniImageNet_category_split_*.pickle",
    "npz": "miniImageNet_category_split_*.npz",
}
TRAINING = ["algo=protonet", "way=5", "shot=5", "query=15", "tracker=none"]
WARM_UP, STEPS = 3, 10  # training steps before the clock starts, and between two looks at it


def main() -> None:
    """The command line."""
    layouts = "\n".join(f"  {name:<10}{text}" for name, text in LAYOUTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nlayouts:\n{layouts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("layouts", nargs="*", metavar="LAYOUT", help="those to prepare")
    parser.add_argument("--pictures", type=int, default=600, help="pictures a class, at most 600")
    parser.add_argument("--folder", type=Path, help="where the set is made, and left")
    parser.add_argument("--make-only", action="store_true", help="make the set and measure nothing")
    parser.add_argument("--seconds", type=float, default=10, help="training to measure")
    arguments = parser.parse_args()
    if unknown := set(arguments.layouts) - set(LAYOUTS):
        parser.error(f"no layout {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        layouts = arguments.layouts or list(LAYOUTS)
        for layout in layouts:
            if not (folder / layout).is_dir():
                ask("make", layout, str(folder), str(arguments.pictures))
        if not arguments.make_only:
            measure(layouts, folder, arguments.seconds)


def measure(layouts: list[str], folder: Path, seconds: float) -> None:
    """Print what each layout takes, and then starting and training on the last one."""
    heads = ("layout", "source MiB", "prepare s", "open s", "peak RSS MiB", "of the program")
    print("{:<10}{:>12}{:>12}{:>12}{:>15}{:>17}".format(*heads))
    for layout in layouts:
        size = sum(path.stat().st_size for path in (folder / layout).rglob("*") if path.is_file())
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            os.environ["METARUN_DATA"] = cache
            first = ask("prepare", str(folder / layout))
            again = ask("reopen", str(folder / layout))
            print(
                f"{layout:<10}{size / 2**20:>12.0f}{first['seconds']:>12.1f}"
                f"{again['seconds']:>12.2f}{first['mib']:>15.0f}{first['program']:>17.0f}",
                flush=True,
            )
            if layout == layouts[-1]:
                start_and_train(folder / layout, seconds)


def start_and_train(root: Path, seconds: float) -> None:
    """Print how long the first step takes on prepared data, and how fast training is."""
    overrides = ["data=miniimagenet", f"data.root={root}", *TRAINING]
    starts = [one_start(overrides) for _ in range(4)][1:]  # the first reads from the disk
    moments = [statistics.median(times) for times in zip(*starts, strict=True)]
    print(f"\nfirst training step on prepared data, {root.name}: seconds, median of {len(starts)}")
    for stage, now, then in zip(STAGES, moments, [0.0, *moments], strict=False):
        print(f"  {stage:<38}{now - then:>6.2f}")
    print(f"  {'all but importing these':<38}{moments[3] - moments[2] + moments[0]:>6.2f}")
    print("\ntraining ProtoNet, one task of 5-way 5-shot, 15 queries, a step; conv4: episodes/s")
    for place, speed in ask("train", str(seconds), *overrides).items():
        print(f"  {place:<38}{speed:>6.1f}")


def ask(*arguments: str) -> dict[str, Any]:
    """What another process of this script answers."""
    command = [sys.executable, __file__, "--within", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(root: str) -> dict[str, float]:
    """Seconds that mode=prepare takes once torch is imported, and the most memory in use."""
    from metarun.cli.main import load_torch
    from metarun.cli.main import main as metarun

    load_torch()
    program = peak_rss()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        sys.argv = ["metarun", "mode=prepare", "data=miniimagenet", f"data.root={root}"]
        metarun()
    return {"seconds": time.perf_counter() - began, "program": program, "mib": peak_rss()}


def reopen(root: str) -> dict[str, float]:
    """Seconds that a run takes to find the source and to open the prepared data."""
    from metarun.data.images import miniimagenet

    began = time.perf_counter()
    miniimagenet.load(root, SIZE)
    return {"seconds": time.perf_counter() - began}


def train(seconds: str, *overrides: str) -> dict[str, float]:
    """Episodes a second, by where the training split's examples are."""
    from hydra import compose, initialize_config_dir

    from metarun.configs.rules import conf_folder
    from metarun.experiment import build_parts
    from metarun.training.loop import Plan, steps

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", list(overrides))
    parts = build_parts(config)
    device = parts.device.torch_device
    parts.training.algorithm.train()
    mapped = replace(parts.data.open("train"), device=device)
    splits = {"memory-mapped, which is all on a CPU": mapped}
    if device.type == "cuda":
        splits = {"memory-mapped": mapped, "on the GPU": mapped.to(device)}
    speeds = {}
    for place, split in splits.items():
        taken = steps(parts.training, Plan(**config.train), parts.sampler, split, parts.device)
        wait(taken, WARM_UP)
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(seconds):
            wait(taken, STEPS)
            done += STEPS * parts.sampler.tasks
        speeds[place] = done / (time.perf_counter() - began)
    return speeds


def wait(taken: Iterator[dict[str, Any]], count: int) -> None:
    """Take that many steps, and wait for the device to have done them."""
    *_, last = islice(taken, count)
    last["loss"].item()


def make(layout: str, folder: str, pictures: str) -> dict[str, float]:
    """Make the set in one of its layouts, in folder/layout."""
    from metarun.data.images.miniimagenet import CLASSES, numbers

    began, root = time.perf_counter(), Path(folder) / layout
    part = root.with_name(f"{layout}.part")
    for split, classes in CLASSES.items():
        ranks = {wnid: numbers(bits)[: int(pictures)] for wnid, bits in classes.items()}
        if layout in ("cache", "category", "npz"):
            part.mkdir(parents=True, exist_ok=True)
            write_arrays(part, layout, split, ranks)
            continue
        for wnid in ranks:
            write_pictures(part, layout, split, wnid, ranks[wnid])
        if layout != "splits":
            with open(part / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([["filename", "label"], *listed(layout, ranks)])
    part.rename(root)
    return {"seconds": time.perf_counter() - began}


def listed(layout: str, ranks: dict[str, list[int]]) -> Iterator[tuple[str, str]]:
    """The rows of a CSV file."""
    for wnid, numbers in ranks.items():
        for number in numbers:
            own = layout == "imagenet"
            yield (f"{wnid}_{number}.JPEG" if own else f"{wnid}{number:08}.jpg"), wnid


def write_pictures(root: Path, layout: str, split: str, wnid: str, numbers: list[int]) -> None:
    """The JPEG files of a class."""
    folder = root / {"imagenet": f"train/{wnid}", "splits": f"{split}/{wnid}"}.get(layout, "images")
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in listed(layout, {wnid: numbers})]
    for name, picture in zip(names, made_up(wnid, len(numbers)), strict=True):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "jpeg", quality=90)
        (folder / name).write_bytes(file.getvalue())


def write_arrays(root: Path, layout: str, split: str, ranks: dict[str, list[int]]) -> None:
    """The file of a split's arrays."""
    sizes = [len(numbers) for numbers in ranks.values()]
    x = np.empty((sum(sizes), SIZE, SIZE, 3), np.uint8)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for label, wnid in enumerate(ranks):
        x[labels == label] = list(made_up(wnid, sizes[label]))
    phase = "train_phase_train" if split == "train" else split
    if layout == "npz":
        np.savez(root / f"miniImageNet_category_split_{phase}.npz", data=x, labels=labels)
        return
    content: dict[str, Any] = {"data": x, "labels": labels.tolist()}
    content["catname2label"] = {wnid: label for label, wnid in enumerate(ranks)}
    name = f"miniImageNet_category_split_{phase}.pickle"
    if layout == "cache":
        rows = {wnid: np.flatnonzero(labels == label) for label, wnid in enumerate(ranks)}
        content = {"image_data": x, "class_dict": {wnid: r.tolist() for wnid, r in rows.items()}}
        name = f"mini-imagenet-cache-{split}.pkl"
    with open(root / name, "wb") as file:
        pickle.dump(content, file, protocol=4)


def made_up(wnid: str, count: int) -> Iterator[np.ndarray]:
    """Pictures of one class, uint8 [84, 84, 3]: the same for the same class every time."""
    random = np.random.default_rng(int(wnid[1:]))
    pattern = random.integers(0, 256, (6, 6, 3))
    noise = random.normal(0, 9, (2 * SIZE, 2 * SIZE, 3))
    for _ in range(count):
        coarse = 0.5 * (pattern + random.integers(0, 256, (6, 6, 3)))
        smooth = Image.fromarray(coarse.astype(np.uint8)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        top, left = random.integers(0, SIZE, 2)
        noisy = np.asarray(smooth) + noise[top : top + SIZE, left : left + SIZE]
        yield noisy.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--within"]:
        answer = {"make": make, "prepare": prepare, "reopen": reopen, "train": train}[sys.argv[2]]
        print(json.dumps(answer(*sys.argv[3:])))
    else:
        main()
