"""Features that are there already, such as those that mode=embed stored."""

from math import prod

from torch import Tensor, nn

READS = ("vectors", "images")


class Identity(nn.Module):
    """The example as it is, [N, *input], or with `flatten` as one vector, [N, out_dim].

    Nothing is learnt here. What algorithms set for the networks of their papers, such as whose
    statistics batch norm uses, does not matter: there is none.
    """

    def __init__(self, input_shape: tuple[int, ...], flatten: bool, **unused: object):
        super().__init__()
        self.flatten, self.out_dim = flatten, prod(input_shape)
        if len(input_shape) == 3 and not flatten:
            self.out_shape, self.gives_maps = input_shape, True

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.flatten else x
