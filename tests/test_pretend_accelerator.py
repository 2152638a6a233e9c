"""Everything that trains and tests, on a pretended GPU: tensors of both devices never meet, and the
host waits for the GPU only where it must."""

from functools import cache
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.configs.composing import plain
from metarun.configs.rules import conf_folder
from metarun.data import split as split_module
from metarun.data.functions import sinusoid
from metarun.data.mixture import Mixture
from metarun.data.split import stack_classes
from metarun.device import Device
from metarun.episodes import Episodes
from metarun.functional.metrics import ACCURACY, METRICS
from metarun.modes.embed import embed
from metarun.parts import build_optimizer
from metarun.runs import checkpoint
from metarun.samplers.functions import Functions
from metarun.samplers.uniform import Uniform
from metarun.samplers.variable import Variable
from metarun.seeds import stream
from metarun.testing.answers import answers
from metarun.testing.fixed_episodes import fixed_episodes, fixed_functions
from metarun.testing.pictures import draw
from metarun.tracking import pictures
from metarun.training.loop import Plan, Progress, Training, fit, steps
from metarun.training.stacked import Stacked, meta_batches
from metarun.training.step import Step
from tests.pretend import CUDA, Mixed, OnGPU, pretended_gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, for test_gpu.py")

# Where the host may wait for the GPU: file, function and operation. Each test says which of them it
# meets, all of them, and meets no other.
LOG = {"training/loop.py Window.close _to_copy"}  # a line of the log: its steps' figures at once
CHECKPOINT = {"training/loop.py refuse_lost_weights _local_scalar_dense"}  # of finite weights alone
FIGURES = {"testing/answers.py answers_at_once _to_copy"}  # of all the tasks of a test, at its end
UNCOUNTED = {"episodes.py Episodes.sizes_on_cpu _to_copy"}  # ragged, from a sampler of one's own

WAY, SHAPE = 3, (1, 16, 16)
SIZES = [f"way={WAY}", "shot=2", "query=2", "sampler.tasks=2", "backbone.width=8"]
DEVICE = Device(CUDA, "fp32")


def committed(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(conf_folder()) / group).glob("*.yaml"))


@cache
def composed(*overrides: str):
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose("config", list(overrides))


@pytest.fixture
def gpu():
    with pretended_gpu() as gpu:
        yield gpu


def waits(gpu) -> set[str]:
    """Where the host has waited since this was last asked."""
    places = {f"{wait.file} {wait.function} {wait.operation}" for wait in gpu.waits}
    gpu.waits.clear()
    return places


def some_split(seed: int = 0, channels: int = 1, size: int = 16):
    """Eight classes of eight images, in superclasses of three and of two."""
    generator = torch.Generator().manual_seed(seed)
    shape = (8, channels, size, size)
    images = {c: torch.randint(256, shape, generator=generator).to(torch.uint8) for c in "abcdefgh"}
    superclasses = dict(zip("abcdefgh", "xxxyyyzz", strict=True))
    mean, std = (0.5,) * channels, (0.25,) * channels
    return stack_classes("images", images, superclasses, mean, std)


def built(config, shape: tuple[int, ...] = SHAPE):
    """The algorithm of the config, and its sampler."""
    torch.manual_seed(0)
    backbone = instantiate(config.backbone, input_shape=shape)
    algorithm = instantiate(config.algo, backbone=backbone, _convert_="all")
    return algorithm, instantiate(config.sampler)


def optimizer_of(algorithm, name: str = "adam"):
    """The committed optimiser, as a run on a GPU has it."""
    return build_optimizer(plain(composed(f"optim={name}")), algorithm.parameters())[0]


def train_and_test(algorithm, batch, episodes, optimizer: str = "adam") -> None:
    """A step on the batch; then all that the algorithm says of the episodes in tests."""
    before = [p.detach().clone() for p in algorithm.parameters()]
    figures = Step(algorithm, optimizer_of(algorithm, optimizer), DEVICE, clip_norm=1.0)(batch)
    outputs = [*figures.values()]
    algorithm.eval()
    with torch.no_grad():
        for method in ("predict", "predict_and_measure", "stages"):
            if hasattr(algorithm, method):
                outputs += tree_leaves(getattr(algorithm, method)(episodes))
    assert all(isinstance(output, OnGPU) for output in outputs)
    after = algorithm.parameters()
    assert any((a.numbers != b.numbers).any() for a, b in zip(after, before, strict=True))


