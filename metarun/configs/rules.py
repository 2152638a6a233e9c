"""What a config may say. Works on plain dicts, so that an error is told before torch is loaded.

The committed YAML files are the schema: a key that they do not have does not exist, and a value
has the type of its default there (null stands for text, or for anything in a user's own config).
"""

import difflib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarun.errors import UserError
from metarun.functional.metrics import TWO_CLASSES, named

# What a finished run's results do not depend on.
UNSEEN = [
    *("name", "resume", "seeds", "plugins", "tracker", "data.root", "data.file", "short_steps"),
    *("train.log_every", "train.save_minutes"),
    *("device.name", "device.compile", "device.graph", "sampler.chunk", "algo.checkpoint_steps"),
    *("eval.tasks", "eval.sampler.tasks"),
]

CHOICES = {
    "mode": ("train", "test", "embed", "prepare", "verify"),
    "resume": ("none", "auto"),
    "data.background": ("original", "small1", "small2"),
    "data.crop": ("none", "box"),
    "train.split": ("train", "trainval"),
    "device.precision": ("fp32", "tf32", "bf16"),
    "tracker.mode": ("auto", "online", "offline", "disabled"),
}

LOWEST = {
    "way": 1,
    "shot": 1,
    "query": 1,
    "seed": 0,
    "seeds": 1,
    "sampler.way": 2,
    "sampler.shot": 0,
    "sampler.query": 0,
    "sampler.tasks": 1,
    "sampler.support": 0,
    "sampler.queries": 0,
    "sampler.chunk": 0,
    "sampler.presentations": 1,
    "sampler.most_query": 1,
    "sampler.most_support": 1,
    "sampler.most_of_class": 1,
    "eval.way": 1,
    "eval.shot": 0,
    "eval.query": 0,
    "eval.episodes": 2,
    "eval.val_episodes": 2,
    "eval.seed": 0,
    "eval.tasks": 1,
    "eval.sampler.support": 0,
    "eval.sampler.queries": 0,
    "eval.sampler.most_query": 1,
    "eval.sampler.most_support": 1,
    "eval.sampler.most_of_class": 1,
    "train.steps": 0,
    "train.val_every": 1,
    "train.log_every": 1,
    "train.patience": 0,
    "train.clip_norm": 0,
    "train.save_minutes": 0,
    "data.size": 1,
    "augment.crop.padding": 0,
    "augment.jitter.brightness": 0,
    "augment.jitter.contrast": 0,
    "augment.jitter.saturation": 0,
    "augment.flip.probability": 0,
    "augment.degrees": 0,
    "augment.shear": 0,
    "augment.scale": 0,
    "augment.shift": 0,
    "augment.probability": 0,
    "augment.affine.degrees": 0,
    "augment.affine.shear": 0,
    "augment.affine.scale": 0,
    "augment.affine.shift": 0,
    "augment.affine.probability": 0,
    "augment.elastic.strength": 0,
    "augment.elastic.points": 2,
    "data.noise": 0,
    "data.min_examples": 0,
    "algo.way": 1,
    "algo.inner_lr": 0,
    "algo.inner_steps": 0,
    "algo.test_steps": 0,
    "algo.inner_batch": 1,
    "algo.test_batch": 1,
    "algo.hidden": 1,
    "algo.measured_steps": 0,
    "algo.multi_step_loss_steps": 0,
    "algo.first_order_steps": 0,
    "algo.lowest_lr": 0,
    "algo.shot": 1,
    "algo.width": 1,
    "algo.processing_steps": 1,
    "backbone.width": 1,
    "backbone.widths": 1,
    "backbone.widening": 1,
    "backbone.depth": 1,
    "backbone.heads": 1,
    "backbone.patch": 1,
    "backbone.block_size": 1,
    "backbone.features": 1,
    "optim.lr": 0,
    "optim.weight_decay": 0,
    "schedule.step_size": 1,
    "schedule.gamma": 0,
    "schedule.T_max": 0,
    "schedule.total_iters": 0,
    "schedule.eta_min": 0,
    "hydra.launcher.n_jobs": -1,
    "hydra.launcher.batch_size": 1,
    "hydra.launcher.cpus_per_task": 1,
    "hydra.launcher.timeout_min": 1,
    "hydra.launcher.max_num_timeout": 0,
    "hydra.launcher.signal_delay_s": 1,
    "hydra.launcher.array_parallelism": 1,
    "hydra.launcher.ray.remote.num_cpus": 0,
    "hydra.launcher.ray.remote.num_gpus": 0,
    "hydra.launcher.ray.remote.max_retries": -1,
}

