import copy
import math

import pytest

from metarun.configs.rooms import refuse_foreign_names
from metarun.configs.rules import check, fits, flat, schedule_end, shown, targets
from metarun.errors import UserError

REFERENCE = {
    "way": 5,
    "mode": "train",
    "checkpoint": None,
    "seed": 0,
    "name": "2026-01-01",
    "resume": "none",
    "train": {"steps": 100, "val_every": 10, "clip_norm": 0.0},
    "sampler": {"way": 5},
    "eval": {"way": 5, "graph": False, "episodes": 600},
    "device": {"name": "auto", "precision": "fp32"},
    "backbone": {"_target_": "metarun.backbones.mlp.MLP", "widths": [256, 64]},
    "optim": {"_target_": "torch.optim.Adam", "lr": 0.001, "betas": [0.9, 0.999]},
    "tracker": {"mode": "auto", "group": None, "tags": []},
    "plugins": {"allow": []},
}
LEFT_OUT = object()


def changed(changes):
    """REFERENCE with other values, by dotted key; LEFT_OUT takes a key away."""
    config = copy.deepcopy(REFERENCE)
    for key, value in changes.items():
        *groups, last = key.split(".")
        part = config
        for group in groups:
            part = part.setdefault(group, {})
        part[last] = value
        if value is LEFT_OUT:
            del part[last]
    return config


def error(changes, allow=()):
    """What is said of REFERENCE with these changes; None if nothing is wrong."""
    try:
        check(changed(changes), REFERENCE)
        refuse_foreign_names(changed(changes), list(allow))
    except UserError as wrong:
        return str(wrong)
    return None


def test_the_committed_config_is_right():
    assert error({}) is None


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("wya", "way"),
        ("train.step", "train.steps"),
        ("optim.learning_rate", None),
        ("steps", "train.steps"),
        ("eval.steps", "train.steps"),
        ("trian.val_every", "train.val_every"),
    ],
)
def test_unknown_keys(key, nearest):
    told = error({key: 1})
    assert told.startswith(f"{key}: there is no such key")
    if nearest:
        assert told.endswith(f", did you mean {nearest}?")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("way", "five", "way=five: a whole number is needed"),
        ("way", 5.0, "way=5.0: a whole number is needed"),
        ("way", True, "way=true: a whole number is needed"),
        ("way", None, "way=null: a whole number is needed"),
        ("way", {}, "way={}: a whole number is needed"),
        ("optim.lr", "1e-3x", "optim.lr=1e-3x: a number is needed"),
        ("optim.lr", False, "optim.lr=false: a number is needed"),
        ("eval.graph", 1, "eval.graph=1: true or false is needed"),
        ("eval.graph", "yes", "eval.graph=yes: true or false is needed"),
        ("mode", 7, "mode=7: a text is needed"),
        ("optim.betas", 0.9, "optim.betas=0.9: a list of numbers is needed"),
        ("optim.betas", [0.9, "x"], "optim.betas=[0.9,x]: a list of numbers is needed"),
        ("backbone.widths", [64.5], "backbone.widths=[64.5]: a list of whole numbers is needed"),
        ("backbone.widths", [True], "backbone.widths=[true]: a list of whole numbers is needed"),
        ("tracker.tags", "a", "tracker.tags=a: a list is needed"),
    ],
)
def test_wrong_types(key, value, told):
    assert error({key: value}) == told


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(number):
    assert error({"optim.lr": number}) == f"optim.lr={number}: it must be finite"
    assert error({"optim.betas": [0.9, number]}) == f"optim.betas={number}: it must be finite"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", 1),  # a whole number is a number
        ("backbone.widths", []),
        ("backbone.widths", [8]),
        ("optim.betas", [0, 0.5]),
        ("tracker.tags", ["a", 3]),
        ("tracker.group", "mine"),
        ("tracker.group", None),
    ],
)
def test_right_types(key, value):
    assert error({key: value}) is None


def test_a_name_that_is_a_number():
    """The committed config has then the same name, as text."""
    assert fits(7, "7")
    assert not fits(7, "seven")
    assert not fits(True, "7")


