import copy
import hashlib
import os
import pickle

import hydra
import pytest
import torch
from torch import nn

from metarun.configs.composing import plain
from metarun.configs.rules import conf_folder
from metarun.device import Device
from metarun.errors import UserError
from metarun.functional.metrics import ACCURACY
from metarun.runs import checkpoint
from metarun.training.loop import Plan, Progress, Training, fit

CPU = Device(torch.device("cpu"), "fp32")
CONFIG = {
    "name": "a",
    "seed": 0,
    "algo": {"_target_": "metarun.algos.protonet.ProtoNet", "temperature": 1.0},
    "backbone": {"_target_": "metarun.backbones.mlp.MLP", "widths": [4, 2]},
    "optim": {"lr": 0.001},
    "train": {"steps": 3, "split": "train"},
    "device": {"name": "cpu"},
}


class Noisy(nn.Module):
    """A network whose loss needs torch's random numbers and keeps running statistics."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 1)
        )

    def loss(self, x):
        return self.layers(x).square().mean(), {}


class Normal:
    """A sampler of normal numbers."""

    tasks = 2

    def __call__(self, split, generator):
        return torch.randn(6, 3, generator=generator)


def new_training(seed=0):
    algorithm = Noisy(seed)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    generator = torch.Generator().manual_seed(seed)
    return Training(algorithm, optimizer, schedule, generator, Progress())


def train_until(training, steps, save=lambda best: None):
    """Train, saving every third step; the losses."""
    records = fit(
        training,
        Plan(steps=steps, val_every=3, log_every=1, patience=0, clip_norm=0.0, split="train"),
        Normal(),
        None,
        CPU,
        metric=ACCURACY,
        validate=lambda: (1 / (1 + training.progress.step), 0.1),
        save=save,
        stop=lambda: False,
    )
    return [record["train/loss"] for record in records if "train/loss" in record]


def assert_same(a, b):
    """Equal to the last bit, through dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def whole_state(training):
    """All that a checkpoint holds, but for how long it took."""
    state = checkpoint.state(training, CONFIG, "data")
    return copy.deepcopy(state | {"progress": {**state["progress"], "seconds": None}})


def test_a_resumed_training_equals_an_unbroken_one(tmp_path):
    """Bit for bit: losses, weights, statistics, optimiser, schedule and all random numbers."""
    path = tmp_path / "checkpoints" / "last.pt"

    def save(best):
        if not path.exists():
            checkpoint.save(path, checkpoint.state(unbroken, CONFIG, "data"))

    unbroken = new_training()
    losses = train_until(unbroken, 7, save)
    wanted = whole_state(unbroken)

    resumed = new_training(seed=9)
    torch.rand(5)
    checkpoint.restore(resumed, checkpoint.load(path), "data")
    assert resumed.progress.step == 3
    assert train_until(resumed, 7) == losses[3:]
    assert_same(whole_state(resumed), wanted)
    assert len(set(losses)) == 7


@pytest.mark.parametrize("forgotten", ["sampler", "noise", "optimizer", "schedule", "algorithm"])
def test_without_any_part_it_would_not(forgotten):
    """So the test above can fail."""
    training = new_training()
    train_until(training, 3)
    content = copy.deepcopy(checkpoint.state(training, CONFIG, "data"))
    losses = train_until(training, 7)
    content[forgotten] = checkpoint.state(new_training(seed=9), CONFIG, "data")[forgotten]
    resumed = new_training(seed=9)
    checkpoint.restore(resumed, content, "data")
    assert train_until(resumed, 7) != losses


