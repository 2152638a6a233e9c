"""Vision transformers, such as ViT-S (also "DeiT-S").

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, arXiv:2010.11929, sec. 3.1; the small
one's sizes and initialisation are those of Touvron et al., "Training Data-efficient Image
Transformers", 2021, arXiv:2012.12877, table 1. D is the width, P the number of patches.
"""

from math import prod

import torch
from torch import Tensor, nn

from metarun.backbones.convolution import Conv2d, image_shape
from metarun.backbones.layer_norm import LayerNorm
from metarun.errors import NOTHING, Unsuited, UserError

READS = ("images",)
EPS = 1e-6  # of the layer norms


class ViT(nn.Module):
    """Images [N, C, H, W] -> the class token's last features [N, width], or without `flatten` the
    patches' own as maps [N, width, H // patch, W // patch].

    There is no batch norm, whichever mode of it the algorithm asks for: an image's features depend
    on nothing else.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        flatten: bool = True,
        batch_norm: str = "none",
    ):
        super().__init__()
        channels, height, wide = image_shape(input_shape, 1, "A vision transformer")
        if height % patch or wide % patch:
            fits = [p for p in range(2, min(height, wide) + 1) if height % p == wide % p == 0]
            among = {"backbone.patch": f"choose one of {', '.join(map(str, fits))}"} if fits else {}
            raise Unsuited(
                f"backbone.patch={patch}: patches must divide images of {height}×{wide}",
                among or {"data.size": "set data.size to another", NOTHING: "use another backbone"},
            )
        if width % heads:
            raise UserError(f"backbone.width={width}: backbone.heads={heads} must divide it")
        rows, columns = height // patch, wide // patch
        self.embed = Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = LayerNorm(width, EPS)
        self.out_shape = (width, 1, 1) if flatten else (width, rows, columns)
        self.out_dim, self.gives_maps = prod(self.out_shape), not flatten
        self.apply(initialise)
        for tokens in (self.class_token, self.positions):
            nn.init.trunc_normal_(tokens, std=0.02)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).mT  # [N, P, D]
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        z = self.norm(self.blocks(tokens + self.positions))
        return z[:, 1:].mT.unflatten(2, self.out_shape[1:]) if self.gives_maps else z[:, 0]


class Block(nn.Module):
    """Attention, then a network of one hidden layer, each on top of its input (eq. 2 and 3):
    [N, 1 + P, D] -> the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.Sequential(LayerNorm(width, EPS), Attention(width, heads))
        self.mlp = nn.Sequential(
            LayerNorm(width, EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Attention(nn.Module):
    """Self-attention of `heads` heads (app. A): [N, 1 + P, D] -> the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1))
        q, k, v = parts.movedim(3, 1).unbind(3)  # each [N, heads, 1 + P, D // heads]
        # Not torch's fused attention, which cannot be differentiated twice.
        weights = (q @ k.mT * q.shape[3] ** -0.5).softmax(dim=3)
        return self.out((weights @ v).movedim(1, 2).flatten(2))


def initialise(layer: nn.Module) -> None:
    """Draws a linear layer's weights as in DeiT's code."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