HIGHEST = {
    "seeds": 1_000,
    "train.steps": 1_000_000_000,
    "eval.episodes": 1_000_000,
    "eval.val_episodes": 1_000_000,
    "algo.inner_steps": 100_000,
    "algo.test_steps": 100_000,
    "algo.measured_steps": 100_000,
}
INTEGERS = 2**63 - 1  # what torch holds at most
FLOATS = 3.4e38  # as float32
LONGEST_NAME = 200  # bytes: a folder's has 255 at most, and files beside it are called by it

# Keys that hold the path of a file or folder, and nothing else but null.
PATH = re.compile(
    r"(data(\.sources\.[^.]+)?\.(root|file|split_file)|checkpoint|rerun|to|backbone\.weights)"
)

# What seeds above 1 are trained with.
AT_ONCE = {
    "mode": "train",
    "augment": None,
    "device.graph": False,
    "sampler.chunk": 0,
    "train.patience": 0,
}


def conf_folder() -> Path:
    """The committed configs: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_folders(config_dir: str | None) -> list[Path]:
    """The committed configs, and the user's own in `config_dir`, if there are any."""
    return [conf_folder(), *([Path(config_dir)] if config_dir else [])]


def is_path(key: str) -> bool:
    """Whether the key holds the path of a file or folder: it is taken as it is typed."""
    return PATH.fullmatch(key) is not None


def check_values(config: dict[str, Any], reference: dict[str, Any]) -> None:
    """Raise UserError for a key that `reference`, the committed configs, does not have, a value of
    another type than there, or one out of bounds."""
    committed = flat(reference)
    values = flat(config)
    if isinstance(values.get("name"), int | float):  # a name that reads as a number
        values["name"] = str(values["name"])
    for key, value in values.items():
        if key not in committed:
            raise UserError(f"{key}: there is no such key{nearest(key, committed)}")
        if not fits(value, committed[key]):
            raise UserError(f"{key}={shown(value)}: {wanted(committed[key])} is needed")
        if is_path(key) and not isinstance(value, str | None):
            raise UserError(f"{key}={shown(value)}: a path is needed, in quotes in a file")
        for number in value if isinstance(value, list) else [value]:
            refuse_unusable(key, number)
    for key in committed:
        if key not in values and not any(value.startswith(f"{key}.") for value in values):
            raise UserError(f"{key}: it cannot be left out")
    for key, choices in CHOICES.items():
        if key in values and values[key] not in choices:
            raise UserError(
                f"{key}={shown(values[key])}: choose one of {', '.join(choices)}"
                f"{nearest(str(values[key]), choices)}"
            )
    for key, lowest in LOWEST.items():
        value = values.get(key)
        least = min(value, default=lowest) if isinstance(value, list) else value
        if isinstance(least, int | float) and least < lowest:
            raise UserError(f"{key}={shown(value)}: it must be at least {lowest}")


def refuse_unusable(key: str, number: Any) -> None:
    """Raise UserError for a number that is not finite, or that nothing here can count with."""
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{key}={number}: it must be finite")
    most = FLOATS if isinstance(number, float) else INTEGERS
    if isinstance(number, int | float) and abs(number) > most:
        told = f"{most:,}" if isinstance(most, int) else f"{most:g}"
        raise UserError(f"{key}={number}: it must be at most {told}")
    highest = HIGHEST.get(key)
    if isinstance(number, int | float) and highest is not None and number > highest:
        raise UserError(f"{key}={number}: it must be at most {highest:,}")


