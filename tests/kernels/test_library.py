import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from metarun import device
from metarun.backbones.conv4 import Conv4
from metarun.kernels import library
from metarun.kernels.pooled_convolution import can_convolve, pooled_convolution

COMPILE = library.COMPILE
# As the kernels are compiled in the tests of this file, where nothing depends on how fast they are.
QUICKLY = ["-O0" if option == "-O3" else option for option in library.COMPILE]
# A process that waits for a line, gets the library, and tells whether its sums are right: those of
# whole numbers are exact.
ANOTHER_PROCESS = f"""
import torch
from torch.nn import functional as F

from metarun.kernels import library
from metarun.kernels.pooled_convolution import pooled_convolution

library.COMPILE = {QUICKLY}
print("ready", flush=True)
input()
assert library.use(True)
draw = torch.Generator().manual_seed(0)
x, w, b = (
    torch.randint(-4, 5, shape, generator=draw).float()
    for shape in [(3, 1, 8, 8), (16, 1, 3, 3), (16,)]
)
wanted = F.max_pool2d(F.conv2d(x, w, b, padding=1), 2).relu()
assert torch.equal(pooled_convolution(x, w, b, torch.float32), wanted)
print("right")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where libraries are kept: nowhere yet."""
    precision = torch.backends.fp32_precision
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "COMPILE", QUICKLY)
    library.compiled.cache_clear()
    yield tmp_path / "cache" / "metarun" / "kernels"
    library.use(False)
    library.compiled.cache_clear()
    torch.backends.fp32_precision = precision
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """A cache for the library that every test here begins with a copy of."""
    return tmp_path_factory.mktemp("once")


@pytest.fixture
def made(folder, once, monkeypatch) -> Path:
    """The library, as if it had just been compiled."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(once))
        if library.compiled() is None:
            pytest.skip("no C compiler here that can make the kernels")
    library.compiled.cache_clear()
    (path,) = (once / "metarun" / "kernels").iterdir()
    folder.mkdir(parents=True)
    return Path(shutil.copy(path, folder))


def folder_of_compiler(tmp_path, script):
    """With nothing in it but a `cc` that does this instead."""
    path = tmp_path / "bin" / "cc"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path.parent)


def assert_metarun_goes_on_without():
    """Neither asking for the kernels nor a run's device has them, and a network is computed."""
    assert not library.use(True)
    assert library.in_use is None
    device.choose("cpu", "fp32", deterministic=False)
    assert library.in_use is None
    torch.manual_seed(0)
    network = Conv4((1, 16, 16), width=16, batch_norm="none", blocks=1, pools=1)
    convolution, x = network[0][0], torch.rand(2, 1, 16, 16)
    assert not can_convolve(x, convolution, torch.float32)
    wanted = F.max_pool2d(F.conv2d(x, convolution.weight, convolution.bias, padding=1), 2).relu()
    torch.testing.assert_close(network(x), wanted.flatten(1))


@pytest.mark.usefixtures("made")
def test_the_sources_compile(tmp_path, monkeypatch):
    """As for a run, where a compiler takes anything: or every test of the kernels would be skipped
    without a word."""
    program = "#include <immintrin.h>\n#ifndef __AVX512F__\n#error\n#endif\n"
    asked = ["cc", "-march=native", "-fopenmp", "-x", "c", "-", "-c", "-o", str(tmp_path / "o")]
    try:
        able = subprocess.run(asked, input=program, text=True, capture_output=True).returncode == 0
    except OSError:
        able = False
    if not able or sys.platform != "linux":
        pytest.skip("no C compiler here that can make the kernels")
    monkeypatch.setattr(library, "COMPILE", COMPILE)
    library.compile_to(tmp_path / "kernels.so")


def test_in_use_only_while_wanted():
    x, convolution = torch.rand(2, 1, 8, 8), torch.nn.Conv2d(1, 16, 3, padding=1)
    for wanted in (True, False, True):
        assert library.use(wanted) == wanted
        assert (library.in_use is not None) == wanted
        assert can_convolve(x, convolution, torch.float32) == wanted


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.usefixtures("made")
def test_a_device_uses_them_if_it_is_to_compile(compile):
    device.choose("cpu", "fp32", deterministic=False, compile=compile)
    assert (library.in_use is not None) == compile


def test_the_next_process_finds_it(made, folder):
    """Without a compiler, which it does not need."""
    assert made.suffix == ".so"
    before = made.stat()
    command, environment = (
        [sys.executable, "-c", ANOTHER_PROCESS],
        os.environ | {"PATH": "/nowhere"},
    )
    done = subprocess.run(command, env=environment, input="\n", text=True, capture_output=True)
    assert done.stdout.split() == ["ready", "right"], done.stderr
    assert list(folder.iterdir()) == [made]
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    assert made.stat().st_ino == before.st_ino


