"""A folder of made-up pictures, and the command line as a function."""

import copy
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from PIL import Image

from metarun.cli.main import load_torch, main
from metarun.configs.rules import conf_folder

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
load_torch()

CLASSES = {"train": 64, "val": 21, "test": 21}
QUICK = (
    "train.steps=4 train.val_every=2 train.log_every=1 eval.episodes=6 eval.val_episodes=4 "
    "backbone.width=8 tracker=none device=cpu"
).split()


def pytest_collection_modifyitems(config, items):
    """What is slow waits to be asked for."""
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="trains for minutes: -m slow"))


@pytest.fixture(autouse=True, scope="session")
def without_nohup():
    """A closed terminal stops the runs of the tests, though nohup has them ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage():
    """The garbage collector does not look through what is there before the first test."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def configs_read_once():
    """Hydra reads a committed file, or one of its own, once in this process: it does so five times
    in each run. Files of the tests' own are read whenever they are asked for."""
    kept = {}

    def reading_once(really_load):
        def load(self, config_path):
            if self.scheme() == "file" and Path(self.path) != conf_folder():
                return really_load(self, config_path)
            key = (self.scheme(), self.path, self.provider, config_path)
            if key not in kept:
                kept[key] = really_load(self, config_path)
            return copy.deepcopy(kept[key])

        return load

    Plugins.instance()  # which registers what reads either
    with pytest.MonkeyPatch.context() as patch:
        for source in map(SourcesRegistry.instance().resolve, ("file", "pkg")):
            patch.setattr(source, "load_config", reading_once(source.load_config))
        yield


@pytest.fixture(autouse=True)
def without_kernels():
    """Each test begins without kernels, whatever ran before it; a run of metarun turns them on."""
    from metarun.kernels import library  # which loads torch, when the threads are known

    library.use(False)


@pytest.fixture
def kernels(without_kernels):
    """The kernels are in use."""
    from metarun.kernels import library

    if not library.use(True):
        pytest.skip("the kernels cannot be made here")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """train/, val/ and test/ with class folders of 20 noisy 16×16 grey pictures of one pattern."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, classes in CLASSES.items():
        for c in range(classes):
            folder = root / split / f"{split}{c:02}"
            folder.mkdir(parents=True)
            pattern = random.integers(40, 216, (4, 4)).repeat(4, 0).repeat(4, 1)
            for i in range(20):
                noisy = pattern + random.integers(-40, 40, (16, 16))
                Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Where all the runs of the tests keep their prepared data."""
    return tmp_path_factory.mktemp("cache")


class CommandLine:
    """`metarun` on the made-up pictures, in a folder of its own."""

    def __init__(self, folder: Path, pictures: Path, capsys, monkeypatch):
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        self.data = [
            *("data=image_folder", f"data.root={pictures}", "data.size=16", "data.grey=true"),
            *("way=3", "query=5"),
        ]

    def run(self, *overrides: str) -> dict:
        """The results of a short run, in outputs/`name` by its override name=."""
        name = next(o.removeprefix("name=") for o in overrides if o.startswith("name="))
        self.main(*self.data, *QUICK, *overrides, f"hydra.run.dir=outputs/{name}")
        return self.results(name)

    def main(self, *arguments: str) -> None:
        """The command line as it is."""
        self.monkeypatch.setattr(sys, "argv", ["metarun", *arguments])
        main()

    def error(self, *arguments: str) -> str:
        """What the command line says when it refuses, after checks of how it does so."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            self.main(*arguments)
        printed = self.capsys.readouterr()
        assert leaving.value.code == 2
        progress = ("Reading pictures", "Drawing letters")  # data may be prepared first
        lines = [line for line in printed.err.splitlines() if not line.startswith(progress)]
        assert len(lines) == 1, printed.err
        assert lines[0].startswith("metarun: ")
        return lines[0].removeprefix("metarun: ")

    def process(self, *arguments: str, **options) -> subprocess.Popen:
        """`python -m metarun` on its own, with its output kept."""
        command = [sys.executable, "-m", "metarun", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, text=True, stdout=pipe, stderr=pipe, **options
        )

    def results(self, name: str) -> dict:
        """The results.json of the run in outputs/`name`, but for its checksum."""
        found = json.loads((self.folder / "outputs" / name / "results.json").read_text())
        found.pop("sha256", None)
        return found


@pytest.fixture
def metarun(request, tmp_path, pictures, cache, capsys, monkeypatch) -> CommandLine:
    """The command line, in an empty folder, with no W&B account and a cache of its own.

    Its runs draw no pictures, but in tests that are marked with `drawing`.
    """
    if not request.node.get_closest_marker("drawing"):
        monkeypatch.setattr("metarun.experiment.draw_pictures", lambda *given: None)
    for variable in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("METARUN_DATA", str(cache))
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path, pictures, capsys, monkeypatch)
