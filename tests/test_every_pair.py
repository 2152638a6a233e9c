"""Every algorithm takes two steps on every image data set, in small archives of its layout, and
runs on a table of measurements."""

from pathlib import Path

import hydra
import numpy as np
import pytest
from PIL import Image

from metarun.configs.composing import plain
from metarun.configs.rules import conf_folder
from metarun.data.images import miniimagenet, tieredimagenet
from metarun.parts import build
from metarun.training.loop import steps
from tests.data import layouts
from tests.data.images.test_omniglot import SMALL, write_archive
from tests.data.images.test_omniglot_challenge import runs

ALGORITHMS = sorted(path.stem for path in (conf_folder() / "algo").glob("*.yaml"))
NOT_FOR_TRAINING = {"gtsrb"}  # all of its classes are for testing
NO_IMAGES = {"sinusoid", "harmonics", "csv", "npz", "safetensors", "features"}
DATA = sorted(
    {path.stem for path in (conf_folder() / "data").glob("*.yaml")} - NOT_FOR_TRAINING - NO_IMAGES
)
SMALL_TASKS = (
    "way=3 query=1 sampler.tasks=2 eval.tasks=2 data.size=16 device=cpu tracker=none "
    "backbone.width=4"
).split()
OF_DATA = {
    "omniglot_challenge": ["data.background=small1", "way=20"],  # as its runs
    "omniglot": ["data.splits=minimal"],
    "mixture": ["+data@data.sources.dtd=dtd", "data.sources.dtd.size=16"],
}
OF_ALGORITHM = {
    "mann": ["backbone=conv4", "sampler.presentations=2"],
    "reptile": ["sampler.shot=1", "sampler.query=1"],
}
PICTURES = 3  # of a class


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All the archives in one folder, as one would keep them."""
    folder = tmp_path_factory.mktemp("archives")
    layouts.published(folder, PICTURES)
    for name in SMALL:
        write_archive(folder / f"{name}.zip")
    layouts.as_zip(runs(), folder / "all_runs.zip")
    for name, splits in {"mini": miniimagenet.CLASSES, "tiered": tieredimagenet.CLASSES}.items():
        for split, classes in splits.items():
            for wnid in classes:
                paint(folder / f"{name}imagenet" / split / wnid)
    for number in range(20):
        paint(folder / "own" / str(number))
    return folder


def paint(folder: Path) -> None:
    """Noise, as the pictures of a class."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(list(folder.name.encode()))  # no picture stands in two classes
    for i in range(PICTURES):
        x = random.integers(256, size=(16, 16, 3)).astype(np.uint8)
        Image.fromarray(x).save(folder / f"{i}.png")


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("data", DATA)
def test_two_steps(root, cache, monkeypatch, data, algo):
    monkeypatch.setenv("METARUN_DATA", str(cache))
    where = root / "own" if data == "image_folder" else root
    key = "data.sources.dtd.root" if data == "mixture" else "data.root"
    overrides = [f"data={data}", f"algo={algo}", *SMALL_TASKS, *OF_DATA.get(data, [])]
    overrides += [f"{key}={where}", *OF_ALGORITHM.get(algo, [])]
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra.compose("config", overrides)
    parts = build(plain(config))
    before = parts.training.algorithm.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items() if hasattr(tensor, "clone")}
    train = parts.data.open("train").to(parts.device.torch_device)
    taken = steps(parts.training, parts.plan, parts.sampler, train, parts.device)
    for _ in range(2):
        assert next(taken)["loss"].isfinite()
    after = parts.training.algorithm.state_dict()
    assert any((after[name] != tensor).any() for name, tensor in before.items())


OF_VECTORS = {
    "mann": ["sampler.presentations=4"],
    "reptile": ["sampler.shot=2", "sampler.query=2"],
}
MAPS_ALONE = {"relation"}  # it compares feature maps


@pytest.fixture(scope="module")
def measurements(tmp_path_factory) -> Path:
    """Four numbers of each of eight plants of twenty classes."""
    random = np.random.default_rng(0)
    rows = [[c, *random.normal(c % 5, 1, 4).round(4)] for c in range(20) for _ in range(8)]
    path = tmp_path_factory.mktemp("table") / "plants.csv"
    lines = ["label,f0,f1,f2,f3", *(",".join(["c" + str(c), *map(str, x)]) for c, *x in rows)]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_on_vectors(metarun, measurements, algo):
    """It trains, validates and tests, or is refused in one line."""
    small = "way=3 query=2 sampler.tasks=2 train.steps=2 train.val_every=1 eval.episodes=4"
    rest = "eval.val_episodes=3 device=cpu tracker=none backbone=mlp backbone.widths=[8,8]"
    given = ["data=csv", f"data.file={measurements}", f"algo={algo}", *small.split()]
    given += [*rest.split(), *OF_VECTORS.get(algo, []), "hydra.run.dir=outputs/a"]
    if algo in MAPS_ALONE:
        assert "MLP has no pools" in metarun.error(*given)
        return
    metarun.main(*given)
    results = metarun.results("a")
    assert results["train"]["steps"] == 2
    assert results["test"]["episodes"] == 4
    assert 0 <= results["test"]["accuracy"] <= 1
