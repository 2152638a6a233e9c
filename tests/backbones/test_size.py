"""What a run says of its backbone."""

import pytest
import torch
from torch import nn

from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.backbones.pixels import Pixels
from metarun.backbones.size import network_line, network_size


def test_conv4_counted_by_hand():
    """Two operations for each of 9 c 64 weights and each pixel of a map, 28², 14², 7² and 3²; the
    numbers are those of test_conv4.py, the network is left in training and its weights alone."""
    backbone = Conv4((1, 28, 28), width=64, batch_norm="running")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    pixels = 1 * 28**2 + 64 * (14**2 + 7**2 + 3**2)
    facts = network_size(backbone, (1, 28, 28))
    assert facts == {"parameters": 111_936, "flops": 2 * 9 * 64 * pixels, "output": [64]}
    assert network_line(facts) == "111,936 parameters, 19.6 MFLOPs an example, output 64"
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_maps_and_matrix_products():
    maps = Conv4((3, 84, 84), width=64, batch_norm="batch", flatten=False)
    assert network_line(network_size(maps, (3, 84, 84))).endswith(
        "194 MFLOPs an example, output 64×5×5"
    )
    assert network_size(MLP((5,), [7, 3], "none"), (5,))["flops"] == 2 * (5 * 7 + 7 * 3)
    pixels = network_size(Pixels((2, 4)), (2, 4))
    assert pixels == {"parameters": 0, "flops": 0, "output": [8]}


@pytest.mark.parametrize("flops", [2e9, 999e6])
def test_unit(flops):
    facts = {"parameters": 1, "flops": flops, "output": [1]}
    assert ("2 GFLOPs" if flops > 1e9 else "999 MFLOPs") in network_line(facts)


def test_what_shapes_do_not_tell():
    """A network that looks at values is run no further, and keeps its parameters' number."""

    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    facts = network_size(Looks(2, 3), (2,))
    assert facts == {"parameters": 9, "flops": None, "output": None}
    assert network_line(facts) == "9 parameters"
