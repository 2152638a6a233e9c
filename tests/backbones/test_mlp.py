import pytest
import torch
from torch.func import functional_call

from metarun.backbones.mlp import MLP
from metarun.errors import UserError


def examples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_the_formula():
    """Each layer: W x + b, less its mean and over its deviation in the batch, then max(0, ·)."""
    torch.manual_seed(0)
    backbone = MLP((2, 3), [5, 4], batch_norm="batch").double()
    x = examples(7, 2, 3)
    wanted = x.reshape(7, 6)
    for layer in (1, 4):
        wanted = wanted @ backbone[layer].weight.T + backbone[layer].bias
        wanted = wanted - wanted.mean(dim=0)
        wanted = (wanted / (wanted.square().mean(dim=0) + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(backbone(x), wanted, rtol=0, atol=1e-12)
    assert backbone.out_dim == 4


def test_number_of_parameters():
    """784 · 256 + 256, 256 · 128 + 128, 128 · 64 + 64, 64 · 64 + 64, and 2 · 512 of norm."""
    backbone = MLP((1, 28, 28), [256, 128, 64, 64], batch_norm="running")
    assert sum(p.numel() for p in backbone.parameters()) == 247_296
    assert backbone.out_dim == 64


def test_running_statistics_make_each_example_its_own():
    torch.manual_seed(0)
    backbone = MLP((3,), [5], batch_norm="running").double()
    x = examples(6, 3)
    backbone(x)
    backbone.eval()
    torch.testing.assert_close(backbone(x)[:1], backbone(x[:1]), rtol=0, atol=1e-12)


def test_each_task_with_its_own_weights_under_vmap():
    torch.manual_seed(0)
    backbone = MLP((3,), [5, 2], batch_norm="batch").double()
    params = {
        name: torch.stack([p.detach(), p.detach() * 1.5 + 0.1])
        for name, p in backbone.named_parameters()
    }
    x = examples(2, 6, 3)
    got = torch.vmap(lambda p, x: functional_call(backbone, p, x))(params, x)
    for task in range(2):
        alone = functional_call(backbone, {name: p[task] for name, p in params.items()}, x[task])
        torch.testing.assert_close(got[task], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("widths", [[], [4, 0]])
def test_widths_must_be_layers(widths):
    with pytest.raises(UserError, match=r"backbone.widths=\[.*\]: give one or more layers"):
        MLP((3,), widths, batch_norm="batch")
