"""Where, and how precisely, to compute."""

import ctypes
import os
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from metarun import ranks
from metarun.errors import UserError
from metarun.kernels import library


@dataclass(frozen=True)
class Device:
    """A place to compute, the precision of the network there, and whether training records its
    step as a CUDA graph."""

    torch_device: torch.device
    precision: str
    graph: bool = False

    def autocast(self) -> AbstractContextManager:
        """The context that networks run in: bfloat16 if asked for."""
        return torch.autocast(
            self.torch_device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )

    def watch_memory(self) -> None:
        """Begin to watch how much memory is used, where that can be begun: on a GPU."""
        if self.torch_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_memory(self) -> int:
        """The most memory in use so far, bytes: by tensors on the GPU since `watch_memory`, or on
        the CPU by the process since it began, with all that it has loaded."""
        if self.torch_device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.torch_device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def __str__(self) -> str:
        if self.torch_device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.torch_device)}, {self.precision}"
        kernels = ", kernels in C" if library.in_use else ""
        return f"CPU, {torch.get_num_threads()} threads, {self.precision}{kernels}"


def choose(
    name: str, precision: str, deterministic: bool, compile: bool = True, graph: bool = False
) -> Device:
    """The device a run asked for, with torch set up for it; of several GPUs each rank has its own.
    With `compile` a CPU uses metarun's kernels, if it can.

    Raises UserError if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device=cuda, but torch sees no NVIDIA GPU here: use device=cpu")
        if ranks.size() > 1:
            device = own_gpu(device)
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"device.name={name}, but there are {torch.cuda.device_count()} GPUs: "
                f"cuda:0 to cuda:{torch.cuda.device_count() - 1}"
            )
        device = torch.device("cuda", device.index or 0)  # tensors there call it by its number
    else:
        if precision == "tf32":
            raise UserError("device.precision=tf32 needs an NVIDIA GPU: use fp32 or bf16")
        if graph:
            raise UserError("device.graph=true needs an NVIDIA GPU: use device.graph=false")
        keep_freed_memory()
    library.use(compile and device.type == "cpu")
    # float32 is float32: without this, cuDNN's convolutions round to TF32 unasked.
    torch.backends.fp32_precision = (  # type: ignore[attr-defined]
        "tf32" if precision == "tf32" else "ieee"
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    return Device(device, precision, graph)


def own_gpu(asked: torch.device) -> torch.device:
    """This rank's GPU. Raises UserError if it has none, or one is `asked` for by its number."""
    if asked.index is not None:
        raise UserError(
            f"device.name={asked}: ranks cannot share a GPU: with device.name=cuda each has its own"
        )
    own, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if own >= gpus:
        raise UserError(
            f"rank {own} of this machine has no GPU, there are {gpus}: use "
            f"--nproc-per-node={gpus}, or device=cpu"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next step.

    By default glibc returns a step's large tensors to the system and takes them anew, page by
    page, at the next one: half of the time of a step on 84×84 images.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)
