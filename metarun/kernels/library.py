"""The C functions beside this file, compiled once by this machine's own compiler.

They use the threads that torch has, through the OpenMP library that torch has loaded.
"""

import ctypes
import hashlib
import inspect
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TypeVar

import platformdirs
from torch import Tensor
from torch.autograd import Function

Kernel = TypeVar("Kernel", bound=type[Function])

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
COMPILE = (
    "cc -O3 -march=native -fopenmp -fPIC -fno-math-errno -fno-strict-aliasing -Wno-psabi -c".split()
)
LINK = "cc -shared -o kernels.so".split()  # not with OpenMP: torch has loaded one

in_use: ctypes.CDLL | None = None


def use(wanted: bool) -> bool:
    """Have the kernels used from now on, or not; whether they are.

    They are not where they cannot be made: without Linux, AVX-512 and a GCC as `cc` that knows it.
    """
    global in_use
    in_use = compiled() if wanted else None
    return in_use is not None


@cache
def compiled() -> ctypes.CDLL | None:
    """The library: that of an earlier run on such a processor, or a new one; None if none can be
    made, or the processor lacks AVX-512, without which torch alone is faster on large images.

    What is in the cache folder can be deleted at any time. A file there that is damaged is made
    again, and never executed.
    """
    if sys.platform != "linux":
        return None
    try:
        able = processor()
        if "avx512f" not in able:
            return None
        made_from = [
            *(source.read_text(encoding="utf-8") for source in SOURCES),
            *COMPILE,
            *LINK,
            able,
        ]
        name = hashlib.sha256(" ".join(made_from).encode()).hexdigest()[:16] + ".so"
        path = Path(platformdirs.user_cache_dir("metarun")) / "kernels" / name
        try:
            if not is_sound(path):
                compile_to(path)
            return ctypes.CDLL(str(path))
        except OSError:  # a folder that cannot be written, or one in the place of the file
            with tempfile.TemporaryDirectory() as folder:
                compile_to(Path(folder) / name)
                return ctypes.CDLL(str(Path(folder) / name))
    except (OSError, subprocess.SubprocessError):
        return None


def compile_to(path: Path) -> None:
    """Make the library. Raises OSError or subprocess.SubprocessError if that cannot be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [source for source in SOURCES if source.suffix == ".c"]
    objects = [f"{source.stem}.o" for source in sources]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for command in ([*COMPILE, *map(str, sources)], [*LINK, *objects]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
        made = Path(folder) / "kernels.so"
        with open(made, "r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)  # behind the end of the library, where its loader does not look
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)  # who uses what was there goes on with that


def is_sound(path: Path) -> bool:
    """Whether the file is as `compile_to` made it: it ends with the SHA-256 of all before."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return len(content) > size and hashlib.sha256(content[:-size]).digest() == content[-size:]


def processor() -> str:
    """What the processor can do, which decides how its code is made."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    kinds = ("model name", "flags", "CPU part", "Features")
    return " ".join([platform.machine(), *sorted({x for x in told if x.startswith(kinds)})])


def call(
    name: str, *values: Tensor | ctypes.Structure | ctypes.c_int64 | ctypes.c_double | None
) -> None:
    """Call that C function with the values in order: of tensors where their numbers lie in memory,
    of None null."""
    assert in_use is not None
    kept = [v.contiguous() if isinstance(v, Tensor) else v for v in values]
    getattr(in_use, name)(
        *(ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else v for v in kept)
    )


def inspected(function: Kernel) -> Kernel:
    """Write down what the Function's `forward` takes: torch asks at each call, and finding out
    takes longer than a small kernel."""
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]
    return function