def check(config: dict[str, Any], reference: dict[str, Any]) -> None:
    """Raise UserError for what `check_values` refuses, or values that do not suit each other."""
    check_values(config, reference)
    values = flat(config)
    if config.get("seeds", 1) > 1:
        for key, needed in AT_ONCE.items():
            value, spelled = values.get(key, needed), "none" if needed is None else shown(needed)
            if value != needed or any(k.startswith(f"{key}.") for k in values):
                raise UserError(f"seeds={config['seeds']}: it needs {key}={spelled}, or seeds=1")
    steps = config["train"]["steps"]
    if config["mode"] == "train" and (ending := schedule_end(config, steps)):
        raise UserError(
            f"{ending}, and train.steps={steps}: leave out its length, which then follows "
            "train.steps, or choose schedule=constant"
        )
    if asked := values.get("eval.metric"):
        way = values["eval.way"]
        if named(asked).of == TWO_CLASSES and way != 2:
            raise UserError(
                f"eval.metric={asked}: it is of two classes, and eval.way={way}: set it to 2"
            )
    name = values["device.name"]
    if not (name in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", name)):
        raise UserError(f"device.name={name}: choose auto, cpu, cuda or cuda:NUMBER")
    if config["mode"] == "test" and not config["checkpoint"]:
        raise UserError("mode=test: say which model, checkpoint=RUN_FOLDER/checkpoints/best.pt")
    if config.get("to") and config["mode"] != "embed":
        raise UserError("to= goes with mode=embed: it says where the features are stored")
    run_name = str(values["name"])
    if "/" in run_name or run_name.strip(". ") == "":
        raise UserError(f"name={run_name}: not a folder's name; hydra.run.dir=DIR sets a path")
    if (length := len(os.fsencode(run_name))) > LONGEST_NAME:
        raise UserError(
            f"name={run_name[:40]}…: {length} bytes are too long: at most {LONGEST_NAME}"
        )
    saved = config["checkpoint"]
    if config["mode"] not in ("test", "embed") and saved:
        raise UserError(
            "checkpoint= goes with mode=test or embed; to go on training, name=NAME resume=auto"
        )
    if saved and Path(str(saved)).expanduser().is_dir():
        raise UserError(f"checkpoint={saved}: it is a folder: give RUN_FOLDER/checkpoints/best.pt")
    if saved and not Path(str(saved)).expanduser().is_file():
        raise UserError(f"checkpoint={saved}: there is no such file")


def schedule_end(config: dict[str, Any], steps: int) -> str | None:
    """What the config's schedule does before `steps` steps are over, after which it would climb
    again or train at a rate of 0; None if it is no such schedule."""
    schedule = config.get("schedule") or {}
    kind = str(schedule.get("_target_", "")).rpartition(".")[2]
    if kind == "CosineAnnealingLR":
        name, last, lowest = "cosine", schedule.get("T_max"), schedule.get("eta_min", 0)
    elif kind == "LinearLR" and not schedule.get("end_factor", 1.0):
        name, last, lowest = "linear", schedule.get("total_iters"), 0
    else:
        return None
    if not isinstance(last, int) or last >= steps:
        return None
    return f"{name} falls to {lowest:g} at step {last}"


def targets(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` in the config, as (key, target), however deep."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_":
                yield f"{prefix}{key}", str(value)
            else:
                yield from targets(value, f"{prefix}{key}.")
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from targets(value, f"{prefix}{i}.")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config as one level of dotted keys; lists and empty groups are values."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def fits(value: Any, default: Any) -> bool:
    """Whether `value` can stand where the committed config has `default`."""
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list) and isinstance(value, list):
        return not default or all(fits(item, default[0]) for item in value)
    if isinstance(default, str) and default.isdecimal():  # a name that happens to be a number
        return isinstance(value, int | str)
    return isinstance(value, type(default))


def wanted(default: Any) -> str:
    """The kind of value that `default` is, in words."""
    if isinstance(default, list):
        return f"a list of {wanted(default[0]).split(' ', 1)[1]}s" if default else "a list"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return next((word for kind, word in kinds.items() if isinstance(default, kind)), "a group")


def nearest(word: str, words: Any) -> str:
    """ ", did you mean …?" with the most similar other of `words`, or nothing."""
    words = [other for other in words if other != word and not other.endswith("_target_")]
    group, dot, last = word.rpartition(".")
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    if not found:  # the right last part in the wrong group
        found = [other for other in words if other.rpartition(".")[2] == last][:1]
    if not found:  # in its group, whose name would make all of its keys alike
        lasts = [w.rpartition(".")[2] for w in words if w.rpartition(".")[0] == group]
        found = [f"{group}{dot}{near}" for near in difflib.get_close_matches(last, lasts, n=1)]
    return f", did you mean {found[0]}?" if found else ""


def shown(value: Any) -> str:
    """The value as one would type it."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{shown(item)}' for key, item in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
