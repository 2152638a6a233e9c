"""Whatever handles batches treats all kinds of example alike: a made-up data set of each."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import open_dict

from metarun import ranks
from metarun.configs.composing import plain
from metarun.configs.rules import conf_folder
from metarun.data import features
from metarun.data.kinds import FILLED_UP, KINDS, filled_up
from metarun.data.store import SPLITS
from metarun.errors import UserError
from metarun.modes.embed import embed
from metarun.parts import build, new_backbone
from metarun.samplers.ahead import can_draw_ahead
from metarun.seeds import stream
from metarun.suitability import backbones
from metarun.testing import answers as answering
from metarun.testing import pictures
from metarun.testing.answers import answers
from metarun.training import stacked as stacking
from metarun.training.loop import steps
from metarun.training.share import own_share
from metarun.training.stacked import Stacked, meta_batches
from metarun.training.step import Step
from tests.data import kinds

COMMON = (
    "way=3 query=2 sampler.tasks=4 eval.tasks=3 eval.episodes=7 eval.val_episodes=4 "
    "train.steps=2 optim=sgd optim.lr=0.01 optim.momentum=0 device=cpu tracker=none"
)
VARIABLE = (
    "sampler=variable way=4 sampler.least_way=2 sampler.query=2 eval.sampler.least_way=2 "
    "sampler.tasks=4 eval.query=2"
)
BINARY = "sampler=binary way=2 sampler.tasks=4"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EVERY = pytest.mark.parametrize("kind", KINDS)
PADDED = pytest.mark.parametrize("kind", FILLED_UP)


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """The data sets are made once for all these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_DATA", str(tmp_path_factory.mktemp("kinds")))
        yield


@cache
def composed(line):
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose("config", [*COMMON.split(), *line.split()])


def config(kind, line="", sources=None, **data):
    """The config of the command line `line` with the made-up data of this kind."""
    made = deepcopy(composed(line))
    with open_dict(made):
        target = {"_target_": "tests.data.kinds.load", "kind": kind}
        made.data = target | data
        if sources:
            each = {name: target | data for name, data in sources.items()}
            made.data = {"_target_": "metarun.data.mixture.load", "sources": each, "size": 6}
        made.backbone = {"_target_": f"tests.data.kinds.{kinds.BACKBONES[kind].__name__}"}
        made.plugins.allow = ["tests"]
    return plain(made)


def parts_of(kind, line="", **data):
    return build(config(kind, line, **data))


def trained(parts, count=2):
    """The figures of so many steps of training."""
    taken = steps(parts.training, parts.plan, parts.sampler, parts.training_split(), parts.device)
    return [{name: float(v) for name, v in next(taken).items()} for _ in range(count)]


def figures(parts, split="test"):
    """Each episode's, of each source, one after another."""
    scored = parts.score(parts.episodes_of(split, parts.protocol.episodes))
    return torch.cat([values for of_source in scored.values() for values in of_source.values()])


def gradient(parts, batch, chunk):
    step = Step(parts.training.algorithm, parts.training.optimizer, parts.device, chunk=chunk)
    parts.training.optimizer.zero_grad()
    loss = step.gradient(batch)["loss"]
    return [loss, *(p.grad.clone() for p in step.algorithm.parameters() if p.requires_grad)]


@EVERY
@pytest.mark.parametrize("algo", ["protonet", "maml"])
def test_training_and_test(kind, algo):
    """The network's output is known beforehand, and all its weights move."""
    parts = parts_of(kind, f"algo={algo} sampler.tasks=4")
    assert parts.network["output"] == [kinds.OUT]
    before = deepcopy(parts.training.algorithm.state_dict())
    assert all(0 < step["loss"] < 100 for step in trained(parts))
    after = parts.training.algorithm.state_dict()
    for name in before:
        if "weight" in name:
            assert not torch.equal(before[name], after[name]), name
    assert figures(parts).shape == (7,)


