import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as Torchvisions

from metarun.backbones.resnet import ResNet
from metarun.errors import UserError

WIDTHS = [64, 128, 256, 512]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("blocks", [[1, 1, 1, 1], [2, 2, 2, 2]], ids=["resnet10", "resnet18"])
def test_it_is_torchvisions(blocks, training):
    """With the same weights, which come in the same order."""
    torch.manual_seed(0)
    theirs, ours = (
        Torchvisions(BasicBlock, blocks),
        ResNet((3, 40, 33), blocks, WIDTHS, "large", "running"),
    )
    theirs.fc = nn.Identity()
    for kind in ("parameters", "buffers"):
        tensors = [t for t in getattr(theirs, kind)() if t.is_floating_point()]
        for copy, tensor in zip(getattr(ours, kind)(), tensors, strict=True):
            tensor.data.uniform_(0.5, 1.5) if tensor.ndim == 1 else None  # statistics, and scales
            copy.data.copy_(tensor)
    x = torch.randn(3, 3, 40, 33)
    for network in (theirs, ours):
        network.double().train(training)
    torch.testing.assert_close(ours(x.double()), theirs(x.double()))


@pytest.mark.parametrize(
    ("stem", "size", "wanted"),
    [("large", 84, 3), ("small", 84, 11), ("small", 32, 4), ("large", 28, 1)],
)
def test_the_last_map(stem, size, wanted):
    """84 -> 42 and 21 in the stem, then 11, 6 and 3; a small stem keeps the size."""
    with torch.device("meta"):
        backbone = ResNet((3, size, size), [1] * 4, WIDTHS, stem, "none", pool=False)
        assert backbone(torch.zeros(2, 3, size, size)).shape == (2, 512 * wanted**2)
    assert backbone.out_shape == (512, wanted, wanted)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stem": "huge"}, "backbone.stem=huge: choose one of large, small"),
        ({"blocks": [1, 1]}, r"backbone.blocks=\[1, 1\], .* two lists of the same length"),
        ({"blocks": [], "widths": []}, "two lists of the same length"),
    ],
)
def test_what_cannot_be(values, said):
    usual = {"blocks": [1], "widths": [4], "stem": "large", "batch_norm": "batch"}
    with pytest.raises(UserError, match=said):
        ResNet((1, 28, 28), **usual | values)
