"""How two configs differ: nothing is left out, and what is said can be typed."""

import copy
from pathlib import Path

import hydra
import pytest

import metarun
from metarun.configs.composing import plain
from metarun.configs.differences import differences
from metarun.configs.rules import UNSEEN, conf_folder, flat
from metarun.runs.checkpoint import INCIDENTAL
from metarun.tables.cells import Run
from metarun.tables.shared_training import has_trained


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


def test_a_key_that_begins_like_one_that_is_excepted():
    config, other = ({"seed": n, "seeds": n, "eval": {"seed": n}} for n in (1, 2))
    assert differences(config, other, except_for=["seed"]) == ["seeds=2", "eval.seed=2"]


def default() -> dict:
    """The config of the plain command."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return plain(hydra.compose("config", ["name=a"]))


def may_differ(except_for):
    """The keys of the default config of which another value makes no difference."""
    config = default()
    found = set()
    for key in flat(config):
        other = copy.deepcopy(config)
        *groups, last = key.split(".")
        part = other
        for group in groups:
            part = part[group]
        part[last] = "another"
        if not differences(config, other, except_for=except_for):
            found.add(key)
    return found


TRACKER = {f"tracker.{key}" for key in default()["tracker"]}


def test_what_a_finished_runs_results_do_not_depend_on():
    """One key more, and another run's result is taken for this one's."""
    assert may_differ(UNSEEN) == TRACKER | {
        *("name", "resume", "seeds", "plugins.allow", "data.root", "train.log_every"),
        *("train.save_minutes", "short_steps"),
        *("device.name", "device.compile", "device.graph", "sampler.chunk"),
        *("eval.tasks", "eval.sampler.tasks"),
    } & set(flat(default()))


def test_what_may_change_when_a_run_goes_on():
    assert may_differ(INCIDENTAL) == TRACKER | {
        *("name", "resume", "seeds", "checkpoint", "mode", "plugins.allow", "data.root"),
        *("device.name", "device.deterministic", "device.compile", "device.graph"),
        *("sampler.chunk", "train.steps", "train.log_every", "train.patience"),
        *("train.save_minutes", "short_steps"),
        *("eval.episodes", "eval.tasks", "eval.sampler.tasks"),
    } & set(flat(default()))


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ([], True),
        (["way=7"], False),  # the sampler trains with it
        (["eval.way=7", "eval.episodes=99"], True),
        (["algo=maml"], False),
        (["algo.distance=cosine"], False),
        (["optim.lr=0.5"], False),
        (["backbone.width=8"], False),
        (["sampler.shot=2"], False),
        (["train.steps=7"], False),
        (["seed=1"], False),
        (["device.precision=bf16"], False),
        (["data.size=20"], False),
    ],
)
def test_whose_training_is_taken_over(changed, taken):
    """That of a run which differs in its test alone."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        ours, theirs = (
            plain(hydra.compose("config", ["name=a", "train.split=trainval", *overrides]))
            for overrides in ([], changed)
        )
    results = {
        "status": "finished",
        "mode": "train",
        "provenance": {"metarun": metarun.__version__},
        "data": {"checksum": "c"},
        "config": theirs,
        **{"train": {}, "seconds": 1.0, "cpu_seconds": 1.0},
    }
    run = Run(Path("run"), "finished", results, "")
    assert has_trained(run, ours, "c") is taken
    assert not has_trained(run, ours, "d")
