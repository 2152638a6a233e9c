"""What a run says of itself: the header on the console, and the content of results.json."""

from typing import Any

from metarun.data.store import DataSet
from metarun.device import Device
from metarun.interfaces import Algorithm
from metarun.train import Progress


def header(
    config: dict[str, Any],
    names: dict[str, str],
    data: DataSet,
    algorithm: Algorithm,
    device: Device,
) -> dict[str, str]:
    """What will run, in a few rows."""
    classes = " / ".join(str(len(outline.classes)) for outline in data.outlines.values())
    test, training = config["eval"], config["sampler"]
    rows = {
        "data": f"{names['data']}, {classes} classes (train / val / test)",
        "test task": f"{test['way']}-way {test['shot']}-shot, {test['query']} queries a class, "
        f"{test['episodes']} episodes",
        "algorithm": f"{names['algo']}, {names['backbone']}, {parameters(algorithm):,} parameters",
        "device": str(device),
        "seed": str(config["seed"]),
    }
    if config["mode"] == "train":
        task = ", ".join(f"{key} {value}" for key, value in training.items() if key != "_target_")
        rows["training"] = f"{config['train']['steps']} steps; {task}"
    else:
        rows["checkpoint"] = config["checkpoint"]
    return rows


def parameters(algorithm: Algorithm) -> int:
    """Number of learnt numbers."""
    return sum(p.numel() for p in algorithm.parameters() if p.requires_grad)


def batch_norm(algorithm: Algorithm) -> str:
    """Whose statistics batch norm uses in a test: "running" (inductive), "batch" (transductive)."""
    modes = {getattr(module, "batch_norm_mode", None) for module in algorithm.modules()} - {None}
    return ", ".join(sorted(map(str, modes))) or "none"


def data_facts(data: DataSet) -> dict[str, Any]:
    """Which data this was, exactly."""
    return {
        "name": data.name,
        "checksum": data.checksum,
        "classes": {split: len(outline.classes) for split, outline in data.outlines.items()},
        "examples": {split: int(outline.first_row[-1]) for split, outline in data.outlines.items()},
    }


def training_facts(progress: Progress) -> dict[str, Any]:
    """How the tested model was trained and chosen: the `train` and `val` parts of the results."""
    seconds = progress.seconds
    return {
        "train": {
            "steps": progress.step,
            "episodes": progress.episodes,
            "seconds": round(seconds, 2),
            "episodes_per_second": progress.episodes / seconds if seconds else None,
        },
        "val": {
            "accuracy": progress.best_accuracy,
            "ci95": progress.best_ci95,
            "step": progress.best_step,
        }
        if progress.best_step
        else None,
    }
