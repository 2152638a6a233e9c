"""Augmentations as the configs put them together, and where they are applied."""

from dataclasses import replace

import hydra
import pytest
import torch
from hydra.utils import instantiate

from metarun.augment.crop import resized_crop
from metarun.augment.flip import Flip
from metarun.augment.jitter import jittered
from metarun.augment.sequence import Sequence
from metarun.configs.rules import conf_folder
from metarun.data.split import normalised, stack_classes
from metarun.data.store import DataSet
from tests.test_experiment import same, weights

CHOICES = sorted(path.stem for path in (conf_folder() / "augment").glob("*.yaml"))
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
)


def augmentation(choice):
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = hydra.compose("config", [f"augment={choice}"])
    return instantiate(config.augment, _convert_="all")


def test_one_after_another():
    assert Sequence(a=lambda x: x + 1, b=lambda x: 10 * x)(torch.tensor(1.0)) == 20
    assert Sequence()(torch.tensor(1.0)) == 1


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("choice", [c for c in CHOICES if c != "none"])
def test_every_choice(choice, dtype, device):
    """Keeps shape, type and range; changes copies of one image apart; the seed decides how."""
    augment = augmentation(choice)
    x = torch.rand(1, 3, 24, 24, dtype=dtype, device=device).expand(12, -1, -1, -1)
    torch.manual_seed(0)
    got = augment(x)
    assert got.shape == x.shape
    assert got.dtype == dtype
    assert got.device == x.device
    assert got.min() >= 0
    assert got.max() <= 1
    kinds = len(got.flatten(1).unique(dim=0))
    assert kinds >= (4 if choice == "quarter_turns" else 10)
    again = augment(x)
    assert not torch.equal(again, got)
    torch.manual_seed(0)
    assert torch.equal(augment(x), got)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("choice", [c for c in CHOICES if c != "none"])
def test_a_recorded_step_draws_anew(choice):
    """A CUDA graph can hold it, so nothing in it waits for the GPU, and each replay is another."""
    augment = augmentation(choice)
    x = torch.rand(12, 3, 24, 24, device="cuda")
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        augment(x)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        result = augment(x)
    graph.replay()
    first = result.clone()
    graph.replay()
    assert not torch.equal(result, first)


def test_one_image_is_as_good_as_many():
    """The images of a batch do not see each other."""
    augment = augmentation("closer_look")
    crop, jitter, _ = augment.steps
    x = torch.rand(5, 3, 12, 12, dtype=torch.float64)

    boxes, factors = crop.boxes(x), jitter.factors(x)
    together = jittered(resized_crop(x, boxes), factors)
    apart = [jittered(resized_crop(x[[i]], boxes[[i]]), factors[[i]])[0] for i in range(len(x))]
    torch.testing.assert_close(together, torch.stack(apart))


def test_none_is_nothing():
    assert augmentation("none") is None


def test_taken_images_are_augmented_before_they_are_normalised():
    images = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8)
    split = stack_classes("images", {"a": images}, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    rows = torch.tensor([[0, 5], [3, 3]])

    seen = []

    def darker(x):
        seen.append(x)
        return x / 2

    got = replace(split, augment=darker).take(rows)
    (x,) = seen
    torch.testing.assert_close(x, images[rows.flatten()] / 255)
    assert got.shape == (2, 2, 3, 4, 4)
    half = images[rows.flatten()].float() / 2
    torch.testing.assert_close(got.flatten(0, 1), normalised(half, split.mean, split.std))


def test_the_training_split_alone(metarun, monkeypatch):
    """Whatever is validated or tested is as it was."""

    called, opened = [], []
    really_open, really_flip = DataSet.open, Flip.__call__

    def counted(self, x):
        called.append(opened[-1])
        return really_flip(self, x)

    def watched(data, split):
        opened.append(split)
        return really_open(data, split)

    monkeypatch.setattr(Flip, "__call__", counted)
    monkeypatch.setattr(DataSet, "open", watched)
    opened.append("before")
    plain = metarun.run("name=a", "train.steps=0")
    assert called == []
    changed = metarun.run("name=b", "train.steps=0", "augment=crop_flip")
    assert called == ["test"], "tried on one image while the parts are built, and no more"
    assert plain["test"] == changed["test"]
    called.clear()
    metarun.run("name=c", "train.steps=4", "train.val_every=4", "augment=crop_flip")
    assert called == ["test"] + ["train"] * 4
    monkeypatch.undo()


def test_gone_on_with_equals_unbroken(metarun):
    """The state of the chance is in the checkpoint."""
    given = ["augment=metaoptnet", "schedule=constant"]
    metarun.run("name=a", *given)
    metarun.run("name=b", *given, "train.steps=2")
    metarun.run("name=b", *given, "resume=auto")
    assert same(weights(metarun, "a"), weights(metarun, "b"))
    metarun.run("name=c", "schedule=constant")
    assert not same(weights(metarun, "a"), weights(metarun, "c"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data=sinusoid algo=maml", "augment changes images, and data=sinusoid has none"),
        ("augment.crop.padding=-1", "augment.crop.padding=-1: it must be at least 0"),
        ("augment.crop.pad=1", "augment.crop.pad: there is no such key"),
        ("augment=crop", "did you mean"),
        ("augment.crop._target_=os.system", "os.system: not allowed to run"),
    ],
)
def test_refused(metarun, typed, said):
    assert said in metarun.error("augment=crop_flip", *typed.split(), "device=cpu", "tracker=none")


def test_one_that_does_not_keep_the_shape(metarun, monkeypatch):

    monkeypatch.setattr(Flip, "__call__", lambda self, x: x[..., 1:])
    said = metarun.error(*metarun.data, "augment=crop_flip", "device=cpu", "tracker=none")
    assert said == (
        "augment turns an image [1, 16, 16] of torch.float32 into [1, 16, 15] of torch.float32: "
        "it must keep both"
    )
