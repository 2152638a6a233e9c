import pytest
import torch
from torch import nn

from metarun.backbones.wrn import WRN
from metarun.errors import UserError

F = nn.functional


def test_number_of_parameters():
    """36.5 M with CIFAR-10's linear layer of 640 · 10 + 10: 36,479,194 by the authors' code."""
    with torch.device("meta"):
        backbone = WRN((3, 32, 32), depth=28, widening=10, dropout=0.3, batch_norm="running")
    assert sum(p.numel() for p in backbone.parameters()) + 6410 == 36_479_194


def test_equals_the_papers_order():
    """By torch's own functions (fig. 1d): batch norm and ReLU before each convolution, and the
    shortcut's convolution after the first of them."""
    torch.manual_seed(0)
    backbone = WRN((2, 9, 12), depth=16, widening=2, dropout=0.0, batch_norm="batch").double()
    state = {name: torch.randn_like(p) for name, p in backbone.named_parameters()}
    backbone.load_state_dict(state)
    values = iter(state.values())

    def normalised(z):
        return F.batch_norm(z, None, None, next(values), next(values), training=True).relu()

    x = torch.randn(3, 2, 9, 12, dtype=torch.float64)
    z, maps = F.conv2d(x, next(values), padding=1), []
    for stride, first in [(1, True), (1, False), (2, True), (1, False), (2, True), (1, False)]:
        before = normalised(z)
        residual = F.conv2d(before, next(values), stride=stride, padding=1)
        residual = F.conv2d(normalised(residual), next(values), padding=1)
        z = residual + (F.conv2d(before, next(values), stride=stride) if first else z)
        maps.append(tuple(z.shape[1:]))
    torch.testing.assert_close(backbone(x), normalised(z).mean(dim=(2, 3)), rtol=0, atol=1e-9)
    assert maps[::2] == [(32, 9, 12), (64, 5, 6), (128, 3, 3)]


def test_dropout_in_training_alone():
    """Each example's and each task's own."""
    torch.manual_seed(0)
    backbone = WRN((1, 8, 8), depth=10, widening=1, dropout=0.5, batch_norm="none")
    x = torch.randn(1, 1, 1, 8, 8).expand(3, 4, 1, 8, 8)
    z = torch.vmap(backbone, randomness="different")(x).flatten(0, 1)
    assert len(z.unique(dim=0)) == 3 * 4
    z = torch.vmap(backbone.eval(), randomness="different")(x).flatten(0, 1)
    torch.testing.assert_close(z, z[:1].expand_as(z))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": 27}, "backbone.depth=27: it must be 6n"),
        ({"depth": 4}, "backbone.depth=4: it must be 6n"),
        ({"widening": 0}, "backbone.widening=0: it must be at least 1"),
        ({"dropout": -0.1}, "backbone.dropout=-0.1: it must be from 0 to below 1"),
    ],
)
def test_what_cannot_be(values, said):
    usual = {"depth": 10, "widening": 1, "dropout": 0.0, "batch_norm": "batch"}
    with pytest.raises(UserError, match=said):
        WRN((1, 28, 28), **usual | values)
