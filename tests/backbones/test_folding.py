"""Conv4 by the kernels beside Conv4 by torch's own operations in float64."""

import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from metarun.backbones.batch_norm import BatchNorm, statistics_from
from metarun.backbones.conv4 import Conv4
from metarun.kernels import library
from metarun.kernels.pooled_convolution import can_convolve

INNER_LR = 0.1


pytestmark = pytest.mark.usefixtures("kernels")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conv4(batch_norm, channels=1, size=12, blocks=2):
    """Small, and no scale, shift, bias or running statistic is what it begins with."""
    torch.manual_seed(0)
    network = Conv4((channels, size, size), 16, batch_norm, pools=blocks, blocks=blocks)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, BatchNorm):
                layer.weight.normal_()
            if isinstance(layer, BatchNorm | nn.Conv2d):
                layer.bias.normal_()
        for name, buffer in network.named_buffers():
            buffer.uniform_(0.5, 2) if name.endswith("var") else buffer.normal_()
    assert can_convolve(torch.rand(2, channels, size, size), network[0][0], torch.float32)
    return network


def both(network, compute):
    """compute(network, dtype) by the kernels in float32, and without them in float64."""
    library.use(True)
    got = compute(deepcopy(network), torch.float32)
    library.use(False)
    wanted = compute(deepcopy(network).double(), torch.float64)
    library.use(True)
    return got, wanted


def assert_near(got, wanted, within=1e-5, scale=None):
    """To so many of the largest number, of `wanted` or `scale`."""
    scale = (wanted if scale is None else scale).abs().max().item()
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=within * scale)


def assert_gradients_near(got, wanted, no_bias, within=1e-4):
    """Gradients by name. With `no_bias` batch norm takes a convolution's bias out again: its
    gradient is nothing but rounding, beside that by the convolution's weight."""
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        rounding = no_bias and name.endswith("0.bias")
        scale = wanted[name.replace("bias", "weight")] if rounding else None
        assert_near(gradient, wanted[name], within, scale)


def assert_equals_the_plain_network(network, x, statistics=nullcontext, counted=slice(None)):
    """In its features of the `counted` rows, gradients, and what it remembers."""

    def compute(network, dtype):
        with statistics(network):
            y = network(x.to(dtype))[counted]
        factors = normal(*y.shape, seed=5).to(dtype)
        (y.square() * factors).sum().backward()
        grads = {name: p.grad for name, p in network.named_parameters()}
        return y.detach(), grads, dict(network.named_buffers())

    (y, grads, buffers), (wanted_y, wanted_grads, wanted_buffers) = both(network, compute)
    assert y.dtype == torch.float32
    assert_near(y, wanted_y)
    norms = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    remembers = any(layer.batch_norm_mode == "running" for layer in norms)
    own_statistics = bool(norms) and (network.training or not remembers)
    assert_gradients_near(grads, wanted_grads, no_bias=own_statistics)
    assert buffers.keys() == wanted_buffers.keys()
    for name, buffer in buffers.items():
        assert buffer.dtype == torch.float32
        assert_near(buffer, wanted_buffers[name])
        moved = not torch.equal(buffer, network.get_buffer(name))
        assert moved == network.training


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["running", "batch", "support", "none"])
def test_every_batch_norm(batch_norm, training, channels):
    network = conv4(batch_norm, channels).train(training)
    assert_equals_the_plain_network(network, normal(6, channels, 12, 12))


def test_running_statistics_of_several_steps():
    network = conv4("running")

    def compute(network, dtype):
        for step in range(3):
            network((step + normal(5, 1, 12, 12, seed=step)).to(dtype))
        network.eval()
        with torch.no_grad():
            return [network(normal(3, 1, 12, 12, seed=9).to(dtype)), *network.buffers()]

    for got, wanted in zip(*both(network, compute), strict=True):
        assert_near(got, wanted)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 33), (3, 84)])
def test_images_of_the_papers_sizes(channels, size):
    network = conv4("batch", channels, size, blocks=1)
    assert_equals_the_plain_network(network, normal(3, channels, size, size) + 1)