# ── the pretended GPU ───────────────────────────────────────────────────────────────────────────


def on_gpu(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).to(CUDA, non_blocking=True)


MIXING = {
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a @ b,
    "side by side": lambda a, b: torch.cat([a, b]),
    "rows of the host's": lambda a, b: b[a.long()],
    "in place": lambda a, b: b.add_(a),
    "a choice": lambda a, b: torch.where(a > 1, a, b),
    "a number that is no operand": lambda a, b: torch.stack([a[0], b[0]]),
    "within a task": lambda a, b: torch.vmap(lambda x: x * b)(a),
    "within a gradient": lambda a, b: torch.func.grad(lambda x: (x * b).sum())(a),
}


@pytest.mark.parametrize("operation", MIXING)
def test_tensors_of_two_devices(gpu, operation):
    with pytest.raises(Mixed):
        MIXING[operation](on_gpu(1, 2), torch.tensor([1.0, 2.0]))


WAITING = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "list": lambda x: x.tolist(),
    "copy here": lambda x: x.cpu(),
    "copy here, asked not to wait": lambda x: x.to("cpu", non_blocking=True),
    "copy there": lambda x: torch.zeros(2).to(CUDA),
    "copy into": lambda x: x.copy_(torch.zeros(2)),
    "numbers": lambda x: torch.tensor([1, 2], device=CUDA),
    "equal": lambda x: torch.equal(x, x),
    "places": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "set by mask": lambda x: x.index_put_((x > 1,), x[:1]),
    "distinct": lambda x: x.unique(),
    "counts": lambda x: x.long().bincount(),
    "repeated": lambda x: x.repeat_interleave(x.long()),
    "inverse": lambda x: torch.linalg.inv(torch.diag(x)),
    "rows, from the host": lambda x: x[torch.tensor([0, 1])],
    "rows, from Python": lambda x: x[[0, 1]],
    "row": lambda x: x[x[0].long()],
}


@pytest.mark.parametrize("operation", WAITING)
def test_where_the_host_waits(gpu, operation):
    x = on_gpu(1, 2)
    assert gpu.waits == []
    WAITING[operation](x)
    (wait,) = gpu.waits
    assert (wait.file, wait.function) == ("test_pretend_accelerator.py", "<lambda>")


GOING_ON = {
    "copy there, asked not to wait": lambda x: torch.zeros(2).to(CUDA, non_blocking=True),
    "pinned": lambda x: torch.zeros(2).pin_memory().to(CUDA, non_blocking=True),
    "copy into": lambda x: x.copy_(torch.zeros(2), non_blocking=True),
    "a number of the host's": lambda x: x * torch.tensor(2.0),
    "filled": lambda x: x.masked_fill(x > 1, 0),
    "set by mask": lambda x: x.__setitem__(x > 1, 0.0),
    "rows": lambda x: x[x.long() - 1],
    "rows that count up": lambda x: x[torch.arange(2, device=x.device)],
    "repeated": lambda x: x.repeat_interleave(2),
    "drawn": lambda x: torch.rand(2, device=CUDA) + torch.rand_like(x),
    "one-hot": lambda x: torch.nn.functional.one_hot(x.long(), 3),
    "shape": lambda x: x.expand(3, 2).reshape(len(x), -1),
    "gradient": lambda x: torch.func.grad(lambda y: y.square().sum())(x),
}


@pytest.mark.parametrize("operation", GOING_ON)
def test_where_the_host_goes_on(gpu, operation):
    x = on_gpu(1, 2)
    result = GOING_ON[operation](x)
    assert gpu.waits == []
    assert result is None or isinstance(result, OnGPU)


class Curious(ProtoNet):
    """It looks at its loss."""

    def loss(self, episodes):
        loss, metrics = super().loss(episodes)
        assert loss.item() > 0
        return loss, metrics


