"""What a GPU must answer as the CPU does."""

import pytest
import torch

from metarun.algos.maml import MAML
from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.data import split as split_module
from metarun.data.split import stack_classes
from metarun.device import choose
from metarun.functional.metrics import ACCURACY
from metarun.samplers.ahead import rows_ahead
from metarun.samplers.uniform import Uniform
from metarun.seeds import stream
from metarun.testing.answers import answers
from metarun.testing.fixed_episodes import fixed_episodes
from metarun.training.loop import Plan, Progress, Training, fit, steps
from metarun.training.stacked import Stacked, meta_batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

SAMPLER = Uniform(way=3, shot=2, query=3, tasks=4)


@pytest.fixture
def cuda():
    """The GPU in full precision, and torch's settings as they were afterwards."""
    precision = torch.backends.fp32_precision
    yield choose("cuda", "fp32", deterministic=False)
    torch.backends.fp32_precision = precision
    torch.use_deterministic_algorithms(False)


def some_split():
    """Six classes of eight noisy images."""
    generator = torch.Generator().manual_seed(0)
    classes = {}
    for name in "abcdef":
        middle = torch.randint(40, 216, (1, 1, 28, 28), generator=generator)
        noise = torch.randint(-40, 40, (8, 1, 28, 28), generator=generator)
        classes[name] = (middle + noise).to(torch.uint8)
    return stack_classes("images", classes, mean=(0.5,), std=(0.25,))


@pytest.fixture
def algorithm():
    torch.manual_seed(0)
    return ProtoNet(Conv4((1, 28, 28), width=16, batch_norm="running"))


@pytest.mark.parametrize("share", [0.5, 0.0])  # of the memory: resident, and read from the host
def test_the_same_episodes(cuda, monkeypatch, share):
    monkeypatch.setattr(split_module, "RESIDENT_SHARE", share)
    here, there = some_split(), some_split().to(cuda.torch_device)
    assert there.x.is_cuda == (share > 0)
    for seed in range(5):
        wanted = SAMPLER(here, stream(seed, "train"))
        got = SAMPLER(there, stream(seed, "train"))
        assert got.way == wanted.way
        for mine, its in zip(got[:4], wanted[:4], strict=True):
            assert mine.is_cuda
            torch.testing.assert_close(mine.cpu(), its, rtol=0, atol=1e-6)


