"""The convolutional network of Koch et al. 2015, "Siamese Neural Networks for One-shot Image
Recognition", fig. 4."""

import torch
from torch import nn

from metarun.errors import NOTHING, Unsuited, UserError

READS = ("images",)


# Filters, their height and width, and whether 2×2 max-pooling follows.
LAYERS = ((64, 10, True), (128, 7, True), (128, 4, True), (256, 4, False))


class Koch2015(nn.Sequential):
    """Four convolutions with ReLU, three of them with max-pooling, and a dense layer of sigmoids.

    Images [N, C, H, W] of at least 65×65 -> features [N, features] in (0, 1). At the paper's
    105×105 the maps are 96, 48, 42, 21, 18, 9 and 6 pixels wide, and 9216 numbers reach the dense
    layer. There is no batch normalisation.
    """

    def __init__(self, input_shape: tuple[int, ...], features: int):
        if features < 1:
            raise UserError(f"backbone.features={features}: it must be at least 1")
        channels, *size = input_shape
        layers: list[nn.Module] = []
        for filters, kernel, pools in LAYERS:
            layers.append(nn.Conv2d(channels, filters, kernel))
            size = [side - kernel + 1 for side in size]
            if pools:  # pooling and ReLU commute; pooled first, ReLU has a quarter of the work
                layers.append(nn.MaxPool2d(2))
                size = [side // 2 for side in size]
            layers.append(nn.ReLU())
            channels = filters
        if len(size) != 2 or min(size) < 1:
            raise Unsuited(
                f"backbone=koch2015 takes images of at least 65×65, not examples of shape "
                f"{list(input_shape)}",
                {
                    "data.size": "use data.size=105, the paper's",
                    NOTHING: "use another backbone",
                },
            )
        dense = nn.Linear(channels * size[0] * size[1], features)
        super().__init__(*layers, nn.Flatten(), dense, nn.Sigmoid())
        self.out_dim = features
        self.apply(initialise)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)


def initialise(layer: nn.Module) -> None:
    """Draw a layer's weights as in sec. 3.2, those of a dense one twenty times as wide."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.normal_(layer.weight, 0.0, 0.01 if isinstance(layer, nn.Conv2d) else 0.2)
        assert layer.bias is not None
        nn.init.normal_(layer.bias, 0.5, 0.01)