class Absent(ProtoNet):
    """It has left something on the host."""

    def predict(self, episodes):
        return super().predict(episodes) + torch.zeros(episodes.way)


def test_mistakes_of_an_algorithm(gpu):
    batch = SAMPLER(some_split().to(CUDA), stream(0, "train"))
    curious, absent = (kind(protonet().backbone).to(CUDA) for kind in (Curious, Absent))
    waits(gpu)
    Step(curious, optimizer_of(curious), DEVICE)(batch)
    assert waits(gpu) == {"training/step.py Step.gradient _local_scalar_dense"}
    with pytest.raises(Mixed):
        absent.predict(batch)


def three_steps(new, device: torch.device) -> list[torch.Tensor]:
    """The losses, and the weights after them."""
    torch.manual_seed(0)
    algorithm = new().to(device)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1, momentum=0.9)
    step = Step(algorithm, optimizer, Device(device, "fp32"), clip_norm=1.0)
    split, generator = some_split().to(device), stream(0, "train")
    losses = [step(SAMPLER(split, generator))["loss"] for _ in range(3)]
    return [each.detach().cpu() for each in (*losses, *algorithm.parameters())]


def test_its_numbers_are_the_cpu_s():
    for new in (protonet, adapting):
        with pretended_gpu():
            there = three_steps(new, CUDA)
        torch.testing.assert_close(there, three_steps(new, torch.device("cpu")))


def test_nothing_of_it_is_left():
    with pretended_gpu():
        x = torch.zeros(2, device=CUDA)
        assert (x.device, x.is_cuda, torch.zeros(2).is_cuda) == (CUDA, True, False)
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert "device" not in vars(torch.Tensor)
    assert not torch._C._only_lift_cpu_tensors()


# ── algorithms ──────────────────────────────────────────────────────────────────────────────────