def test_what_is_saved_comes_back(tmp_path):
    content = {"a": torch.arange(3), "b": {"c": [1, 2.5, "x", None, True]}}
    checkpoint.save(tmp_path / "a.pt", content)
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert_same({key: loaded[key] for key in content}, content)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def seal(path):
    """Give the archive at `path` the checksum that it would have as a checkpoint."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content[:-2] + checkpoint.seal(digest))


def test_one_bit_is_enough_to_be_refused(tmp_path):
    """Wherever it is: names, pickle, weights, the archive's own checksums, the seal."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"weights": torch.arange(20)})
    sound = path.read_bytes()
    for place in range(0, len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last.pt: damaged"):
            checkpoint.load(path)


def test_without_its_checksum_it_is_refused(tmp_path):
    """And with one, what torch itself wrote is not: so the tests below refuse for their reasons."""
    path = tmp_path / "last.pt"
    torch.save({"format": checkpoint.FORMAT}, path)
    with pytest.raises(UserError, match=r"last.pt: damaged"):
        checkpoint.load(path)
    seal(path)
    assert checkpoint.load(path) == {"format": checkpoint.FORMAT}


class MakesAFolder:
    """Unpickled, it runs os.mkdir."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (torch.save, lambda path: torch.load(path, weights_only=False)),
        (
            lambda content, file: file.write(pickle.dumps(content, protocol=2) + b"\0\0"),
            lambda path: pickle.loads(path.read_bytes()),
        ),
    ],
)
def test_a_file_that_would_run_code_is_refused_and_has_not_run(tmp_path, write, read):
    """An unsuspecting reader does run it."""
    path, trace = tmp_path / "bad.pt", tmp_path / "it ran"
    with open(path, "wb") as file:
        write({"format": checkpoint.FORMAT, "algorithm": MakesAFolder(trace)}, file)
    seal(path)
    with pytest.raises(UserError, match=r"bad.pt: damaged, or not a checkpoint"):
        checkpoint.load(path)
    assert not trace.exists()
    read(path)
    assert trace.exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "last.pt"
    checkpoint.save(path, checkpoint.state(new_training(), CONFIG, "data"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=r"last.pt: damaged"):
        checkpoint.load(path)


def test_files_of_other_kinds_are_refused(tmp_path):
    torch.save({"format": 0}, tmp_path / "old.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello\n")
    (tmp_path / "yaml.pt").write_text("step: 1\n")
    for name in ("old", "list", "text", "yaml"):
        with pytest.raises(UserError, match="not a checkpoint of this metarun"):
            checkpoint.load(tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match="there is no such file"):
        checkpoint.load(tmp_path / "none.pt")


def changed(**keys):
    """CONFIG with other values, of dotted keys whose dot is spelled __."""
    config = copy.deepcopy(CONFIG)
    for key, value in keys.items():
        *groups, last = key.split("__")
        part = config
        for group in groups:
            part = part[group]
        part[last] = value
    return config


def test_another_config_is_refused_naming_its_keys():
    """What the run was started with, ready to be typed."""
    content = checkpoint.state(new_training(), CONFIG, "data")
    wanted = r"started with seed=0 optim.lr=0.001: say the same, or choose another name="
    with pytest.raises(UserError, match=wanted):
        checkpoint.refuse_another_run(content, changed(seed=1, optim__lr=0.1))


def test_a_run_of_an_earlier_metarun_is_told_so():
    """Whose class has moved since: what cannot be typed is not asked for."""
    content = {"config": changed(), "progress": {"step": 0}}
    content["config"]["algo"] = {**content["config"]["algo"], "_target_": "metarun.protonet.Net"}
    with pytest.raises(UserError, match=r"of a metarun with algo\._target_=metarun\.protonet\.Net"):
        checkpoint.refuse_another_run(content, changed())


@pytest.mark.parametrize(
    ("trained", "asked", "said"),
    [
        (["algo=maml"], [], "algo=maml"),
        ([], ["algo=maml"], "algo=protonet backbone.batch_norm=running"),
        (["backbone.width=8"], ["algo=matching"], "algo=protonet backbone.width=8"),
        (["backbone=resnet12"], ["backbone=conv6"], "backbone=resnet12"),
    ],
)
def test_another_model_is_refused_naming_its_choices(trained, asked, said):
    """And not what they set beside the model."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        theirs, ours = (plain(hydra.compose("config", [*o, "name=a"])) for o in (trained, asked))
    with pytest.raises(UserError, match=f"trained with {said}: say the same"):
        checkpoint.refuse_another_model({"config": theirs}, ours)
    checkpoint.refuse_another_model({"config": theirs}, theirs)


def test_the_optimiser_goes_on_in_its_own_way():
    """As a GPU's fused one from a CPU's checkpoint, and the other way round: the rest is kept."""
    for fused in (True, False):
        saved = new_training()
        saved.optimizer = torch.optim.Adam(saved.algorithm.parameters(), lr=0.5, fused=not fused)
        saved.schedule = torch.optim.lr_scheduler.StepLR(saved.optimizer, step_size=2)
        train_until(saved, 3)
        content = copy.deepcopy(checkpoint.state(saved, CONFIG, "data"))
        training = new_training(seed=9)
        training.optimizer = torch.optim.Adam(training.algorithm.parameters(), fused=fused)
        training.schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, step_size=2)
        checkpoint.restore(training, content, "data")
        group = training.optimizer.param_groups[0]
        assert (group["fused"], group["lr"]) == (fused, saved.optimizer.param_groups[0]["lr"])
        mine, its = (t.optimizer.state_dict()["state"] for t in (training, saved))
        assert_same(mine, its)
        train_until(training, 5)


