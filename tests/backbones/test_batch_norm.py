from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metarun.backbones.batch_norm import BatchNorm, batch_normalised
from metarun.backbones.conv4 import Conv4
from metarun.backbones.mlp import MLP
from metarun.errors import UserError

INNER_LR = 0.3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled(module):
    """The module in float64, its scales and shifts no longer ones and zeros."""
    module.double()
    with torch.no_grad():
        module.weight.copy_(normal(len(module.weight), seed=8))
        module.bias.copy_(normal(len(module.bias), seed=9))
    return module


@pytest.mark.parametrize(
    ("theirs", "shape"), [(nn.BatchNorm2d, (6, 3, 4, 5)), (nn.BatchNorm1d, (6, 3))]
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_running_equals_torch(theirs, shape, by_hand):
    """In training, in evaluation, and in what it remembers of three batches."""
    wanted, got = scaled(theirs(3)), scaled(BatchNorm(3, "running"))
    got.by_hand = by_hand
    for step in range(3):
        x = 2 + (step + 1) * normal(*shape, seed=step)
        torch.testing.assert_close(got(x), wanted(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(got.running_mean, wanted.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.running_var, wanted.running_var, rtol=0, atol=1e-12)
    assert got.running_mean.abs().min() > 0.1
    x = normal(*shape, seed=5)
    evaluated = got.eval()(x)
    torch.testing.assert_close(evaluated, wanted.eval()(x), rtol=0, atol=1e-12)
    assert not torch.allclose(evaluated, got.train()(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
def test_batch_equals_torch_in_training(shape, training):
    """Values and gradients, whether it trains or not: it remembers nothing."""
    layer = scaled(BatchNorm(3, "batch")).train(training)
    x = (2 + 3 * normal(*shape)).requires_grad_()
    wanted = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
    got = layer(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    weights, inputs = normal(*shape, seed=1), (x, layer.weight, layer.bias)
    for mine, its in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-11)
    assert not list(layer.buffers())


def test_batch_has_the_wanted_mean_and_deviation():
    x = 5 + 2 * normal(50, 3, 4, 4)
    weight, bias = torch.tensor([0.5, 2, 3]).double(), torch.tensor([-1, 0, 4]).double()
    y = batch_normalised(x, weight, bias, eps=0.0).transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.mean(dim=1), bias, rtol=0, atol=1e-12)
    torch.testing.assert_close(y.std(dim=1, correction=0), weight, rtol=0, atol=1e-12)


def test_means_far_from_zero_cost_little_precision():
    """In float32, values a hundred deviations from zero, against float64."""
    x = 100 + torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    ones, zeros = torch.ones(4), torch.zeros(4)
    y = batch_normalised(x, ones, zeros, eps=1e-5)
    wanted = batch_normalised(x.double(), ones.double(), zeros.double(), eps=1e-5)
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-4)


def test_batch_first_and_second_derivatives():
    """Against finite differences."""
    inputs = [tensor.requires_grad_() for tensor in (normal(3, 2, 2), normal(2), normal(2, seed=1))]
    normalise = partial(batch_normalised, eps=1e-5)
    assert torch.autograd.gradcheck(normalise, inputs)
    assert torch.autograd.gradgradcheck(normalise, inputs)


def networks():
    """Small networks of two outputs, in float64."""
    torch.manual_seed(0)
    conv4 = nn.Sequential(Conv4((1, 16, 16), width=3, batch_norm="batch"), nn.Linear(3, 2))
    mlp = nn.Sequential(MLP((1, 16, 16), [6, 3], batch_norm="batch"), nn.Linear(3, 2))
    return {"conv4": conv4.double(), "mlp": mlp.double()}


def inner_loss(network, params, x, y):
    return F.cross_entropy(functional_call(network, params, x), y)


def outer_loss(network, params, x, y):
    """Loss on the last half of one task after one gradient step on its first half, by torch.func.

    Under vmap and grad this is the derivative of a derivative.
    """
    half = len(x) // 2
    inner = torch.func.grad(lambda p: inner_loss(network, p, x[:half], y[:half]))(params)
    adapted = {name: p - INNER_LR * inner[name] for name, p in params.items()}
    return inner_loss(network, adapted, x[half:], y[half:])


def outer_loss_by_autograd(network, params, x, y):
    """The same by torch.autograd, which knows nothing of vmap."""
    half = len(x) // 2
    inner = torch.autograd.grad(
        inner_loss(network, params, x[:half], y[:half]), list(params.values()), create_graph=True
    )
    adapted = {name: p - INNER_LR * g for (name, p), g in zip(params.items(), inner, strict=True)}
    return inner_loss(network, adapted, x[half:], y[half:])


def meta_gradient(network, params, x, y):
    """Gradient of `outer_loss_by_autograd` with respect to the parameters before the step."""
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss = outer_loss_by_autograd(network, params, x, y)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


@pytest.mark.parametrize("name", ["conv4", "mlp"])
def test_second_order_gradients_under_vmap(name):
    """Three tasks at once equal each alone, and central differences of one weight."""
    network = networks()[name]
    params = {key: p.detach() for key, p in network.named_parameters()}
    x, y = normal(3, 8, 1, 16, 16), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1]).expand(3, 8)
    grads = torch.vmap(torch.func.grad(partial(outer_loss, network)), in_dims=(None, 0, 0))(
        params, x, y
    )
    for task in range(3):
        wanted = meta_gradient(network, params, x[task], y[task])
        assert max(g.abs().max() for g in wanted.values()) > 1e-2
        for key, gradient in wanted.items():
            torch.testing.assert_close(grads[key][task], gradient, rtol=0, atol=1e-8)

    key = next(iter(params))  # the first layer's weight
    place, step, task = params[key].flatten().abs().argmax(), 1e-5, 1
    losses = []
    for sign in (1, -1):
        moved = {name: p.clone().requires_grad_() for name, p in params.items()}
        with torch.no_grad():
            moved[key].view(-1)[place] += sign * step
        losses.append(outer_loss_by_autograd(network, moved, x[task], y[task]).item())
    slope = (losses[0] - losses[1]) / (2 * step)
    assert abs(slope) > 1e-4
    assert grads[key][task].flatten()[place].item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", ["conv4", "mlp"])
def test_backward_through_vmap(name):
    """As a training step does it: autograd outside, vmap and an inner gradient inside.

    Torch's own batch norm gives another, wrong gradient here.
    """
    network = networks()[name]
    x, y = normal(3, 8, 1, 16, 16), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1]).expand(3, 8)
    params = dict(network.named_parameters())
    torch.vmap(partial(outer_loss, network), in_dims=(None, 0, 0))(params, x, y).sum().backward()
    alone = [meta_gradient(network, params, x[task], y[task]) for task in range(3)]
    for key, p in params.items():
        wanted = sum(gradients[key] for gradients in alone)
        torch.testing.assert_close(p.grad, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_bfloat16_in_and_out(mode):
    """Its statistics are those of the exact values, far from zero too."""
    layer = BatchNorm(3, mode)
    x = (8 + normal(64, 3, 5, 5)).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = F.batch_norm(x.double(), None, None, training=True)
    assert (y.double() - exact).abs().max() < 0.02  # four significant digits less than float32


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"backbone.batch_norm=own: choose one of running, batch"):
        BatchNorm(3, "own")
