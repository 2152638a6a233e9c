"""Saving what a run needs to go on, and reading it back without executing anything."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun import files, ranks
from metarun.configs.differences import differences
from metarun.configs.rules import schedule_end
from metarun.errors import DataChanged, UserError
from metarun.interfaces import Algorithm
from metarun.training.loop import Progress, Training

FORMAT = 4

SEAL = b"metarun sha256 "  # begins the archive's comment, which ends with the digest, hex
CHUNK = 2**20  # bytes that are read at once

# What may differ between an interrupted run and the one that goes on with it.
INCIDENTAL = [
    *("name", "resume", "seeds", "checkpoint", "mode", "plugins", "tracker", "short_steps"),
    *("data.root", "data.file"),
    *("device.name", "device.deterministic", "device.compile", "device.graph"),
    *("sampler.chunk", "algo.checkpoint_steps"),
    *("train.steps", "train.log_every", "train.patience", "train.save_minutes"),
    *("eval.episodes", "eval.tasks", "eval.sampler.tasks"),
]

# How an optimiser computes, not what: its device's own choice, whoever saved its state.
HOW = ("foreach", "fused", "capturable")

# What a test may change of the model that was trained.
AT_TEST = [
    *("algo.inner_lr", "algo.test_steps", "algo.test_batch", "algo.transductive"),
    *("algo.measured_steps", "algo.running_statistics", "algo.checkpoint_steps"),
]


class Hashed:
    """Writes to `file` what it is given, and knows its SHA-256 and what the system refused."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:  # which torch tells in other words
            self.error = error
            raise

    def flush(self) -> None:
        """Nothing: who opened the file sees to it."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, text and containers of them) to `path`, atomically, with
    its checksum: torch looks at none when it reads.

    The comment of the zip archive, which torch leaves empty, holds it.
    """
    with files.whole(path) as file:
        hashed = Hashed(file)
        try:
            torch.save({"format": FORMAT, **content}, hashed)  # type: ignore[arg-type]
        except Exception:
            if hashed.error:
                raise hashed.error from None
            raise
        file.seek(-2, os.SEEK_CUR)  # the length of the comment, 0 so far
        file.write(seal(hashed.digest.hexdigest()))


def seal(digest: str) -> bytes:
    """The end of an archive with this digest before it was sealed: a comment and its length."""
    comment = SEAL + digest.encode()
    return len(comment).to_bytes(2, "little") + comment


def is_whole(file: BinaryIO) -> bool:
    """Whether the checkpoint is sealed, and as it was then: every bit counts."""
    length = file.seek(0, os.SEEK_END) - len(seal(64 * "0"))
    if length < 0:
        return False
    file.seek(0)
    digest, left = hashlib.sha256(), length
    while left:
        part = file.read(min(left, CHUNK))
        digest.update(part)
        left -= len(part)
    digest.update(b"\0\0")
    return file.read() == seal(digest.hexdigest())


def load(path: Path, instead: str = "give RUN_FOLDER/checkpoints/best.pt") -> dict[str, Any]:
    """The content of the checkpoint at `path`, on the CPU.

    Raises UserError if it is not one, or not as it was saved, with what to do `instead`.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    content = None
    try:
        with open(path, "rb") as file:
            if is_whole(file):
                file.seek(0)
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # what torch raises for a file of another kind depends on its bytes
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path}: damaged, or not a checkpoint of this metarun; {instead}"
        )
    return content


def to_start_from(
    config: dict[str, Any], folder: Path, earlier: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The checkpoint that the run in `folder` starts from, if any, once it is known to suit the
    config; `earlier` is what results.json says of the run so far."""
    last = folder / "checkpoints" / "last.pt"
    if config["mode"] == "test":
        path = Path(str(config["checkpoint"])).expanduser()
        content = load(path)
        with understood(f"checkpoint {path}"):
            refuse_another_model(content, config)
            progress_of(content)
        return content
    if earlier and last.exists():
        content = load(last, "choose another name=, or remove this file to begin anew")
        with understood(f"checkpoint {last}"):
            refuse_another_run(content, config)
            now = progress_of(content)
        if (theirs := content.get("run")) and theirs != earlier.get("run_id"):
            raise UserError(
                f"resume=auto: {last} is of another run than results.json beside it: put the run's "
                "own back, or choose another name="
            )
        split = config["train"]["split"]
        step = chosen_step(now.step, now.best_step, split)
        # On "trainval" an unfinished training may have kept no weights yet.
        if step and (split == "train" or now.step == config["train"]["steps"]):
            best_of(folder, step, content, may_be_later=True)
        return content
    return None