@EVERY
@pytest.mark.parametrize("algo", ["protonet", "maml"])
def test_ragged_tasks(kind, algo):
    """Each is to the algorithm what it is alone, whatever fills up its batch."""
    line = f"algo={algo} {VARIABLE}"
    parts = parts_of(kind, line)
    trained(parts, 1)
    episodes = parts.episodes_of("test", 7)["made_" + kind]
    algorithm = parts.training.algorithm
    scores = [algorithm.predict(episodes.batch(slice(i, i + 1)))[0] for i in range(4)]
    together = algorithm.predict(episodes.batch(slice(4)))
    for alone, filled in zip(scores, together, strict=True):
        torch.testing.assert_close(filled[: len(alone)], alone, **CLOSE)


@EVERY
def test_mixture(kind):
    """A source's test is what it is alone; its sequences are shorter than the other's."""
    short = {"length": 4 if kind in FILLED_UP else 6, "seed": 0}
    parts = parts_of(kind, sources={"short": short, "long": {"length": 6, "seed": 1}})
    alone = parts_of(kind, **short)
    scored = parts.score(parts.episodes_of("test", 7))["short"]["accuracy"]
    torch.testing.assert_close(scored, figures(alone))
    assert all(0 < step["loss"] < 100 for step in trained(parts))


@EVERY
def test_chunks(kind):
    """The gradient of two tasks at a time is that of all at once."""
    parts = parts_of(kind, "algo=maml sampler.tasks=4")
    batch = parts.sampler(parts.training_split(), stream(0, "train"))
    whole, by_chunks = (gradient(parts, batch, chunk) for chunk in (4, 2))
    torch.testing.assert_close(by_chunks, whole, **CLOSE)


@EVERY
@pytest.mark.parametrize("line", ["", VARIABLE])
def test_ranks(kind, line, monkeypatch):
    """Two draw the same tasks and compute two each, which may be cut to another length."""
    parts = parts_of(kind, line)
    split, of_ranks = parts.training_split(), []
    whole = parts.sampler(split, stream(0, "train"))
    for rank in range(2):
        one = SimpleNamespace(get_rank=lambda rank=rank: rank, get_world_size=lambda: 2)
        monkeypatch.setattr(ranks, "group", lambda one=one: one)
        own, share = own_share(parts.sampler)
        of_ranks.append(own(split, stream(0, "train")))
        assert share == 0.5
    for x, *own in zip(whole[:4], *(part[:4] for part in of_ranks), strict=True):
        wide = [filled_up(part, x.shape[1:]) for part in own]
        assert torch.equal(torch.cat(wide), x)


@EVERY
@pytest.mark.parametrize("algo", ["protonet", "maml"])
@pytest.mark.parametrize("ahead", [True, False])
def test_seeds_at_once(kind, algo, ahead, monkeypatch):
    """Each as by itself, whether or not their rows are drawn ahead; their batches may be of unlike
    lengths."""
    monkeypatch.setattr(stacking, "can_draw_ahead", lambda *_: ahead)
    line = f"algo={algo} sampler.tasks=2"
    several = [parts_of(kind, f"{line} seed={seed}") for seed in (0, 1)]
    wanted = [trained(parts_of(kind, f"{line} seed={seed}")) for seed in (0, 1)]
    trainings = [parts.training for parts in several]
    one = several[0]

    def new_optimizer(parameters):
        optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.01)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    for training in trainings:
        training.optimizer, training.schedule = new_optimizer(training.algorithm.parameters())
    stacked = Stacked(trainings, one.device, 0.0, new_optimizer)
    generators = [training.generator for training in trainings]
    batches = meta_batches(one.sampler, one.training_split(), generators)
    for step in range(2):
        for of_seed, alone in zip(stacked.step(next(batches))[0], wanted, strict=True):
            assert float(of_seed["loss"]) == pytest.approx(alone[step]["loss"], rel=1e-4)


@EVERY
@pytest.mark.parametrize("shared", [False, True])
def test_features_known_once(kind, shared, monkeypatch):
    """The same answers as when each episode is embedded; a stored example once, however many rows
    show it."""
    line = BINARY if shared else VARIABLE
    parts = parts_of(kind, line, shared=shared)
    (episodes,) = parts.episodes_of("test", 30).values()
    seen = []
    watch = parts.training.algorithm.backbone.register_forward_hook(
        lambda module, given, z: seen.append(len(z))
    )
    once = answers(parts.training.algorithm, episodes, tasks=3, device=parts.device)
    rows = torch.cat([episodes.rows.support, episodes.rows.query], dim=1)
    assert sum(seen) == len(episodes.split.stored(rows).unique())
    assert sum(seen) <= (12 if shared else kinds.CLASSES * kinds.EACH)
    watch.remove()
    monkeypatch.setattr(answering, "features_suffice", lambda algorithm: False)
    each = answers(parts.training.algorithm, episodes, tasks=3, device=parts.device)
    torch.testing.assert_close(once, each)


