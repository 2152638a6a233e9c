import pytest
import torch
from torch import nn

from metarun.backbones.r2d2 import R2D2
from metarun.errors import UserError


@pytest.mark.parametrize(
    ("shape", "wanted"), [((1, 28, 28), 3584), ((3, 32, 32), 8064), ((3, 84, 84), 72576)]
)
def test_features_of_the_papers_images(shape, wanted):
    """Sec. 4.2 gives these sizes for Omniglot, CIFAR-FS and miniImageNet."""
    with torch.device("meta"):
        backbone = R2D2(shape, [96, 192, 384, 512], dropout=0.1, batch_norm="running")
        assert backbone(torch.zeros(2, *shape)).shape == (2, wanted)
    assert backbone.out_dim == wanted


def test_equals_the_papers_order():
    """By torch's own functions: the third block's output is pooled again beside the fourth."""
    torch.manual_seed(0)
    backbone = R2D2((2, 20, 33), [3, 4, 5, 6], dropout=0.0, batch_norm="batch").double()
    x = torch.randn(4, 2, 20, 33, dtype=torch.float64)
    z, outputs = x, []
    for i, (w, b) in enumerate(zip(*[iter(list(backbone.parameters()))] * 2, strict=True)):
        if i % 2:  # scale and shift of the batch norm
            z = nn.functional.batch_norm(z, None, None, w, b, training=True)
            z = nn.functional.leaky_relu(z, 0.1)
            z = nn.functional.max_pool2d(z, 2, stride=1 if i == 7 else 2)
            outputs.append(z)
        else:
            z = nn.functional.conv2d(z, w, b, padding=1)
    third = nn.functional.max_pool2d(outputs[2], 2, stride=1)
    wanted = torch.cat([third.flatten(1), outputs[3].flatten(1)], dim=1)
    torch.testing.assert_close(backbone(x), wanted, rtol=0, atol=1e-12)


def test_dropout_in_training_alone():
    """Of its share of the fourth block's numbers, and of each example by itself."""
    torch.manual_seed(0)
    backbone = R2D2((1, 64, 64), [4, 4, 4, 64], dropout=0.4, batch_norm="none", flatten=False)
    x = torch.randn(1, 1, 64, 64).expand(8, -1, -1, -1)
    tasks = torch.vmap(backbone, randomness="different")(x.expand(3, *x.shape))
    dropped = tasks[:, :, 4:] == 0
    assert dropped.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert len(dropped.flatten(0, 1).flatten(1).unique(dim=0)) == 3 * 8
    backbone.eval()
    assert torch.equal(backbone(x)[0], backbone(x)[1])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dropout": 1.0}, "backbone.dropout=1.0: it must be from 0 to below 1"),
        ({"widths": [8, 8]}, r"backbone.widths=\[8, 8\]: four numbers of filters are needed"),
    ],
)
def test_what_cannot_be(values, said):
    with pytest.raises(UserError, match=said):
        R2D2((1, 28, 28), **{"widths": [4] * 4, "dropout": 0.1, "batch_norm": "batch"} | values)