ALGORITHMS = committed("algo")
MEASURED = "algo.measured_steps=[0,1]"
FEW_STEPS = {
    **{name: [MEASURED] for name in ("anil", "boil", "fomaml", "maml", "meta_sgd", "proto_maml")},
    "mamlpp": [MEASURED, "algo.inner_steps=2"],
    "meta_lstm": ["algo.inner_steps=2"],
    "mann": ["backbone=conv4", "algo.rows=8", "algo.units=8"],
    "reptile": ["algo.test_steps=2", "algo.inner_steps=2"],
}
OF_SAMPLER = {
    "mann": ["sampler.presentations=3"],
    "reptile": ["sampler.shot=1", "sampler.query=1"],
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms(gpu, name):
    """Each on the batches of its own sampler, and on those of tests."""
    options = [*FEW_STEPS.get(name, []), *OF_SAMPLER.get(name, [])]
    algorithm, sampler = built(composed(f"algo={name}", *SIZES, *options))
    algorithm, split = algorithm.to(CUDA), some_split().to(CUDA)
    waits(gpu)
    episodes = Uniform(WAY, 2, 2, tasks=2)(split, stream(0, "val"))
    train_and_test(algorithm, sampler(split, stream(0, "train")), episodes)
    assert waits(gpu) == set()


OTHER_BATCHES = {"mann", "siamese"}  # train on sequences, and on pairs


@pytest.mark.parametrize("name", ALGORITHMS)
def test_tasks_of_unlike_sizes(gpu, name):
    options = [*FEW_STEPS.get(name, []), *(["algo.shot=3"] if name == "snail" else [])]
    ragged = ["sampler=variable", "sampler.least_way=2", "sampler.shot=0", "sampler.query=0"]
    algorithm, sampler = built(composed(f"algo={name}", *SIZES, *ragged, *options))
    algorithm, split = algorithm.to(CUDA), some_split().to(CUDA)
    waits(gpu)
    episodes = sampler(split, stream(0, "train"))
    assert episodes.ways is not None
    if name in OTHER_BATCHES:
        assert isinstance(algorithm.predict(episodes), OnGPU)
    else:
        train_and_test(algorithm, episodes, episodes)
    assert waits(gpu) == set()


def test_tasks_of_unlike_sizes_that_nobody_counted(gpu):
    """It takes longer, and scores are the same."""
    algorithm = protonet().to(CUDA).eval()
    episodes = RAGGED(some_split().to(CUDA), stream(0, "train"))
    wanted = algorithm.predict(episodes)
    waits(gpu)
    got = algorithm.predict(episodes._replace(sizes=None))
    assert waits(gpu) == UNCOUNTED
    assert torch.equal(got.numbers, wanted.numbers)


@pytest.mark.parametrize("sampler", ["uniform", "variable"])
def test_full_context_embeddings(gpu, sampler):
    options = ["algo.fce=true", f"sampler={sampler}"]
    options += ["sampler.least_way=2"] if sampler == "variable" else []
    algorithm, sampler = built(composed("algo=matching", *SIZES, *options))
    episodes = sampler(some_split().to(CUDA), stream(0, "train"))
    algorithm.to(CUDA)
    waits(gpu)
    train_and_test(algorithm, episodes, episodes)
    assert waits(gpu) == set()


OTHER_WAYS = {
    "maml_checkpointed": ["algo=maml", "algo.checkpoint_steps=true", *FEW_STEPS["maml"]],
    "mamlpp_inductive": ["algo=mamlpp", "algo.running_statistics=true", *FEW_STEPS["mamlpp"]],
    "mann_strings": ["algo=mann", "algo.labels=string", *FEW_STEPS["mann"], *OF_SAMPLER["mann"]],
    "mann_feedback": ["algo=mann", "algo.feedback=true", *FEW_STEPS["mann"], *OF_SAMPLER["mann"]],
    "protonet_cosine": ["algo=protonet", "algo.distance=cosine", "algo.learn_temperature=true"],
    "protonet_batch": ["algo=protonet", "backbone.batch_norm=batch"],
    "relation_support": ["algo=relation", "backbone.batch_norm=support"],
    "reptile_transductive": ["algo=reptile", "algo.transductive=true", *FEW_STEPS["reptile"]]
    + OF_SAMPLER["reptile"],
}


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_other_ways_of_algorithms(gpu, name):
    algorithm, sampler = built(composed(*SIZES, *OTHER_WAYS[name]))
    algorithm, split = algorithm.to(CUDA), some_split().to(CUDA)
    waits(gpu)
    episodes = Uniform(WAY, 2, 2, tasks=2)(split, stream(0, "val"))
    train_and_test(algorithm, sampler(split, stream(0, "train")), episodes)
    assert waits(gpu) == set()


def predicts_values(name: str) -> bool:
    config = OmegaConf.load(Path(conf_folder()) / "algo" / f"{name}.yaml")
    return getattr(get_class(config.algo._target_), "regression", False)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if predicts_values(name)])
def test_regression(gpu, name):
    options = [*FEW_STEPS.get(name, []), "sampler.tasks=2"]
    config = composed("data=sinusoid", f"algo={name}", "backbone.widths=[8]", *options)
    algorithm, sampler = built(config, shape=(1,))
    family = instantiate(config.data).open("train").to(CUDA)
    algorithm.to(CUDA)
    waits(gpu)
    batch = sampler(family, stream(0, "train"))
    train_and_test(algorithm, batch, batch)
    assert waits(gpu) == set()


@pytest.mark.parametrize("name", committed("optim"))
def test_optimizers(gpu, name):
    algorithm, sampler = built(composed("algo=protonet", *SIZES))
    batch = sampler(some_split().to(CUDA), stream(0, "train"))
    algorithm.to(CUDA)
    waits(gpu)
    train_and_test(algorithm, batch, batch, optimizer=name)
    assert waits(gpu) == set()


# ── networks ────────────────────────────────────────────────────────────────────────────────────

BACKBONES = {  # and the images that they take
    "conv4": (["width=8"], SHAPE),
    "conv4_narrow": (["width=8"], SHAPE),
    "conv6": (["width=8"], SHAPE),
    "identity": ([], SHAPE),
    "koch2015": (["features=8"], (1, 66, 66)),
    "mlp": (["widths=[8,8]"], SHAPE),
    "pixels": ([], SHAPE),
    "r2d2": (["widths=[4,4,8,8]"], SHAPE),
    "resnet10": (["widths=[4,4,8,8]", "stem=small"], SHAPE),
    "resnet12": (["widths=[4,4,8,8]"], SHAPE),
    "resnet18": (["widths=[4,4,8,8]"], (1, 32, 32)),
    "vit_small": (["patch=8", "width=8", "depth=1", "heads=2"], SHAPE),
    "wrn28_10": (["depth=10", "widening=1", "dropout=0.3"], SHAPE),
}