def progress_of(content: dict[str, Any]) -> Progress:
    """How far the training of a saved state had come. Raises TypeError for what is none."""
    progress = Progress(**content["progress"])
    for name, begun in asdict(Progress()).items():
        value, kind = getattr(progress, name), type(begun)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise TypeError(f"{name}={value}")
    return progress


@contextmanager
def understood(told: str) -> Iterator[None]:
    """Raises UserError, with what is `told`, for a state that lacks parts or has others in their
    place, where this block uses it."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(f"{told}: damaged, or not a checkpoint of this metarun") from error


def keep(
    training: Training, config: dict[str, Any], data_checksum: str, folder: Path, best: bool
) -> None:
    """Save the state of the training in `folder`/last.pt, and if it is the best one in best.pt; of
    several ranks the first does."""
    if ranks.rank():
        return
    content = state(training, config, data_checksum)
    # The best first: last.pt never speaks of a best.pt that is not there yet.
    for name in ["best", "last"] if best else ["last"]:
        save(folder / f"{name}.pt", content)


def chosen_step(step: int, best_step: int, split: str) -> int:
    """After which step the weights were those that are tested, of a training that has taken `step`
    steps; 0 if none have been kept. On "trainval" nothing is validated, and the last are."""
    return best_step if split == "train" else step


def take_best(training: Training, split: str, data_checksum: str, folder: Path) -> None:
    """Give the algorithm the best weights of this training, kept in the run's folder; after
    train.steps=0 there are none. `split` is what it was trained on.

    Raises UserError if they are missing, or not those that this training kept.
    """
    now = training.progress
    step = chosen_step(now.step, now.best_step, split)
    own = {"run": training.run, "data_checksum": data_checksum}
    best = ranks.from_first(lambda: best_of(folder, step, own)["algorithm"] if step else {})
    path = folder / "checkpoints" / "best.pt"
    if step:
        with understood(f"checkpoint {path}"):
            training.algorithm.load_state_dict(best)
        refuse_what_was_not_trained(training.algorithm, path)


def best_of(
    folder: Path, step: int, own: dict[str, Any], may_be_later: bool = False
) -> dict[str, Any]:
    """The content of the run's best.pt; UserError unless it was kept after this step, by the run
    and on the data that `own` tells, as a checkpoint does.

    It `may_be_later` of a run that was killed between best.pt and last.pt, and does both again.
    """
    path = folder / "checkpoints" / "best.pt"
    instead = "put the run's own back, or choose another name= to train anew"
    if not path.exists():
        raise UserError(f"{path} is missing, which has the weights of step {step}: {instead}")
    best = load(path, instead)
    with understood(f"checkpoint {path}"):
        kept, _ = progress_of(best).step, best["algorithm"]
    if best.get("run", "") != own.get("run", ""):
        raise UserError(f"{path} is of another run: {instead}")
    if best.get("data_checksum") != own["data_checksum"]:
        raise UserError(f"{path} was trained on other data: {instead}")
    if kept != step and not (may_be_later and kept > step):
        raise UserError(f"{path} is of step {kept}, and the best was step {step}: {instead}")
    return best


def refuse_what_was_not_trained(algorithm: Algorithm, path: Path | str) -> None:
    """Raise UserError if a weight is not finite, with which no training goes on."""
    if not all(bool(p.isfinite().all()) for p in algorithm.parameters()):
        raise UserError(f"{path}: a weight is not finite: the file is damaged, or not metarun's")


def state(training: Training, config: dict[str, Any], data_checksum: str) -> dict[str, Any]:
    """All that decides how training goes on from here."""
    return {
        "algorithm": training.algorithm.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "sampler": training.generator.get_state(),
        "noise": torch.get_rng_state(),
        "cuda_noise": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "progress": asdict(training.progress),
        "config": config,
        "data_checksum": data_checksum,
        "run": training.run,
    }


def refuse_another_run(content: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError when the run asked for is not the one whose state `content` is."""
    if ending := schedule_end(content["config"], config["train"]["steps"]):
        raise UserError(
            f"resume=auto: {ending}: a longer run needs another name= from the start, or "
            "schedule=constant"
        )
    changed = differences(config, content["config"], except_for=INCIDENTAL)
    if renamed := [word for word in changed if is_gone(word.partition("_target_=")[2])]:
        raise UserError(
            f"resume=auto: this run is of a metarun with {' '.join(renamed)}, which this one does "
            "not have: choose another name="
        )
    if changed:
        raise UserError(
            f"resume=auto: this run was started with {' '.join(changed)}: say the same, "
            "or choose another name="
        )
    done, steps = content["progress"]["step"], config["train"]["steps"]
    if steps < done:
        raise UserError(
            f"resume=auto: this run has done {done} steps, and train.steps={steps}: "
            f"give {done} or more, or choose another name="
        )