REAL = torch.tensor([True, True, False, True, False, True, True])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("batch_norm", "marks"),
    [
        ("support", {"support": 3}),
        ("support", {"support": 4, "real": REAL}),
        ("support", {"real": REAL}),
        ("batch", {"support": 3}),
        ("batch", {"real": REAL}),
        ("running", {"support": 3}),
        ("running", {"real": REAL}),
        ("none", {"support": 4, "real": REAL}),
    ],
)
def test_whose_statistics_count(batch_norm, marks, training):
    """The support set's, and never those of padding, whose features are nobody's either."""
    x, real = normal(7, 1, 12, 12), marks.get("real")
    if real is not None:
        x[~real] *= 10
    assert_equals_the_plain_network(
        conv4(batch_norm).train(training),
        x,
        lambda network: statistics_from(network, **marks),
        slice(None) if real is None else real,
    )


@pytest.mark.parametrize("batch_norm", ["batch", "support"])
def test_padding_and_queries_change_nothing(batch_norm):
    """Not a bit of the others' features."""
    network, x = conv4(batch_norm), normal(7, 1, 12, 12)
    other = torch.where(REAL[:, None, None, None], x, 3 + normal(7, 1, 12, 12, seed=1))
    ys = []
    for images in (x, other):
        with statistics_from(network, real=REAL):
            ys.append(network(images)[REAL])
    assert torch.equal(*ys)
    if batch_norm == "support":
        other = torch.cat([x[:4], other[4:]])
        with statistics_from(network, support=4):
            assert torch.equal(network(x)[:4], network(other)[:4])


def test_images_far_from_zero_cost_little_precision():
    network, x = conv4("batch", channels=3, size=33, blocks=1), 100 + normal(4, 3, 33, 33)
    got, wanted = both(network, lambda network, dtype: network(x.to(dtype)).detach())
    assert_near(got, wanted, within=1e-4)