@pytest.mark.parametrize("name", sorted({*committed("backbone")} - {"timm", "torchvision"}))
def test_backbones(gpu, name):
    options, shape = BACKBONES[name]
    config = composed(f"backbone={name}", *(f"backbone.{option}" for option in options))
    network = instantiate(config.backbone, input_shape=shape).to(CUDA)
    x = torch.rand(4, *shape, device=CUDA)
    waits(gpu)
    for training in (True, False):
        z = network.train(training)(x)
        assert isinstance(z, OnGPU)
        if z.requires_grad:
            z.sum().backward()
    assert all(isinstance(p.grad, OnGPU) for p in network.parameters())
    assert waits(gpu) == set()


# ── data ────────────────────────────────────────────────────────────────────────────────────────


def resident(patch):
    return some_split().to(CUDA)


def on_the_host(patch):
    """A split that did not fit on the GPU."""
    patch.setattr(split_module, "RESIDENT_SHARE", 0.0)
    split = some_split().to(CUDA)
    assert not isinstance(split.x, OnGPU)
    return split


def mixed(patch):
    return Mixture({"a": some_split(0), "b": some_split(1)}, SHAPE, "images").to(CUDA)


@pytest.mark.parametrize("place", [resident, on_the_host, mixed])
@pytest.mark.parametrize("name", sorted({*committed("sampler")} - {"functions"}))
def test_batches(gpu, monkeypatch, place, name):
    options = {"variable": ["sampler.least_way=2"], "sequences": ["sampler.presentations=3"]}
    options |= {"binary": ["way=2", "sampler.support=4"]}
    config = composed(f"sampler={name}", *SIZES, *options.get(name, []))
    sampler, split = instantiate(config.sampler), place(monkeypatch)
    sampler.check(split)
    waits(gpu)
    for _ in range(2):
        batch = sampler(split, stream(0, "train"))
        tensors = {k: v for k, v in batch._asdict().items() if isinstance(v, torch.Tensor)}
        assert [k for k, v in tensors.items() if not isinstance(v, OnGPU)] == (
            ["sizes"] if name in ("variable", "binary") else []
        )
    assert waits(gpu) == set()


@pytest.mark.parametrize("name", sorted({*committed("augment")} - {"none"}))
def test_augmentations(gpu, name):
    augment = instantiate(composed(f"augment={name}").augment)
    for channels in (1, 3):
        split = some_split(channels=channels).to(CUDA).augmented(augment)
        waits(gpu)
        assert isinstance(split.take(torch.arange(5)), OnGPU)
        assert waits(gpu) == set()


# ── training and testing ────────────────────────────────────────────────────────────────────────

SAMPLER = Uniform(WAY, shot=2, query=2, tasks=3)


def protonet():
    return ProtoNet(Conv4(SHAPE, width=8, batch_norm="running"))


