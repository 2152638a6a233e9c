"""What a GPU must answer as the CPU does."""

import pytest
import torch

from metarun.algos.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.data import split as split_module
from metarun.data.split import stack_classes
from metarun.device import choose
from metarun.evaluate import answers, fixed_episodes
from metarun.samplers.uniform import Uniform
from metarun.seeds import stream

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
    return stack_classes(classes, mean=(0.5,), std=(0.25,))


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
    arguments = {"name": "test", "seed": 0, "episodes": 50, "way": 3, "shot": 1, "query": 2}
    here, there = (
        fixed_episodes(split, within=False, **arguments)
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
    arguments = {"name": "test", "seed": 0, "episodes": 60, "way": 3, "shot": 1, "query": 4}
    values = []
    for device in (choose("cpu", "fp32", deterministic=False), cuda):
        split = some_split().to(device.torch_device)
        episodes = fixed_episodes(split, within=False, **arguments)
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