def is_gone(target: str) -> bool:
    """Whether the class or function is none of this metarun's, though its name says so."""
    module, _, name = target.rpartition(".")
    if not target.startswith("metarun."):
        return False
    try:
        return not hasattr(import_module(module), name)
    except ImportError:
        return True


def refuse_another_model(
    content: dict[str, Any],
    config: dict[str, Any],
    groups: Sequence[str] = ("algo", "backbone"),
) -> None:
    """Raise UserError when `content` is of another algorithm or backbone than the config's, or of
    others of its `groups`."""
    others = [key for key in config | content["config"] if key not in groups]
    changed = differences(config, content["config"], except_for=[*AT_TEST, *others])
    if changed:
        raise UserError(f"the checkpoint was trained with {' '.join(changed)}: say the same")


def refuse_changed_data(then: str, now: str) -> None:
    """Raise DataChanged unless the two checksums of the data are one."""
    if then != now:
        raise DataChanged(
            "resume=auto: the data has changed since this run was started: choose another name=, "
            "or of a table another hydra.sweep.dir="
        )


def restore(training: Training, content: dict[str, Any], data_checksum: str) -> None:
    """Put `training` back where `content`, a saved state, left it.

    Raises DataChanged when the data is not what it was.
    """
    with understood("the checkpoint to go on from"):
        refuse_changed_data(content["data_checksum"], data_checksum)
        training.algorithm.load_state_dict(content["algorithm"])
        training.optimizer.load_state_dict(on_this_device(content["optimizer"], training.optimizer))
        training.schedule.load_state_dict(content["schedule"])
        training.generator.set_state(content["sampler"])
        torch.set_rng_state(content["noise"])
        if content["cuda_noise"] and torch.cuda.device_count() == len(content["cuda_noise"]):
            torch.cuda.set_rng_state_all(content["cuda_noise"])
        training.progress = progress_of(content)
        training.run = content.get("run", "")


def on_this_device(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The saved state of an optimiser, to be gone on with in the way in which this one computes."""
    groups = [
        saved | {key: own[key] for key in HOW if key in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    laid_out = {
        number: {key: like(own, value) for key, value in values.items()}
        for number, own in enumerate(p for group in optimizer.param_groups for p in group["params"])
        if (values := state["state"].get(number)) is not None
    }
    return {**state, "state": laid_out, "param_groups": groups}


def like(parameter: Tensor, value: Any) -> Any:
    """The value laid out in memory as the parameter is, if it is of its shape: fused optimisers
    take that for granted."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def restore_for_test(training: Training, content: dict[str, Any]) -> None:
    """Give `training` the weights of `content`, a saved state, and how far they had been
    trained."""
    with understood("the checkpoint to test"):
        restore_weights(training.algorithm, content)
        training.progress = progress_of(content)


def restore_weights(algorithm: Algorithm, content: dict[str, Any]) -> None:
    """Give `algorithm` the weights of a saved state, for a test. Raises UserError if they differ
    in shape, or are not finite."""
    try:
        algorithm.load_state_dict(content["algorithm"])
    except RuntimeError as error:
        mismatch = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the checkpoint's weights do not fit this data's examples: {mismatch}"
        ) from None
    refuse_what_was_not_trained(algorithm, "checkpoint")