@EVERY
@pytest.mark.parametrize("shared", [False, True])
def test_embedded_and_read_again(kind, shared, tmp_path):
    """The same test on the stored features, which are vectors; as many as examples are stored."""
    line = BINARY if shared else ""
    parts = parts_of(kind, line, shared=shared)
    backbone = parts.training.algorithm.backbone.eval()
    made = {name: embed(backbone, parts.data.open(name), parts.device, name) for name in SPLITS}
    features.store(tmp_path / "features", made, {"data": kind})
    again = features.load(str(tmp_path / "features"))
    got, source = again.open("test"), parts.data.open("test")
    assert (got.kind, got.sizes, got.input_shape) == ("vectors", (), (kinds.OUT,))
    assert got.x.shape[0] == source.x.shape[0]
    assert torch.equal(got.first_row, source.first_row)
    rows = torch.arange(int(got.first_row[-1]))
    torch.testing.assert_close(got.take(rows), backbone(source.take(rows)), **CLOSE)
    wanted = figures(parts)
    parts.training.algorithm.backbone = torch.nn.Identity()
    torch.testing.assert_close(figures(parts._replace(data=again)), wanted)


@EVERY
def test_trained_on_validation_classes_too(kind):
    parts = parts_of(kind, "train.split=trainval train.patience=0")
    assert len(parts.training_split().classes) == 2 * kinds.CLASSES
    trained(parts)
    shared = parts_of(kind, f"{BINARY} train.split=trainval", shared=True).training_split()
    assert (len(shared.x), len(shared.index), len(shared.superclasses)) == (24, 66, 6)