def test_other_data_are_refused():
    content = checkpoint.state(new_training(), CONFIG, "data")
    with pytest.raises(UserError, match="the data has changed"):
        checkpoint.restore(new_training(), content, "other data")


def test_what_does_not_change_the_numbers_may_differ():
    content = checkpoint.state(new_training(), CONFIG, "data")
    checkpoint.refuse_another_run(content, changed(name="b", train__steps=9, device__name="cuda"))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def half(content, file):
        file.write(b"PK half of a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path)["step"] == 1


def test_weights_for_a_test():
    saved, fresh = new_training(), new_training(seed=5)
    content = checkpoint.state(saved, CONFIG, "data")
    checkpoint.refuse_another_model(content, changed(seed=7, optim__lr=1.0))
    checkpoint.restore_weights(fresh.algorithm, content)
    assert_same(dict(fresh.algorithm.state_dict()), dict(saved.algorithm.state_dict()))


def test_weights_of_another_network_are_refused():
    content = checkpoint.state(new_training(), CONFIG, "data")
    with pytest.raises(UserError, match=r"trained with algo.temperature=1.0: say the same"):
        checkpoint.refuse_another_model(content, changed(algo__temperature=2.0))


def test_weights_for_other_examples_are_refused_in_one_line():
    content = checkpoint.state(new_training(), CONFIG, "data")
    other = Noisy(0)
    other.layers[0] = nn.Linear(4, 5)
    with pytest.raises(UserError, match=r"do not fit this data's examples: .*layers.0.weight") as e:
        checkpoint.restore_weights(other, content)
    assert "\n" not in str(e.value)


def test_an_optimisers_state_lies_as_its_parameters_do():
    """Fused optimisers walk all of them side by side, wherever the state was saved from."""
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    saved = torch.optim.Adam([torch.nn.Parameter(weight.detach().contiguous())])
    saved.param_groups[0]["params"][0].grad = torch.randn(4, 3, 3, 3)
    saved.step()
    own = torch.optim.Adam([weight], fused=True)
    own.load_state_dict(checkpoint.on_this_device(saved.state_dict(), own))
    (before,), (after,) = saved.state.values(), own.state.values()
    for key in ("exp_avg", "exp_avg_sq"):
        assert before[key].stride() != weight.stride() == after[key].stride()
        assert torch.equal(after[key], before[key])
    assert after["step"] == before["step"] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", None),
        ("config", []),
        ("progress", None),
        ("progress", {"step": 1, "more": 2}),
        ("progress", "x"),
        ("progress", {"step": "x"}),
        ("progress", {"best": None}),
        ("algorithm", None),
        ("algorithm", [1]),
        ("optimizer", {}),
        ("optimizer", 5),
        ("schedule", None),
        ("sampler", "x"),
        ("noise", torch.zeros(3)),
        ("data_checksum", None),
    ],
)
def test_odd_content_is_refused(tmp_path, key, value):
    """Of the right format, and sealed: made by hand, or by another program."""
    training = new_training()
    content = checkpoint.state(training, CONFIG, "data") | {key: value}
    checkpoint.save(tmp_path / "checkpoints/last.pt", content)
    config = {**CONFIG, "mode": "train"}

    def go_on():
        content = checkpoint.to_start_from(config, tmp_path, {"run_id": ""})
        checkpoint.restore(training, content, "data")

    with pytest.raises(UserError) as refused:
        go_on()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["progress", "algorithm", "data_checksum"])
@pytest.mark.parametrize("value", [None, "x", [], {"a": 1}])
def test_an_odd_best_is_refused(tmp_path, key, value):
    """The same of best.pt, whose weights are tested."""
    training = new_training()
    training.progress.step = training.progress.best_step = 3
    content = checkpoint.state(training, CONFIG, "data") | {key: value}
    checkpoint.save(tmp_path / "checkpoints/best.pt", content)
    with pytest.raises(UserError, match=r"best\.pt"):
        checkpoint.take_best(training, "train", "data", tmp_path)
