"""What does not go together is refused, with ways out that can be followed."""

import pickle

import numpy as np
import pytest

from metarun.errors import NOTHING, Unsuited, UserError
from metarun.suitability import in_test


def test_a_way_out_is_told_where_what_it_needs_is_there():
    error = Unsuited("too small", {"data.size": "raise data.size", NOTHING: "use another"})
    assert str(error) == "too small: raise data.size, or use another"
    assert str(error.among(lambda need: need == NOTHING)) == "too small: use another"
    told = pickle.loads(pickle.dumps(error))  # by a process to the one that started it
    assert (type(told), str(told)) == (UserError, str(error))


@pytest.mark.parametrize(
    ("advice", "told"),
    [
        ("lower sampler.least_way", "lower eval.sampler.least_way"),
        ("lower sampler.shot and sampler.query", "lower eval.shot and eval.query"),
        ("no superclasses: use sampler=uniform", "no superclasses: use eval=uniform"),
        ("use sampler.classes=any", "use eval.sampler.classes=any"),
        ("sampler=functions: it has classes", "eval=functions: it has classes"),
        ("way=5, but it has 3: lower way to 3", "way=5, but it has 3: lower way to 3"),
    ],
)
def test_the_keys_of_the_sampler_that_draws_test_tasks(advice, told):
    assert in_test(advice) == told


@pytest.fixture
def stored(metarun):
    """`data=npz` of 12 classes, 9 examples each of this shape, and its options."""

    def write(shape, as_bytes=False):
        draw = np.random.default_rng(0)
        x = draw.integers(0, 256, (108, *shape)).astype(np.uint8 if as_bytes else np.float32)
        x = x if as_bytes else x / 7 - 18
        np.savez(metarun.folder / "x.npz", x=x, y=np.arange(108) // 9)
        return ["data=npz", "data.file=x.npz", "way=2", "query=3", "device=cpu", "tracker=none"]

    return write


# The shape of an example, whether in bytes, what is asked for, and the ways out, all of them.
REFUSED = {
    "small images": ((1, 8, 8), True, "", "use backbone=mlp"),
    "small images, koch2015": ((1, 8, 8), True, "backbone=koch2015", "use another backbone"),
    "small maps": (
        *((6, 2, 2), False, "algo=relation backbone=identity backbone.flatten=false"),
        "use another algo",
    ),
    "numbers": ((6,), False, "algo=relation backbone=identity", "use another algo"),
    "maps, but not given": (
        *((6, 16, 16), False, "algo=relation backbone=identity backbone.flatten=true"),
        "use backbone=conv4, or use another algo",
    ),
    "patches": ((1, 13, 16), True, "backbone=vit_small", "use another backbone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_as_they_are_stored_have_no_size_to_raise(metarun, stored, case):
    shape, as_bytes, asked, ways = REFUSED[case]
    said = metarun.error(*stored(shape, as_bytes), *asked.split())
    assert said.endswith(f": {ways}")


def test_what_is_advised_of_own_pictures_works(metarun):
    small = [o for o in metarun.data if not o.startswith("data.size")] + ["device=cpu"]
    said = metarun.error(*small, "data.size=8", "tracker=none")
    assert said.endswith(": raise data.size, or use backbone=mlp")
    said = metarun.error(*small, "data.size=8", "tracker=none", "algo=relation")
    assert said.endswith(
        "2×2 is too small: lower backbone.pools, or set backbone.strides=false, or raise "
        "data.size, or use another algo"
    )


def test_a_mixture_whose_sources_have_no_size(metarun, stored):
    options = stored((1, 16, 16), as_bytes=True)
    mixed = ["data=[glyphs,x:npz]", "data.sources.x.file=x.npz", *options[2:]]
    said = metarun.error(*mixed)
    assert said.endswith(
        "one network cannot take both: set data.sources.glyphs.size, or leave one out"
    )
    metarun.main(*mixed, "data.sources.glyphs.size=16", "mode=prepare")


def test_the_test_sampler_is_advised_by_its_own_keys(metarun):
    few = [*metarun.data, "device=cpu", "tracker=none", "eval=variable"]
    said = metarun.error(*few, "eval.way=30", "eval.sampler.least_way=30")
    assert said.startswith("val split: least_way=30, but the split has only")
    assert said.endswith("lower eval.sampler.least_way")
    said = metarun.error(*few, "eval.way=5", "eval.sampler.classes=superclass")
    assert said.endswith("the data has no superclasses: use eval.sampler.classes=any")


def test_own_data_whose_metric_is_none_of_ours(metarun):
    (metarun.folder / "metric_of_mine.py").write_text(
        "from metarun.data.images.glyphs import load as glyphs\n\n\n"
        "def load(size: int):\n"
        "    data = glyphs(None, size)\n"
        "    data.metric = 'accuracy'\n"
        "    return data\n"
    )
    conf = metarun.folder / "conf/data"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("# Mine\n_target_: metric_of_mine.load\nsize: 28\n")
    metarun.monkeypatch.syspath_prepend(metarun.folder)
    options = ["--config-dir", "conf", "data=mine", "plugins.allow=[metric_of_mine]"]
    said = metarun.error(*options, "tracker=none", "device=cpu")
    assert said == (
        "the metric of DataSet is 'accuracy': give it one of metarun.functional.metrics, such as "
        "ACCURACY"
    )


def test_pictures_read_otherwise_than_in_the_training_are_doubted(metarun):
    """It may be meant; but a key that was forgotten gives another number."""
    metarun.run("name=a")
    model = ["mode=test", "checkpoint=outputs/a/checkpoints/best.pt"]
    assert metarun.run("name=b", *model, "data.size=20")["data"]["doubts"] == [
        "the model was trained on pictures of data.size=16, and this is data.size=20"
    ]
    assert not metarun.run("name=c", *model)["data"]["doubts"]


def test_own_classes_that_are_too_few_or_too_small(metarun, stored):
    """The keys of the data are advised where it has them and they can help."""
    options = stored((6,))
    short = ["backbone=identity", "train.steps=0", "eval.episodes=2"]
    few = "way=3, but the split has only 2 classes: lower way to 2"
    said = metarun.error(*options, "way=3", "shot=1")
    assert said == f"val split: {few}, or give the split more of the classes by data.fractions"
    metarun.main(*options, "way=3", "shot=1", "data.fractions=[0.4,0.3,0.3]", *short)
    said = metarun.error(*options, "way=5", "shot=1")  # 12 classes are too few for it
    assert said.endswith("lower way to 2")
    said = metarun.error(*options, "shot=7")
    assert said.endswith("has 9 examples, but shot=7 and query=3 need 10: lower one of them")
    np.savez(
        metarun.folder / "x.npz",
        x=np.random.default_rng(0).normal(size=(110, 6)).astype(np.float32),
        y=np.array([*np.arange(108) // 9, 12, 12]),
        split=np.repeat(["train", "val", "test", "train"], [54, 27, 27, 2]),
    )
    said = metarun.error(*options, "shot=1")
    assert said == (
        "train split: class '12' has 2 examples, but shot=1 and query=3 need 4: lower one of them, "
        "or leave out small classes by data.min_examples=4"
    )
    said = metarun.error(*options, "shot=1", "way=4", "data.min_examples=4")
    assert said.endswith("lower way to 3"), "the split is not drawn"