def test_another_processor_has_one_of_its_own(made, folder, monkeypatch):
    monkeypatch.setattr(library, "processor", lambda: "another with avx512f")
    library.compiled.cache_clear()
    assert library.use(True)
    assert len(list(folder.iterdir())) == 2
    assert made.exists()


def test_a_deleted_one_is_made_again(made):
    made.unlink()
    library.compiled.cache_clear()
    assert library.use(True)
    assert made.exists()


def test_without_a_compiler(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert_metarun_goes_on_without()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("script", ["echo no such option >&2; exit 1", "exit 0", "kill -9 $$"])
def test_a_compiler_that_fails(script, folder, tmp_path, monkeypatch):
    """It says so, says nothing and makes nothing, or is killed."""
    monkeypatch.setenv("PATH", folder_of_compiler(tmp_path, script))
    assert_metarun_goes_on_without()
    assert not list(folder.iterdir())


def test_a_compiler_that_does_not_end(folder, monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(library.subprocess, "run", run)
    assert_metarun_goes_on_without()
    assert not list(folder.iterdir())


def folder_for_passing_files(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "passing"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def assert_this_process_has_its_own(passing):
    """It uses the kernels, whose file is gone already, and they are right."""
    assert library.use(True)
    assert not list(passing.iterdir())
    x, weight, bias = torch.rand(3, 1, 8, 8), torch.rand(16, 1, 3, 3) - 0.5, torch.rand(16)
    wanted = F.max_pool2d(F.conv2d(x, weight, bias, padding=1), 2).relu()
    torch.testing.assert_close(pooled_convolution(x, weight, bias, torch.float32), wanted)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/here"])
def test_a_cache_that_cannot_be_written(place, tmp_path, monkeypatch):
    """Even by root."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    library.compiled.cache_clear()
    assert_this_process_has_its_own(folder_for_passing_files(tmp_path, monkeypatch))
    assert not (tmp_path / "file").read_bytes()


def test_a_folder_in_its_place(made, tmp_path, monkeypatch):
    """Which is left as it is."""
    made.unlink()
    made.mkdir()
    library.compiled.cache_clear()
    assert_this_process_has_its_own(folder_for_passing_files(tmp_path, monkeypatch))
    assert made.is_dir()


@pytest.mark.parametrize("damage", ["a bit", "its end", "nothing left", "text", "zeros"])
def test_a_damaged_one_is_made_again_and_never_loaded(damage, made, monkeypatch):
    """Whatever happened to it; the next process has a sound one."""
    sound = made.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 4
    contents = {
        "a bit": bytes(flipped),
        "its end": sound[:-1],
        "nothing left": b"",
        "text": b"no library",
        "zeros": bytes(len(sound)),
    }
    made.write_bytes(contents[damage])
    monkeypatch.setattr(library, "compile_to", lambda path: path.write_bytes(sound))
    loaded = []
    load = library.ctypes.CDLL
    monkeypatch.setattr(
        library.ctypes, "CDLL", lambda path: loaded.append(Path(path).read_bytes()) or load(path)
    )
    library.compiled.cache_clear()
    assert library.use(True)
    assert loaded == [sound]


def test_a_compiler_whose_library_cannot_be_loaded(tmp_path, monkeypatch):
    """Now, nor by the next process, which finds it."""
    script = ": > kernels.so; : > kernels.o"
    monkeypatch.setenv("PATH", folder_of_compiler(tmp_path, script))
    for _ in range(2):
        assert_metarun_goes_on_without()
        library.compiled.cache_clear()


def test_another_system(folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert_metarun_goes_on_without()
    assert not folder.exists()


def test_a_processor_without_avx512(monkeypatch):
    """There torch alone is faster on large images."""
    library.compiled.cache_clear()
    monkeypatch.setattr(library, "processor", lambda: "x86_64 flags: fma avx2")
    assert not library.use(True)


def test_a_processor_that_tells_nothing(monkeypatch):
    """As in a sandbox without /proc."""

    def processor():
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(library, "processor", processor)
    assert_metarun_goes_on_without()


@pytest.mark.usefixtures("made")
def test_two_processes_that_compile_at_once(tmp_path, monkeypatch):
    """Both have a sound library, and one file is left."""
    cache = tmp_path / "of two"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", ANOTHER_PROCESS]
    processes = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert (said, process.returncode) == ("right\n", 0)
    (left,) = (cache / "metarun" / "kernels").iterdir()
    assert left.suffix == ".so"
