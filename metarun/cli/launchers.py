"""What starts the jobs of a sweep: checks of Hydra's launchers before they start anything."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun.configs import rules as schema
from metarun.errors import UserError

# What could make a job run something: no file may set it.
TYPED = ("hydra.launcher.setup", "hydra.launcher.additional_parameters")
LIBRARIES = ("submitit", "joblib", "ray")


def kind(target: str, folder: Path) -> str | None:
    """Which of the committed launchers in `folder` this class is; None for another."""
    for path in folder.glob("*.yaml"):
        if OmegaConf.select(OmegaConf.load(path), "_target_") == target:
            return path.stem
    return None


def check(
    launcher: dict[str, Any], reference: dict[str, Any], kind: str, overrides: list[str]
) -> None:
    """Raise UserError when the jobs cannot be started with these values of `launcher`.

    `reference` is the committed launcher of this kind, with what `overrides` say of TYPED.
    """
    schema.check_values({"hydra": {"launcher": launcher}}, {"hydra": {"launcher": reference}})
    for key in (name.rpartition(".")[2] for name in TYPED):
        if launcher.get(key) != reference.get(key):
            raise UserError(f"hydra.launcher.{key}: it can be given on the command line only")
    for key, value in schema.flat(launcher).items():
        if "\n" in f"{key}{value}":  # in a job's script it would begin another command
            raise UserError(f"hydra.launcher.{key}: it must be one line")
    if launcher.get("n_jobs") == 0:
        raise UserError("hydra.launcher.n_jobs=0: it must be at least 1, or -1 for all cores")
    asked = next((o for o in overrides if o.startswith("hydra/launcher=")), f"launcher {kind}")
    if not is_installed(".".join(launcher["_target_"].split(".")[:2])):
        raise UserError(f"{asked}: it must be installed: pip install 'metarun[{kind}]'")
    if kind == "slurm" and shutil.which("sbatch") is None:
        raise UserError(f"{asked}: there is no sbatch here: start it where SLURM takes jobs")


def is_installed(module: str) -> bool:
    """Whether the module could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even what holds it
        return False


def complaint(error: Exception) -> str | None:
    """What a launcher says went wrong with its jobs, in one line; None for other errors."""
    theirs = type(error).__module__.split(".")[0] in LIBRARIES
    if not (theirs or isinstance(error, ConnectionError)):  # which Ray raises without a cluster
        return None
    text = str(error).split("\nError stream", 1)[0].split("\n---", 1)[0]
    return " ".join(text.split())
