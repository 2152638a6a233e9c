"""Where a number comes from: code, versions, machine, command."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import metarun
from metarun import ranks
from metarun.kernels import library

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb", "pillow")


def provenance(device: torch.device) -> dict[str, object]:
    """What a run was made with and on, as plain JSON values."""
    return {
        "metarun": metarun.__version__,
        "revision": revision(),
        "command": shlex.join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": library.in_use is not None,
        "ranks": ranks.size(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def revision() -> str | None:
    """The git commit that this code was checked out from, "+" if changed since; None if unknown."""
    folder = Path(metarun.__file__).parents[1]
    if not (folder / ".git").exists():  # installed from a wheel
        return None
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def installed(package: str) -> str | None:
    """The package's version, None without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
