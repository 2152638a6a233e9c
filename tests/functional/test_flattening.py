import torch
from torch import nn
from torch.func import functional_call

from metarun.backbones.conv4 import Conv4
from metarun.functional.flattening import flattened, unflattened


def test_a_network_computes_the_same_from_its_flattened_parameters():
    """Whatever their layout in memory: Conv4's are channels last."""
    torch.manual_seed(0)
    network = nn.Sequential(Conv4((2, 16, 16), width=3, batch_norm="batch"), nn.Linear(3, 2))
    vector = flattened(network.parameters())
    assert vector.shape == (sum(p.numel() for p in network.parameters()),)
    params = unflattened(vector, network)
    for name, p in network.named_parameters():
        assert torch.equal(params[name], p), name
    x = torch.randn(4, 2, 16, 16)
    torch.testing.assert_close(functional_call(network, params, x), network(x))


def test_gradients_pass_through():
    network = nn.Linear(2, 1)
    unflattened(2 * flattened(network.parameters()), network)["bias"].sum().backward()
    assert network.weight.grad.tolist() == [[0, 0]]
    assert network.bias.grad.tolist() == [2]
