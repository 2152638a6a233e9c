"""No network at all: the example itself is its features."""

from math import prod

from torch import nn

READS = ("vectors", "images")


class Pixels(nn.Flatten):
    """Each example as one vector: [N, *input] -> [N, out_dim], for methods that learn the rest.

    Memory-augmented networks read Omniglot so (Santoro et al. 2016, sec. 4.2).
    """

    def __init__(self, input_shape: tuple[int, ...]):
        super().__init__()
        self.out_dim = prod(input_shape)