@pytest.mark.parametrize(
    ("key", "value", "lowest"),
    [
        ("way", 0, 1),
        ("sampler.way", 1, 2),
        ("seed", -1, 0),
        ("eval.episodes", 1, 2),
        ("train.val_every", 0, 1),
        ("train.clip_norm", -0.5, 0),
        ("optim.lr", -0.1, 0),
    ],
)
def test_bounds(key, value, lowest):
    assert error({key: value}) == f"{key}={value}: it must be at least {lowest}"
    assert error({key: lowest}) is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "mode",
            "tran",
            "mode=tran: choose one of train, test, embed, prepare, verify, did you mean train?",
        ),
        ("resume", "never", "resume=never: choose one of none, auto"),
        ("device.precision", "fp16", "device.precision=fp16: choose one of fp32, tf32, bf16"),
        ("tracker.mode", "of", "tracker.mode=of: choose one of auto, online, offline, disabled"),
        ("device.name", "gpu", "device.name=gpu: choose auto, cpu, cuda or cuda:NUMBER"),
        ("device.name", "cuda:x", "device.name=cuda:x: choose auto, cpu, cuda or cuda:NUMBER"),
        ("name", "a/b", "name=a/b: not a folder's name"),
    ],
)
def test_choices(key, value, told):
    assert error({key: value}).startswith(told)


@pytest.mark.parametrize("key", ["way", "train.steps", "optim.lr", "tracker.group", "eval"])
def test_nothing_can_be_left_out(key):
    first = {"eval": "eval.way"}.get(key, key)
    assert error({key: LEFT_OUT}) == f"{first}: it cannot be left out"


def test_mode_and_checkpoint_belong_together(tmp_path):
    path = tmp_path / "best.pt"
    assert "say which model" in error({"mode": "test"})
    assert error({"mode": "test", "checkpoint": str(path)}).endswith("there is no such file")
    path.touch()
    assert error({"mode": "test", "checkpoint": str(path)}) is None
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    inside = "it is a folder: give RUN_FOLDER/checkpoints/best.pt"
    assert error({"mode": "test", "checkpoint": str(tmp_path / "run")}).endswith(inside)
    assert "goes with mode=test" in error({"checkpoint": str(path)})


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "metarunner.X"])
def test_foreign_targets_are_refused(target):
    package = target.split(".")[0]
    told = error({"backbone._target_": target})
    assert told == (
        f"backbone._target_={target}: not allowed to run; "
        f"if you trust it, add plugins.allow=[{package}]"
    )
    assert error({"backbone._target_": target}, allow=[package]) is None


def test_targets_are_found_in_lists_of_lists():
    """A key whose committed value is an empty list takes a list of anything."""
    bad = {"_target_": "os.system", "command": "true"}
    told = error({"tracker.tags": [1, [{"deep": [bad]}]]})
    assert told.startswith("tracker.tags.1.0.deep.0._target_=os.system: not allowed")
    good = {"_target_": "torch.nn.ReLU"}
    assert error({"tracker.tags": [[good]]}).startswith("tracker.tags.0.0._target_=torch.nn.ReLU")
    assert list(targets({"a": [good, {"b": bad}]})) == [
        ("a.0._target_", "torch.nn.ReLU"),
        ("a.1.b._target_", "os.system"),
    ]


def test_flat():
    nested = {"a": {"b": {"c": 1}, "d": []}, "e": {}, "f": None}
    assert flat(nested) == {"a.b.c": 1, "a.d": [], "e": {}, "f": None}


def test_values_as_one_would_type_them():
    assert [shown(v) for v in (True, None, 0.5, "x", ["a", "b"])] == [
        *("true", "null", "0.5", "x"),
        "[a,b]",
    ]


COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 20, "eta_min": 0.0}
LINEAR = {"_target_": "torch.optim.lr_scheduler.LinearLR", "end_factor": 0.0, "total_iters": 20}


@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        (COSINE, 40, "cosine falls to 0 at step 20"),
        (COSINE, 20, None),
        (COSINE, 10, None),
        (COSINE | {"eta_min": 0.001}, 21, "cosine falls to 0.001 at step 20"),
        (LINEAR, 21, "linear falls to 0 at step 20"),
        (LINEAR, 20, None),
        (LINEAR | {"end_factor": 1.0}, 40, None),  # a beginning
        (COSINE | {"_target_": "torch.optim.lr_scheduler.StepLR"}, 40, None),
        ({}, 40, None),
    ],
)
def test_a_schedule_that_ends_before_the_run(schedule, steps, said):
    assert schedule_end({"schedule": schedule}, steps) == said