def training_of(algorithm, seed: int = 0, optimizer: str = "adam") -> Training:
    optimizer = optimizer_of(algorithm, optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return Training(algorithm, optimizer, schedule, stream(seed, "train"), Progress())


def plan(**settings) -> Plan:
    defaults = {"steps": 6, "val_every": 6, "log_every": 3, "patience": 0, "clip_norm": 1.0}
    return Plan(**{**defaults, "split": "train", **settings})


@pytest.mark.parametrize("place", [resident, on_the_host, mixed])
def test_steps(gpu, monkeypatch, place):
    """One after another, with no word from the GPU; the rows are drawn ahead where they can be."""
    training = training_of(protonet().to(CUDA))
    split = place(monkeypatch)
    waits(gpu)
    taken = steps(training, plan(), SAMPLER, split, DEVICE)
    for _ in range(3):
        assert isinstance(next(taken)["loss"], OnGPU)
        training.schedule.step()
    assert waits(gpu) == set()


def test_chunks_of_tasks(gpu):
    algorithm = ProtoNet(Conv4(SHAPE, width=8, batch_norm="batch")).to(CUDA)
    batch = SAMPLER(some_split().to(CUDA), stream(0, "train"))
    step = Step(algorithm, optimizer_of(algorithm), DEVICE, chunk=2)
    waits(gpu)
    assert isinstance(step(batch)["loss"], OnGPU)
    assert waits(gpu) == set()


def test_a_training(gpu):
    """It waits at each line of the log, once, and at the validation's end."""
    algorithm, split = protonet().to(CUDA), some_split().to(CUDA)
    episodes = fixed_episodes(split, SAMPLER, name="val", seed=0, episodes=5)
    found = []

    def validate():
        found.append(waits(gpu))
        answers(algorithm, episodes, tasks=2, device=DEVICE)
        return 0.5, 0.1

    waits(gpu)
    records = fit(
        training_of(algorithm),
        plan(),
        SAMPLER,
        split,
        DEVICE,
        metric=ACCURACY,
        validate=validate,
        save=lambda best: None,
        stop=lambda: False,
    )
    for record in records:
        closes = [wait for wait in gpu.waits if wait.function == "Window.close"]
        assert len(closes) == (2 if "train/loss" in record else 0)  # the loss, the accuracy
        found.append(waits(gpu))
    assert found == [LOG, LOG, CHECKPOINT, FIGURES]


def features_once():
    """Each example is embedded once, and tests are on features."""
    return protonet()


def adapting():
    config = composed("algo=maml", *SIZES, *FEW_STEPS["maml"])
    return built(config)[0]


FUNCTIONS = Functions(shot=3, query=4, tasks=1)
RAGGED = Variable(WAY, 2, 0, 0, 4, 20, 5, least_weight=0.5, most_weight=2.0, classes="any", tasks=1)


@pytest.mark.parametrize("sampler", [SAMPLER, RAGGED])
@pytest.mark.parametrize(
    ("new", "place"),
    [
        (features_once, resident),
        (features_once, on_the_host),
        (features_once, mixed),
        (adapting, resident),
    ],
)
def test_a_test(gpu, monkeypatch, new, place, sampler):
    algorithm, split = new().to(CUDA), place(monkeypatch)
    episodes = fixed_episodes(split, sampler, name="test", seed=0, episodes=5)
    waits(gpu)
    for figures in answers(algorithm, episodes, tasks=2, device=DEVICE, measures=True).values():
        assert len(figures) == 5
        assert not isinstance(figures, OnGPU)
    assert waits(gpu) == FIGURES


@pytest.mark.parametrize("name", METRICS)
def test_metrics(gpu, name):
    outputs, classes = (
        torch.rand(2, 6, 2, device=CUDA),
        torch.arange(12, device=CUDA).view(2, 6) % 2,
    )
    targets = torch.zeros_like(outputs) if METRICS[name].of == "values" else classes
    figures = METRICS[name].of_tasks(outputs, targets)
    assert isinstance(figures, OnGPU)
    assert figures.shape == (2,)
    assert waits(gpu) == set()


def test_a_test_of_functions(gpu):
    config = composed("data=sinusoid", "algo=cnp", "backbone.widths=[8]")
    algorithm, _ = built(config, shape=(1,))
    family = instantiate(config.data).open("test").to(CUDA)
    algorithm.to(CUDA)
    episodes = fixed_functions(family, FUNCTIONS, name="test", seed=0, episodes=5)
    waits(gpu)
    answers(algorithm, episodes, tasks=2, device=DEVICE)
    assert waits(gpu) == FIGURES


def test_pictures(gpu, monkeypatch, tmp_path):
    drawn = []
    for kind in ("episode", "functions"):
        monkeypatch.setattr(pictures, kind, lambda *content: drawn.extend(tree_leaves(content)))
    split, family = some_split().to(CUDA), sinusoid([1, 2], [0, 1], [-1, 1]).open("test").to(CUDA)
    config = composed("data=sinusoid", "algo=maml", "backbone.widths=[8]", *FEW_STEPS["maml"])
    classifying, regressing = protonet().to(CUDA), built(config, shape=(1,))[0].to(CUDA)
    episodes = fixed_episodes(split, RAGGED, name="test", seed=0, episodes=2)
    functions = fixed_functions(family, FUNCTIONS, name="test", seed=0, episodes=2)
    waits(gpu)
    draw(classifying, episodes, DEVICE, tmp_path)
    assert waits(gpu) == {"testing/pictures.py draw_first _to_copy"}
    draw(regressing, functions, DEVICE, tmp_path)
    assert waits(gpu) == {"testing/pictures.py draw_functions _to_copy"}
    assert not any(isinstance(x, OnGPU) for x in drawn)


def test_embedding_a_split(gpu):
    split, backbone = some_split().to(CUDA), protonet().backbone.to(CUDA).eval()
    waits(gpu)
    features = embed(backbone, split, DEVICE, "train")
    assert not isinstance(features.x, OnGPU)
    assert waits(gpu) == {"modes/embed.py embed _to_copy"}  # a part of the split at a time


@pytest.mark.parametrize("before", [torch.device("cpu"), CUDA])
@pytest.mark.parametrize("optimizer", committed("optim"))
def test_going_on_from_a_checkpoint(gpu, before, optimizer):
    """A run's state, read from a file and so on the CPU, goes on on the GPU as it would have."""
    first, second = (
        training_of(protonet().to(device), optimizer=optimizer) for device in (before, CUDA)
    )

    def taken(training, device):
        return steps(training, plan(), SAMPLER, some_split().to(device), Device(device, "fp32"))

    unbroken = taken(first, before)
    next(unbroken)
    content = checkpoint.state(first, {}, data_checksum="")
    checkpoint.restore(second, tree_map_only(OnGPU, lambda x: x.cpu(), content), "")
    going_on = taken(second, CUDA)
    for _ in range(2):
        wanted, got = (next(of)["loss"] for of in (unbroken, going_on))
        torch.testing.assert_close(got.cpu(), wanted.cpu())
        waits(gpu)
    next(going_on)
    assert waits(gpu) == set()


@pytest.mark.parametrize("new", [protonet, adapting])
def test_seeds_at_once(gpu, new):
    split = some_split().to(CUDA)
    several = [training_of(new().to(CUDA).train(), seed) for seed in range(2)]

    def new_optimizer(parameters):
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], fused=True)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)

    stacked = Stacked(several, DEVICE, 0.5, new_optimizer)
    batches = meta_batches(SAMPLER, split, [each.generator for each in several])
    stacked.rehearse(next(batches))
    waits(gpu)
    for _ in range(2):
        figures, _ = stacked.step(next(batches))
        assert all(isinstance(each["loss"], OnGPU) for each in figures)
    assert waits(gpu) == set()
    stacked.hand_out()
    assert waits(gpu) == set()


