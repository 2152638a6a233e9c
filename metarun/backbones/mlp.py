"""A fully connected network."""

from itertools import pairwise
from math import prod

from torch import nn

from metarun.backbones.batch_norm import normalisation
from metarun.backbones.standardise import Standardise
from metarun.errors import UserError

READS = ("vectors", "images")


class MLP(nn.Sequential):
    """Linear layer, batch norm and ReLU for each of `widths` (Finn et al. 2017, sec. 5.2).

    Examples [N, *input] of any shape -> features [N, widths[-1]]. Vectors, which no data set
    standardises, are standardised first where batch norm is "running".
    """

    def __init__(self, input_shape: tuple[int, ...], widths: list[int], batch_norm: str):
        if not widths or min(widths) < 1:
            raise UserError(f"backbone.widths={widths}: give one or more layers of at least 1 unit")
        sizes = [prod(input_shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        if len(input_shape) == 1 and batch_norm == "running":
            layers.append(Standardise(sizes[0]))
        for size, width in pairwise(sizes):
            layers += [nn.Linear(size, width), normalisation(width, batch_norm), nn.ReLU()]
        super().__init__(*layers)
        self.out_dim = sizes[-1]