@EVERY
def test_read_from_the_host(kind, monkeypatch):
    """What does not fit on the device is cut before it is copied there."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    for shared in (False, True):
        here = kinds.load(kind, shared=shared).open("train")
        there = replace(here, device=torch.device("meta"))
        rows = torch.arange(6).view(2, 3)
        taken = there.take(rows)
        assert taken.is_meta
        assert taken.shape == here.take(rows).shape
        assert taken.dtype == here.take(rows).dtype
        assert not can_draw_ahead(parts_of(kind).sampler, there)


@EVERY
def test_tasks_that_are_columns(kind):
    """Balanced in training, stratified in the test with all the rest for queries."""
    line = f"{BINARY} eval.sampler.support=4"
    for algo in ("protonet", "maml"):
        parts = parts_of(kind, f"algo={algo} {line}", shared=True)
        assert all(0 < step["loss"] < 100 for step in trained(parts))
        assert figures(parts).shape == (7,)
        (episodes,) = parts.episodes_of("test", 7).values()
        batch = episodes.batch(slice(3))
        assert (batch.support_x.shape[:2], batch.query_x.shape[:2]) == ((3, 4), (3, 7))


@PADDED
def test_padding_means_nothing(kind):
    """More of it, or that cut off which all of a batch have, gives the same features."""
    split = kinds.load(kind).open("train")
    torch.manual_seed(0)
    backbone = kinds.BACKBONES[kind](split.input_shape, split.sizes)
    whole = backbone(split.x.long())
    torch.testing.assert_close(backbone(kinds.longer(kind, split.x.long(), 5)), whole, **CLOSE)
    for rows in torch.arange(len(split.x)).split(5):
        torch.testing.assert_close(backbone(split.take(rows)), whole[rows], **CLOSE)
    lengths = {split.take(rows).shape[1] for rows in torch.arange(len(split.x)).split(2)}
    assert len(lengths) > 1


@pytest.mark.parametrize("kind", ["vectors", "tokens", "graphs"])
def test_examples_without_a_picture(kind, tmp_path):
    """None is drawn, and nothing fails."""
    parts = parts_of(kind)
    (episodes,) = parts.episodes_of("test", 2).values()
    pictures.draw(parts.training.algorithm, episodes, parts.device, tmp_path / "episode.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "backbone", "said"),
    [
        ("tokens", "conv4", "backbone=conv4 reads images, data=made_tokens has token sequences: "),
        ("graphs", "mlp", "backbone=mlp reads vectors and images, data=made_graphs has graphs: "),
        ("vectors", "resnet18", "has vectors: use backbone=identity, mlp, pixels"),
        ("vectors", "conv6", "backbone=conv6 reads images, data=made_vectors has vectors: "),
    ],
)
def test_a_backbone_that_reads_another_kind(kind, backbone, said):
    """Told before any network is made."""
    asked = config(kind)
    asked["backbone"] = plain(composed(f"backbone={backbone}"))["backbone"]
    with pytest.raises(UserError) as error:
        build(asked)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_every_committed_backbone_says_what_it_reads():
    """At least one kind that there is; and images as well as vectors are read by some."""
    reads = dict(backbones())
    assert set(reads) == {path.stem for path in (conf_folder() / "backbone").glob("*.yaml")}
    assert {"images", "vectors"} <= {kind for kinds in reads.values() for kind in kinds}
    assert all(kinds and set(kinds) <= KINDS.keys() for kinds in reads.values())


def test_vectors_in_the_shape_of_images_are_read_as_such():
    """Maps of features, and images whose numbers are no bytes."""
    maps = replace(kinds.load("images").outlines["test"], kind="vectors")
    data = SimpleNamespace(outlines={"test": maps}, name="maps")
    asked = config("images")
    asked["backbone"] = plain(composed("backbone=conv4 backbone.pools=1"))["backbone"]
    assert new_backbone(asked, data).out_shape[0] == 64


@pytest.mark.parametrize("kind", ["vectors", "tokens", "graphs"])
def test_only_images_are_augmented(kind):
    with pytest.raises(UserError, match=f"augment changes images, and data=made_{kind} has none"):
        parts_of(kind, "augment=crop_flip")


@pytest.fixture
def own(metarun, tmp_path):
    """The command line, with the made-up data and their networks as a person's own choices."""
    conf = tmp_path / "conf"
    for group in ("data", "backbone"):
        (conf / group).mkdir(parents=True)
    for kind, backbone in kinds.BACKBONES.items():
        loaded = f"_target_: tests.data.kinds.load\nkind: {kind}\nroot: null\n"
        (conf / "data" / f"made_{kind}.yaml").write_text(loaded)
        target = f"_target_: tests.data.kinds.{backbone.__name__}\n"
        (conf / "backbone" / f"reads_{kind}.yaml").write_text(target)
    given = [*("--config-dir", str(conf), "plugins.allow=[tests]"), *COMMON.split()]
    return lambda *typed: (*given, *(word for line in typed for word in line.split()))


@PADDED
def test_whole_runs(own, metarun, kind):
    """Training, several seeds at once, a test of what was trained, and its features."""
    data, network = f"data=made_{kind}", f"backbone=reads_{kind}"
    metarun.main(*own(data, network, "hydra.run.dir=outputs/a"))
    results = metarun.results("a")
    assert results["data"]["kind"] == kind
    assert not (metarun.folder / "outputs/a/episode.png").exists()
    best = "checkpoint=outputs/a/checkpoints/best.pt"
    metarun.main(*own(data, network, best, "mode=test", "hydra.run.dir=outputs/test"))
    metarun.main(*own(data, network, best, "mode=embed to=features", "hydra.run.dir=outputs/e"))
    on_features = "data=features data.root=features train.steps=0 hydra.run.dir=outputs/f"
    metarun.main(*own(on_features))
    for name in ("test", "f"):
        for key in ("accuracy", "episodes_sha256"):
            assert metarun.results(name)["test"][key] == results["test"][key]
    metarun.main(*own(data, network, "seeds=2", "hydra.run.dir=outputs/s"))
    said = metarun.error(*own(data, "backbone=conv4", "mode=embed", "hydra.run.dir=outputs/no"))
    assert said.startswith(f"backbone=conv4 reads images, data=made_{kind} has {KINDS[kind]}: ")
