import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from metarun.backbones.layer_norm import LayerNorm
from metarun.backbones.vit import ViT
from metarun.errors import UserError


def test_it_is_torchvisions():
    """With the same weights, whose order differs only in that the class token comes first there."""
    torch.manual_seed(0)
    theirs = VisionTransformer(
        image_size=24, patch_size=8, num_layers=3, num_heads=4, hidden_dim=16, mlp_dim=64
    )
    theirs.heads = nn.Identity()
    theirs.double()
    ours = ViT((3, 24, 24), patch=8, width=16, depth=3, heads=4).double()
    weights = dict(theirs.named_parameters())
    first = ["class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias"]
    weights = [weights.pop(name) for name in first] + list(weights.values())
    with torch.no_grad():
        for p, weight in zip(ours.parameters(), weights, strict=True):
            p.copy_(weight.normal_(std=0.3))
    x = torch.randn(5, 3, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_maps_are_the_patches_features():
    """A change within one patch of the image shows in that place of the map, before any block."""
    torch.manual_seed(0)
    backbone = ViT((1, 8, 12), patch=4, width=6, depth=1, heads=2, flatten=False).eval()
    backbone.blocks = nn.Identity()
    x = torch.randn(1, 1, 8, 12)
    changed = x.clone()
    changed[0, 0, 5, 2] += 1  # the second row's first patch
    differs = (backbone(x) != backbone(changed)).any(dim=1)[0]
    assert differs.tolist() == [[False] * 3, [True, False, False]]
    assert backbone.out_shape == (6, 2, 3)


def test_layer_norm_is_torchs():
    torch.manual_seed(0)
    ours, theirs = LayerNorm(7, 1e-6), nn.LayerNorm(7, 1e-6)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(p.normal_())
    x = torch.randn(4, 3, 7)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"patch": 5}, r"backbone.patch=5: .* images of 28×42: choose one of 2, 7, 14$"),
        ({"heads": 5}, r"backbone.width=12: backbone.heads=5 must divide it"),
    ],
)
def test_what_cannot_be(values, said):
    with pytest.raises(UserError, match=said):
        ViT((1, 28, 42), **{"patch": 7, "width": 12, "depth": 1, "heads": 2} | values)
