import os

import pytest
import torch

from metarun import ranks
from metarun.device import Device, choose
from metarun.errors import UserError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Torch's settings as they were, afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored, or removed again
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    precision = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = precision
    torch.use_deterministic_algorithms(False)


def convolved(device):
    network = torch.nn.Conv2d(1, 2, 3)
    with device.autocast():
        return network(torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_networks_compute_in_the_precision_asked_for(precision, dtype):
    device = choose("cpu", precision, deterministic=False)
    assert device == Device(torch.device("cpu"), precision)
    assert convolved(device).dtype == dtype
    assert torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).dtype == (
        torch.float32
    )


def test_float32_is_float32():
    """Nothing is rounded to TF32 unasked."""
    torch.backends.fp32_precision = "tf32"
    choose("cpu", "fp32", deterministic=False)
    assert torch.backends.fp32_precision == "ieee"


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="tf32 needs an NVIDIA GPU: use fp32 or"):
        choose("cpu", "tf32", deterministic=False)


@no_gpu
def test_auto_without_a_gpu_is_the_cpu():
    device = choose("auto", "fp32", deterministic=False, compile=False)
    assert device.torch_device == torch.device("cpu")
    assert str(device) == f"CPU, {torch.get_num_threads()} threads, fp32"


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="torch sees no NVIDIA GPU here: use device=cpu"):
        choose(name, "fp32", deterministic=False)


def test_a_gpu_of_too_high_a_number_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"device.name=cuda:2, .* 2 GPUs: cuda:0 to cuda:1"):
        choose("cuda:2", "fp32", deterministic=False)


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, and the second of three ranks on this machine; the list of what it was told."""
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    monkeypatch.setattr(ranks, "size", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    return told


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_rank_has_a_gpu_of_its_own(two_gpus, name):
    assert choose(name, "fp32", deterministic=False).torch_device == torch.device("cuda", 1)
    assert two_gpus == [1]


def test_a_rank_without_a_gpu_is_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"rank 2 .* has no GPU, .* --nproc-per-node=2"):
        choose("cuda", "fp32", deterministic=False)


def test_ranks_do_not_share_a_gpu(two_gpus):
    with pytest.raises(UserError, match=r"device.name=cuda:0: .* device.name=cuda each has its"):
        choose("cuda:0", "fp32", deterministic=False)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic(deterministic):
    torch.use_deterministic_algorithms(not deterministic)
    choose("cpu", "fp32", deterministic)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