def test_the_same_fixed_episodes(cuda):
    sampler = Uniform(way=3, shot=1, query=2, tasks=1)
    here, there = (
        fixed_episodes(split, sampler, name="test", seed=0, episodes=50)
        for split in (some_split(), some_split().to(cuda.torch_device))
    )
    assert here.sha256 == there.sha256


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_same_scores_and_gradients(cuda, algorithm, distance, training):
    algorithm = ProtoNet(algorithm.backbone, distance=distance).train(training)
    here = SAMPLER(some_split(), stream(0, "train"))
    there = SAMPLER(some_split().to(cuda.torch_device), stream(0, "train"))
    state = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    answers = []
    for device, episodes in (("cpu", here), (cuda.torch_device, there)):
        algorithm.load_state_dict(state)
        algorithm.to(device).zero_grad()
        scores = algorithm.predict(episodes)
        algorithm.load_state_dict(state)  # the running statistics, moved by the prediction
        algorithm.loss(episodes)[0].backward()
        gradient = algorithm.backbone[0][0].weight.grad
        answers.append((scores.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-3, atol=1e-4)


def test_the_same_accuracies(cuda, algorithm):
    sampler = Uniform(way=3, shot=1, query=4, tasks=1)
    values = []
    for device in (choose("cpu", "fp32", deterministic=False), cuda):
        split = some_split().to(device.torch_device)
        episodes = fixed_episodes(split, sampler, name="test", seed=0, episodes=60)
        algorithm.to(device.torch_device)
        values.append(answers(algorithm, episodes, tasks=8, device=device)["accuracy"])
    assert values[1].device.type == "cpu"
    # A query as near to two prototypes as rounding may go either way.
    assert (values[0] - values[1]).abs().sum() <= 2 / 12


def test_bfloat16_networks(cuda, algorithm):
    device = choose("cuda", "bf16", deterministic=False)
    algorithm.to(device.torch_device)
    episodes = SAMPLER(some_split().to(device.torch_device), stream(0, "train"))
    with device.autocast():
        assert algorithm.backbone(episodes.query_x[0]).dtype == torch.bfloat16
        assert algorithm.predict(episodes).dtype == torch.float32


def test_rows_drawn_ahead(cuda):
    """The CPU's, in order, and the generator knows of those taken alone."""
    split = some_split()
    there = split.to(cuda.torch_device)
    one_by_one, generator = stream(0, "train"), stream(0, "train")
    rows = rows_ahead(SAMPLER, there, generator, steps=4)
    for _ in range(10):
        drawn = next(rows)
        assert drawn.is_cuda
        assert torch.equal(drawn.cpu(), SAMPLER.rows(split, one_by_one))
        assert torch.equal(generator.get_state(), one_by_one.get_state())


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


def maml():
    backbone = Conv4((1, 28, 28), width=8, batch_norm="batch", strides=True)
    return MAML(backbone, 3, 0.1, 2, 2, first_order=False, measured_steps=[])


def protonet():
    return ProtoNet(Conv4((1, 28, 28), width=16, batch_norm="running"))


def losses(device, new_algorithm, optimizer, clip_norm):
    """Those of 20 steps at a rate that is halved every 8, with a validation after 10."""
    torch.manual_seed(0)
    algorithm = new_algorithm().to(device.torch_device)
    optimizer = OPTIMIZERS[optimizer](algorithm.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=8, gamma=0.5)
    training = Training(algorithm, optimizer, schedule, stream(0, "train"), Progress())
    records = fit(
        training,
        Plan(steps=20, val_every=10, log_every=1, patience=0, clip_norm=clip_norm, split="train"),
        SAMPLER,
        some_split().to(device.torch_device),
        device,
        metric=ACCURACY,
        validate=lambda: (0.5, 0.1),
        save=lambda best: None,
        stop=lambda: False,
    )
    return [record["train/loss"] for record in records if "train/loss" in record]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("new_algorithm", [protonet, maml])
@pytest.mark.parametrize(("optimizer", "clip_norm"), [("adam", 0.0), ("sgd", 1.0)])
def test_a_recorded_step(cuda, new_algorithm, optimizer, clip_norm, precision, capsys):
    """It gives the plain one's losses, and it was recorded indeed."""
    device = choose("cuda", precision, deterministic=False)
    plain = losses(device, new_algorithm, optimizer, clip_norm)
    device = choose("cuda", precision, deterministic=False, graph=True)
    recorded = losses(device, new_algorithm, optimizer, clip_norm)
    assert recorded == pytest.approx(plain, rel=1e-2 if precision == "fp32" else 0.1)
    assert capsys.readouterr().err == ""


class Curious(ProtoNet):
    """It looks at its loss, which a recording forbids."""

    def loss(self, episodes):
        loss, metrics = super().loss(episodes)
        assert loss.item() > -1
        return loss, metrics


def test_a_step_that_cannot_be_recorded(cuda, capsys):
    def curious():
        return Curious(Conv4((1, 28, 28), width=16, batch_norm="running"))

    plain = losses(cuda, curious, "adam", 0.0)
    graph = choose("cuda", "fp32", deterministic=False, graph=True)
    assert losses(graph, curious, "adam", 0.0) == pytest.approx(plain, rel=1e-2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("metarun: device.graph: the step cannot be recorded (")


def test_nothing_waits_between_log_points(cuda):
    """Ten steps without a word from the device, but for the first and the log's."""
    torch.manual_seed(0)
    algorithm = protonet().to(cuda.torch_device)
    optimizer = OPTIMIZERS["adam"](algorithm.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    training = Training(algorithm, optimizer, schedule, stream(0, "train"), Progress())
    plan = Plan(steps=10, val_every=10, log_every=10, patience=0, clip_norm=1.0, split="train")
    taken = steps(training, plan, SAMPLER, some_split().to(cuda.torch_device), cuda)
    next(taken)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):
            next(taken)
            schedule.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("new_algorithm", [protonet, maml])
def test_seeds_at_once(cuda, new_algorithm):
    """Each seed's losses and weights are those of it by itself on the CPU, to float32's rounding,
    and between two batches nothing waits for the device."""
    cpu = choose("cpu", "fp32", deterministic=False)

    def training(seed, device):
        torch.manual_seed(seed)
        algorithm = new_algorithm().to(device.torch_device).train()
        optimizer = new_optimizer(algorithm.parameters())
        return Training(algorithm, *optimizer, stream(seed, "train"), Progress())

    def new_optimizer(parameters):
        learnt = [p for p in parameters if p.requires_grad]
        optimizer = torch.optim.SGD(learnt, lr=0.01, fused=True)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)

    several = [training(seed, cuda) for seed in range(3)]
    stacked = Stacked(several, cuda, 0.5, new_optimizer)
    split = some_split().to(cuda.torch_device)
    batches = meta_batches(SAMPLER, split, [each.generator for each in several])
    stacked.rehearse(next(meta_batches(SAMPLER, split, [stream(s, "train") for s in range(3)])))
    figures = [stacked.step(next(batches))[0] for _ in range(2)]
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        figures.append(stacked.step(batch)[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    figures += [stacked.step(next(batches))[0] for _ in range(3)]
    stacked.hand_out()
    plan = Plan(steps=6, val_every=6, log_every=6, patience=0, clip_norm=0.5, split="train")
    for seed, got in enumerate(several):
        single = training(seed, cpu)
        taken = steps(single, plan, SAMPLER, some_split(), cpu)
        for of_seeds in figures:
            loss = next(taken)["loss"]
            single.schedule.step()
            torch.testing.assert_close(of_seeds[seed]["loss"].cpu(), loss, rtol=1e-2, atol=1e-3)
        weights = {name: v.cpu() for name, v in got.algorithm.state_dict().items()}
        torch.testing.assert_close(weights, single.algorithm.state_dict(), rtol=1e-2, atol=1e-3)


def test_peak_memory(cuda):
    cuda.watch_memory()
    before = cuda.peak_memory()
    block = torch.empty(2**24, dtype=torch.uint8, device=cuda.torch_device)
    del block
    assert cuda.peak_memory() >= before + 2**24
    cuda.watch_memory()
    assert cuda.peak_memory() < before + 2**24