@pytest.mark.parametrize("size", [28, 84, 105])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_filter_whose_numbers_do_not_vary(channels, size):
    """It sees one pixel, and all of them are alike: a variance of 0, which rounding may take below
    it, and features of nothing but the shift."""
    network = conv4("batch", channels, size, blocks=1)
    convolution, norm, *_ = network[0]
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[:, :, 1, 1] = normal(16, channels) / 4
        for brightness in torch.linspace(1, 255, 20).tolist():
            y = network(torch.full((4, channels, size, size), brightness))
            wanted = norm.bias.relu()[:, None].expand(16, (size // 2) ** 2).flatten()
            torch.testing.assert_close(y, wanted.expand(4, -1), rtol=0, atol=0.05)


@pytest.mark.parametrize("batch_norm", ["running", "batch", "none"])
def test_bfloat16(batch_norm):
    """Maps in bfloat16, of convolutions whose statistics are exact; gradients in float32."""
    network, x = conv4(batch_norm, channels=3), normal(8, 3, 12, 12)

    def compute(network, dtype):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y = network(x.to(dtype))
            assert y.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
            y.double().square().mean().backward()
        return y.detach(), network[0][0].weight.grad, dict(network.named_buffers())

    (y, by_weight, buffers), (wanted, wanted_by_weight, wanted_buffers) = both(network, compute)
    assert_near(y, wanted, within=0.02)
    assert by_weight.dtype == torch.float32
    assert_near(by_weight, wanted_by_weight, within=0.1)
    for name, buffer in buffers.items():
        within = 1e-5 if name.startswith("0.") else 0.02
        assert_near(buffer, wanted_buffers[name], within)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_and_layout_are_those_of_the_plain_block(dtype):
    block, x = conv4("batch")[0], normal(3, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        got = block(x)
        library.use(False)
        wanted = block(x)
    assert got.dtype == wanted.dtype == dtype
    assert got.shape == wanted.shape
    assert got.stride() == wanted.stride()


def test_float16():
    """Which the kernels do not know. In a process of its own, lest it breaks this one."""
    program = """
import torch
from metarun.backbones.conv4 import Conv4
from metarun.kernels import library
assert library.use(True)
network = Conv4((1, 28, 28), 64, "none", pools=1, blocks=1)
with torch.autocast("cpu", torch.float16):
    x = torch.rand(20, 1, 28, 28)
    got = network(x)
    library.use(False)
    wanted = network(x)
torch.testing.assert_close(got, wanted, rtol=0, atol=0.01)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("batch_norm", ["running", "batch", "support", "none"])
def test_weights_of_several_seeds_at_once(batch_norm):
    """Equal to one at a time, in what they remember too."""
    networks = [conv4(batch_norm) for _ in range(3)]
    for seed, network in enumerate(networks):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.mul_(1 + 0.2 * seed)
        for layer in network.modules():
            if isinstance(layer, BatchNorm):
                layer.by_hand = True
    params, buffers = torch.func.stack_module_state(networks)
    x = normal(3, 5, 1, 12, 12)
    got = torch.vmap(lambda p, b, x: functional_call(networks[0], (p, b), (x,)))(params, buffers, x)
    for seed, network in enumerate(networks):
        remembered = {name: buffer[seed] for name, buffer in buffers.items()}
        own, wanted = both(
            network,
            lambda network, dtype, x=x[seed]: (network(x.to(dtype)), dict(network.named_buffers())),
        )
        assert_near(got[seed], own[0])
        assert_near(got[seed], wanted[0])
        for name, buffer in remembered.items():
            assert_near(buffer, wanted[1][name])


def outer_loss(network, batch_norm, params, task, slopes):
    """Loss on one task's queries after two steps on its support set, by gradients that
    slopes(loss, params) gives."""
    support_x, support_y, query_x, query_y = task

    def support_loss(params):
        return F.cross_entropy(functional_call(network, params, support_x), support_y)

    for _ in range(2):
        found = slopes(support_loss, params)
        params = {name: p - INNER_LR * found[name] for name, p in params.items()}
    if batch_norm != "support":
        return F.cross_entropy(functional_call(network, params, query_x), query_y)
    with statistics_from(network, support=len(support_x)):
        outputs = functional_call(network, params, torch.cat([support_x, query_x]))
    return F.cross_entropy(outputs[len(support_x) :], query_y)


def slopes_by_autograd(loss, params):
    """What torch.func.grad gives, by torch.autograd, which knows nothing of vmap."""
    found = torch.autograd.grad(loss(params), [*params.values()], create_graph=True)
    return dict(zip(params, found, strict=True))


@pytest.mark.parametrize("outside", ["autograd", "grad"])
@pytest.mark.parametrize("batch_norm", ["batch", "support", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_inner_loop_of_tasks_at_once(channels, batch_norm, outside):
    """MAML's loss and its gradient, through two inner steps, beside a loop over the tasks; the
    gradient of gradients by torch.autograd, as in training, or by torch.func.grad again."""
    backbone = conv4(batch_norm, channels)
    network = nn.Sequential(backbone, nn.Linear(backbone.out_dim, 3))
    draw = torch.Generator().manual_seed(3)
    tasks = (
        normal(4, 6, channels, 12, 12),
        torch.randint(0, 3, (4, 6), generator=draw),
        normal(4, 5, channels, 12, 12, seed=1),
        torch.randint(0, 3, (4, 5), generator=draw),
    )

    def at_once(network, params):
        def of_task(*task):
            return outer_loss(
                network, batch_norm, params, task, lambda loss, params: grad(loss)(params)
            )

        return torch.vmap(of_task)(*tasks)

    def in_turn(network, params):
        exact = [v.double() if v.is_floating_point() else v for v in tasks]
        return torch.stack(
            [
                outer_loss(network, batch_norm, params, task, slopes_by_autograd)
                for task in zip(*exact, strict=True)
            ]
        )

    def compute(network, dtype):
        losses_of = at_once if dtype == torch.float32 else in_turn
        params = dict(network.named_parameters())
        losses = losses_of(network, params)
        if dtype == torch.float32 and outside == "grad":
            detached = {name: p.detach() for name, p in params.items()}
            return losses.detach(), grad(lambda p: losses_of(network, p).sum())(detached)
        grads = torch.autograd.grad(losses.sum(), [*params.values()])
        return losses.detach(), dict(zip(params, grads, strict=True))

    (losses, grads), (wanted_losses, wanted_grads) = both(network, compute)
    assert_near(losses, wanted_losses)
    assert max(g.abs().max() for g in wanted_grads.values()) > 1e-2
    assert_gradients_near(grads, wanted_grads, no_bias=batch_norm != "none")
