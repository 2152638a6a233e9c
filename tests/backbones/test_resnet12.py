import pytest
import torch
from torch import nn

from metarun.backbones.resnet12 import ResNet12
from metarun.errors import UserError

F = nn.functional


def test_equals_the_papers_order():
    """By torch's own functions: leaky ReLU before the pooling; the shortcut's last in the list."""
    torch.manual_seed(0)
    backbone = ResNet12((2, 20, 33), [3, 4, 4, 6], 0.0, 5, "batch").double()
    z = x = torch.randn(4, 2, 20, 33, dtype=torch.float64)
    with torch.no_grad():
        for p in backbone.parameters():
            p.copy_(torch.randn(p.shape))
    weights = iter(backbone.parameters())

    def convolved(z, kernel):
        z = F.conv2d(z, next(weights), padding=kernel // 2)
        return F.batch_norm(z, None, None, next(weights), next(weights), training=True)

    for _ in range(4):
        residual = F.leaky_relu(convolved(z, 3), 0.1)
        residual = F.leaky_relu(convolved(residual, 3), 0.1)
        residual = convolved(residual, 3)
        z = F.max_pool2d(F.leaky_relu(residual + convolved(z, 1), 0.1), 2)
    torch.testing.assert_close(backbone(x), z.mean(dim=(2, 3)), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("pools", "side"), [(4, 5), (2, 21), (0, 84)])
def test_the_last_map(pools, side):
    """84 -> 42, 21, 10 and 5."""
    with torch.device("meta"):
        backbone = ResNet12((3, 84, 84), [4] * 4, 0.1, 5, "none", pools, pool=False, flatten=False)
        assert backbone(torch.zeros(2, 3, 84, 84)).shape == (2, *backbone.out_shape)
    assert backbone.out_shape == (4, side, side)
    assert backbone.out_dim == 4 * side**2


def small(drop_rate=0.5):
    """The network in training, with squares of 2×2."""
    torch.manual_seed(0)
    return ResNet12((1, 64, 64), [8, 8, 8, 64], drop_rate, 2, "none", pool=False)


def test_each_example_of_each_task_loses_its_own():
    """Under vmap, as inner loops run it; in a test nothing is lost."""
    backbone, x = small(), torch.randn(1, 1, 64, 64).expand(3, 5, 1, 64, 64)
    z = torch.vmap(backbone, randomness="different")(x)
    assert len((z == 0).flatten(0, 1).unique(dim=0)) == 3 * 5
    z = torch.vmap(backbone.eval(), randomness="different")(x)
    assert not (z == 0).any()
    torch.testing.assert_close(z, z[:1, :1].expand_as(z))


def test_dropout_first_and_squares_after():
    """Lost pixels of the first two blocks stand alone; each of the last two blocks' is in a 2×2."""
    backbone, outputs = small(drop_rate=0.2), []
    for block in backbone.blocks[1:]:
        block.register_forward_pre_hook(lambda _, x: outputs.append(x[0]))
    outputs.append(backbone(torch.randn(8, 1, 64, 64)).view(8, 64, 4, 4))
    for i, z in enumerate(outputs):
        lost = (z == 0).float()
        assert lost.mean().item() == pytest.approx(0.2, abs=0.06)
        squares = F.avg_pool2d(lost, 2, stride=1) == 1
        in_squares = F.max_pool2d(F.pad(squares.float(), [1] * 4), 2, stride=1)
        assert torch.equal(in_squares, lost) == (i >= 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"drop_rate": 1.0}, "backbone.drop_rate=1.0: it must be from 0 to below 1"),
        ({"pools": 5}, "backbone.pools=5: it must be from 0 to 4"),
        ({"widths": [8, 8]}, r"backbone.widths=\[8, 8\]: four numbers of filters are needed"),
    ],
)
def test_what_cannot_be(values, said):
    usual = {"widths": [4] * 4, "drop_rate": 0.1, "block_size": 5}
    with pytest.raises(UserError, match=said):
        ResNet12((1, 28, 28), **usual | values, batch_norm="batch")