WITHOUT_INNER_LOOPS = ["cnp", "mann", "matching", "protonet", "relation", "siamese", "snail"]


@pytest.fixture
def without_cudnn():
    """Convolutions by torch itself: cuDNN's cannot be pretended."""
    before = torch._C._get_cudnn_enabled()
    # Not torch.backends.cudnn.flags, which cannot read what the newer way of precision has set.
    torch._C._set_cudnn_enabled(False)
    yield
    torch._C._set_cudnn_enabled(before)


@pytest.mark.parametrize("name", WITHOUT_INNER_LOOPS)
def test_bfloat16(monkeypatch, without_cudnn, name):
    """Under torch's own fake tensors, which autocast does heed but no gradient goes through: the
    network computes in bfloat16 and the rule of the paper in float32."""
    algorithm, _ = built(composed(f"algo={name}", *SIZES, *FEW_STEPS.get(name, [])))
    device = Device(CUDA, "bf16")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        algorithm.to(CUDA)
        x, y = torch.rand(2, 6, *SHAPE, device=CUDA), torch.zeros(2, 6, device=CUDA).long()
        with torch.no_grad(), device.autocast():
            assert algorithm.backbone(x[0]).dtype == torch.bfloat16
            scores = algorithm.predict(Episodes(x, y, x, y, WAY))
        assert (scores.device, scores.dtype) == (CUDA, torch.float32)
