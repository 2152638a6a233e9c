"""How two configs differ: nothing is left out, and what is said can be typed."""

import hydra
import pytest

from metarun.configs.composing import plain
from metarun.configs.differences import differences
from metarun.configs.rules import conf_folder


def test_differences_name_what_the_other_says():
    """Changed, only here, only there; not what is excepted, at or below its key."""
    ours = {
        "a": 1,
        "b": {"c": True, "d": 2},
        "e": "new",
        "tracker": {"mode": "auto"},
        "trackers": 1,
    }
    other = {"a": 2, "b": {"c": False, "d": 2}, "f": [1], "tracker": {"mode": "x"}, "trackers": 2}
    found = differences(ours, other, except_for=["tracker", "a"])
    assert found == ["b.c=false", "e=null", "trackers=2", "f=[1]"]
    assert differences(ours, ours, except_for=[]) == []


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (["algo=matching", "algo.fce=true"], ["algo=matching", "algo.fce=true"]),
        (["backbone=resnet10"], ["backbone=resnet10"]),
        (["augment=crop_flip"], ["augment=crop_flip"]),
        (["backbone=conv6"], ["backbone=conv6"]),  # of conv4's class, and with other keys
        (["backbone.width=8"], ["backbone.width=8"]),
        (["algo=anil", "algo.way=7"], ["schedule=constant", "algo=anil"]),
        (["algo=fomaml", "data=omniglot"], ["schedule=constant", "algo=fomaml", "data=omniglot"]),
        (["algo=fomaml", "sampler.tasks=1", "sampler.query=15"], ["schedule=constant"]),
        (["eval=variable", "optim=sgd"], ["eval=variable", "optim=sgd"]),
    ],
)
def test_differences_can_be_typed(theirs, told):
    """A choice is named where the classes are others; saying all that is told leaves none."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config, wanted = (plain(hydra.compose("config", [*o, "name=a"])) for o in ([], theirs))
        said = differences(config, wanted, except_for=[])
        assert said[: len(told)] == told
        assert plain(hydra.compose("config", [*said, "name=a"])) == wanted
    assert not any("_target_" in line for line in said)


def test_classes_that_no_committed_choice_has():
    """All keys are told then, also those that the other has not."""
    config = {"optim": {"_target_": "torch.optim.Adam", "lr": 0.1, "eps": 1e-8}}
    other = {"optim": {"_target_": "mine.Own", "lr": 0.1, "own": 1}}
    found = differences(config, other, except_for=[])
    assert found == ["optim._target_=mine.Own", "optim.eps=null", "optim.own=1"]


def test_fewer_of_the_same_is_a_difference():
    """As of a mixture of two sources and of one of them."""
    one, two = {"_target_": "mine.Set", "root": "a"}, {"_target_": "mine.Set", "root": "b"}
    config, other = (
        {"data": {"sources": {"one": one, "two": two}}},
        {"data": {"sources": {"one": one}}},
    )
    wanted = ["data.sources.two._target_=null", "data.sources.two.root=null"]
    assert differences(config, other, except_for=[]) == wanted


def test_a_key_that_is_excepted_may_be_missing():
    """As in the checkpoint of a version that did not have it; another one is told."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config, then = (plain(hydra.compose("config", ["algo=maml", "name=a"])) for _ in range(2))
    del then["algo"]["checkpoint_steps"]
    assert differences(config, then, except_for=["algo.checkpoint_steps"]) == []
    assert differences(config, then, except_for=["name"]) != []


def test_a_group_that_is_excepted():
    config, other = ({"optim": {"_target_": f"torch.optim.{name}"}} for name in ("Adam", "SGD"))
    assert differences(config, other, except_for=["optim"]) == []
