"""Beside torch's own operations, in float64 on the same bfloat16 numbers."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from metarun.backbones import resnet12
from metarun.backbones.batch_norm import BatchNorm
from metarun.backbones.conv4 import Conv4
from metarun.backbones.convolution import Conv2d
from metarun.kernels import library, weight_gradient
from metarun.kernels.weight_gradient import (
    PARTS,
    ROOM,
    can_sum,
    convolution,
    gradients,
)


@pytest.fixture(autouse=True)
def this_one(kernels):
    """The kernels are in use, and this one is among them."""
    if not hasattr(library.compiled(), "weight_gradient"):
        pytest.skip("the processor has no AVX512-BF16")


@pytest.fixture
def sums(monkeypatch) -> list:
    """The shapes of the maps that the kernel has been given."""
    shapes = []

    def remembered(x, g):
        shapes.append((*x.shape[:2], g.shape[1]))
        return gradients(x, g)

    monkeypatch.setattr(weight_gradient, "gradients", remembered)
    return shapes


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def normal(*shape, seed=0):
    """Numbers that bfloat16 has, in float32."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return numbers.bfloat16().float()


def arguments(channels=16, filters=32, size=(6, 7), count=5, tasks=()):
    """Maps in bfloat16, weight and bias."""
    return (
        normal(*tasks, count, channels, *size).bfloat16(),
        normal(*tasks, filters, channels, 3, 3, seed=1) / 16,
        normal(*tasks, filters, seed=2),
    )


def torchs(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def factors(like):
    """Of many sizes and both signs; not drawn, which torch.vmap forbids."""
    return torch.arange(1.0, 1 + like.numel()).cos().view(like.shape).to(like.dtype)


def assert_near(got, wanted, within):
    """To so many of the largest number."""
    assert got.shape == wanted.shape
    scale = wanted.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=within * scale)


def assert_right(x, g, within=2e-6):
    by_weight, by_bias = gradients(x, g)
    assert by_weight.dtype == by_bias.dtype == torch.float32
    shape = (g.shape[1], x.shape[1], 3, 3)
    assert_near(by_weight, conv2d_weight(x.double(), shape, g.double(), padding=1), within)
    assert_near(by_bias, g.double().sum((0, 2, 3)), within)


def assert_equal(*pairs):
    """Gradients by the weight and by the bias, to the bit."""
    for ours, others in zip(*pairs, strict=True):
        assert torch.equal(ours, others)


@pytest.mark.parametrize("channels", [16, 32, 48, 64])
@pytest.mark.parametrize("filters", [32, 64, 96, 128])
def test_channels_and_filters(filters, channels):
    assert_right(normal(5, channels, 6, 7).bfloat16(), normal(5, filters, 6, 7, seed=1).bfloat16())


@pytest.mark.parametrize("count", [1, 2, 3, PARTS - 1, 2 * PARTS, 2 * PARTS + 1, 5 * PARTS + 3])
def test_numbers_of_images(count):
    """Odd and even, and fewer than there are parts."""
    assert_right(normal(count, 16, 4, 5).bfloat16(), normal(count, 32, 4, 5, seed=1).bfloat16())


def test_no_images():
    none = gradients(torch.zeros(0, 16, 4, 5).bfloat16(), torch.zeros(0, 32, 4, 5).bfloat16())
    assert [v.shape for v in none] == [(32, 16, 3, 3), (32,)]
    assert not any(v.any() for v in none)


@pytest.mark.parametrize(
    ("channels", "filters", "size", "groups"),
    [
        (16, 32, (150, 16), 2),
        (64, 64, (33, 21), 2),
        (64, 96, (25, 40), 3),
        (64, 64, (84, 84), 14),
        (16, 32, (3, 2000), 3),
        (16, 32, (1, 1), 1),
        (16, 32, (1, 9), 1),
        (16, 32, (9, 1), 1),
        (32, 64, (2, 2), 1),
    ],
)
def test_sizes_of_maps(channels, filters, size, groups):
    """Tall ones are cut into groups of rows, and of wide ones each row is a group."""
    height, width = size
    rows = max(1, ROOM // (width * (channels + filters) // 2))
    assert -(-height // rows) == groups
    x, g = normal(3, channels, *size), normal(3, filters, *size, seed=1)
    assert_right(x.bfloat16(), g.bfloat16(), within=6e-6)


@pytest.mark.parametrize("filters", [32, 64])
def test_whole_numbers_are_summed_exactly(filters):
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 10, (7, 16, 9, 8), generator=draw).bfloat16()
    g = torch.randint(-9, 10, (7, filters, 9, 8), generator=draw).bfloat16()
    by_weight, by_bias = gradients(x, g)
    wanted = conv2d_weight(x.double(), (filters, 16, 3, 3), g.double(), padding=1)
    assert torch.equal(by_weight.double(), wanted)
    assert torch.equal(by_bias.double(), g.double().sum((0, 2, 3)))


def test_maps_that_lie_otherwise():
    x, g = normal(4, 16, 6, 7).bfloat16(), normal(4, 32, 6, 7, seed=1).bfloat16()
    wanted, last = gradients(x, g), torch.channels_last
    assert_equal(gradients(x.to(memory_format=last), g.to(memory_format=last)), wanted)
    assert_equal(gradients(x.mT.contiguous().mT, g), wanted)
    alike = g[:, :, :1, :1].expand(g.shape)
    assert_equal(gradients(x, alike), gradients(x, alike.contiguous()))
    some = x[::2].contiguous(), g[1::2].contiguous()
    assert_equal(gradients(x[::2], g[1::2]), gradients(*some))


@pytest.mark.parametrize("count", [3, 4])
def test_a_nan_is_its_channels_alone(count):
    """Also in the odd image, and beside one."""
    for image in range(count):
        x, g = normal(count, 16, 6, 7), normal(count, 32, 6, 7, seed=1)
        x[image, 3, 2, 2], g[image, 5, 4, 4] = torch.nan, torch.nan
        by_weight, by_bias = gradients(x.bfloat16(), g.bfloat16())
        wanted = torch.zeros(32, 16, 3, 3, dtype=torch.bool)
        wanted[5] = wanted[:, 3] = True
        assert torch.equal(by_weight.isnan(), wanted)
        assert by_bias.isnan().nonzero().tolist() == [[5]]


def test_the_number_of_threads_changes_nothing():
    """Not a bit."""
    x, g = normal(37, 48, 9, 8).bfloat16(), normal(37, 64, 9, 8, seed=1).bfloat16()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = gradients(x, g)
        for threads in (2, 3, 20):
            torch.set_num_threads(threads)
            assert_equal(gradients(x, g), wanted)
    finally:
        torch.set_num_threads(before)


def slopes(f, inputs, dtype, create_graph=False):
    """What f gives, and its gradients by the inputs that there are, for one by the maps that
    bfloat16 has."""
    x, *rest = inputs
    inputs = [
        x.to(dtype[0], copy=True),
        *(v.to(dtype[1], copy=True) for v in rest if v is not None),
    ]
    for v in inputs:
        v.requires_grad_()
    y = f(*inputs, *(None for v in rest if v is None))
    g = normal(*y.shape, seed=5).to(y.dtype)
    return y, inputs, torch.autograd.grad(y, inputs, g, create_graph=create_graph)


OURS, EXACT = (torch.bfloat16, torch.float32), (torch.float64, torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "filters"), [(16, 32), (64, 64), (48, 96)])
def test_the_convolution_and_its_gradients(channels, filters, bias, sums):
    """Those by weight and bias are summed in float32; the one by x is rounded to bfloat16."""
    x, weight, b = arguments(channels, filters)
    inputs = (x, weight, b if bias else None)
    with bf16():
        y, _, found = slopes(convolution, inputs, OURS)
        assert torch.equal(y, torchs(*inputs))
    assert y.dtype == torch.bfloat16
    assert sums == [(5, channels, filters)]
    _, _, wanted = slopes(torchs, inputs, EXACT)
    by_x, *others = found
    assert by_x.dtype == torch.bfloat16
    assert_near(by_x, wanted[0], within=2**-8)
    for got, its in zip(others, wanted[1:], strict=True):
        assert got.dtype == torch.float32
        assert_near(got, its, within=2e-6)


def test_a_backward_pass_outside_autocast(sums):
    """As in training, where only the network is within it."""
    x, weight, bias = arguments()
    with bf16():
        y, (_, w, b), _ = slopes(convolution, (x, weight, bias), OURS)
        y = convolution(x, w, b)
    y.float().square().sum().backward()
    exact = conv2d_weight(x.double(), weight.shape, 2 * y.detach().double(), padding=1)
    assert_near(w.grad, exact, within=2e-6)
    assert_near(b.grad, 2 * y.detach().double().sum((0, 2, 3)), within=2e-6)
    assert len(sums) == 2


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_one_gradient_alone(wanted, sums):
    i = ["x", "weight", "bias"].index(wanted)
    inputs = arguments()
    _, _, exact = slopes(torchs, inputs, EXACT)
    inputs = [v.requires_grad_(j == i) for j, v in enumerate(inputs)]
    with bf16():
        y = convolution(*inputs)
    (got,) = torch.autograd.grad(y, inputs[i], normal(*y.shape, seed=5).bfloat16())
    assert_near(got, exact[i], within=2e-6 if i else 2**-8)
    assert len(sums) == (i == 1)


def test_it_lies_channels_last():
    x, *_ = arguments()
    layer = Conv2d(16, 32, 3, padding=1).to(memory_format=torch.channels_last)
    with bf16():
        assert can_sum(x, layer)
        for maps in (x, x.to(memory_format=torch.channels_last)):
            assert layer(maps).is_contiguous(memory_format=torch.channels_last)


def second_of(f, inputs, dtype):
    """Second derivatives, of a number made of the gradients."""
    _, inputs, found = slopes(lambda *v: f(*v).sin(), inputs, dtype, create_graph=True)
    number = sum((slope.to(dtype[1]) * factors(slope).to(dtype[1])).sum() for slope in found)
    return torch.autograd.grad(number, inputs)


def test_second_derivatives(sums):
    """By torch's own operations: as near as those come, in bfloat16."""
    inputs = arguments(count=3)
    with bf16():
        found = second_of(convolution, inputs, OURS)
        of_torch = second_of(torchs, inputs, OURS)
    for got, its, wanted in zip(found, of_torch, second_of(torchs, inputs, EXACT), strict=True):
        assert_near(got, wanted, within=0.03)
        assert_near(got, its, within=0.03)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (2, 1, None)])
def test_tasks_at_once(in_dims):
    """Values, and gradients from outside, equal those of one at a time."""
    inputs = [
        v[0] if d is None else v.movedim(0, d)
        for v, d in zip(arguments(tasks=(3,)), in_dims, strict=True)
    ]

    def in_turn(*inputs):
        return torch.stack(
            [
                torchs(
                    *(
                        v if d is None else v.select(d, i)
                        for v, d in zip(inputs, in_dims, strict=True)
                    )
                )
                for i in range(3)
            ]
        )

    with bf16():
        y, _, found = slopes(torch.vmap(convolution, in_dims), inputs, OURS)
    assert y.dtype == torch.bfloat16
    exact, _, wanted = slopes(in_turn, inputs, EXACT)
    for got, its in zip((y, *found), (exact, *wanted), strict=True):
        assert_near(got, its, within=2**-6)


@pytest.mark.parametrize("outside", [None, "autograd", "grad"])
@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0), (None, 0, None)])
def test_gradients_within_tasks(in_dims, outside):
    """As an inner loop takes them: torch.func.grad in torch.vmap, differentiated from outside."""
    inputs = [
        v[0] if d is None else v
        for v, d in zip(arguments(count=2, tasks=(3,)), in_dims, strict=True)
    ]

    def number(f, *inputs):
        y = f(*inputs).to(inputs[1].dtype)
        return (y.sin() * factors(y)).sum()

    def at_once(*inputs):
        slope = grad(lambda x, w, b: number(convolution, x, w, b), 1)
        return torch.vmap(slope, in_dims)(*inputs)

    def in_turn(*inputs):
        found = []
        for i in range(3):
            x, w, b = (v if d is None else v[i] for v, d in zip(inputs, in_dims, strict=True))
            w = w.view_as(w)
            found += torch.autograd.grad(number(torchs, x, w, b), w, create_graph=True)
        return torch.stack(found)

    exact = [v.double().requires_grad_() for v in inputs]
    wanted = in_turn(*exact)
    with bf16():
        if outside is None:
            with torch.no_grad():  # as in a test
                assert_near(at_once(*inputs), wanted, within=0.03)
            return
        if outside == "grad":
            found = grad(lambda *v: (at_once(*v) * factors(wanted)).sum(), (0, 1, 2))(*inputs)
        else:
            own = [v.clone().requires_grad_() for v in inputs]
            found = torch.autograd.grad((at_once(*own) * factors(wanted).float()).sum(), own)
    again = torch.autograd.grad((wanted * factors(wanted)).sum(), exact)
    for got, its in zip(found, again, strict=True):
        assert_near(got, its, within=0.03)


def layer(channels=16, filters=32, size=3, **options):
    return nn.Conv2d(channels, filters, size, padding=size // 2, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "filters"), [(16, 32), (48, 64), (64, 96)])
def test_what_it_can_sum(channels, filters, bias):
    with bf16():
        x = torch.zeros(2, channels, 5, 4, dtype=torch.bfloat16)
        assert can_sum(x, layer(channels, filters, bias=bias))


@pytest.mark.parametrize(
    "convolution",
    [
        layer(channels=3),
        layer(channels=24),
        layer(filters=16),
        layer(filters=48),
        layer(size=1),
        layer(size=5),
        layer(stride=2),
        layer(dilation=2),
        layer(groups=2),
        layer(padding_mode="circular"),
        nn.Conv2d(16, 32, 3),
        nn.Conv2d(16, 32, 3, padding="same"),
        layer().requires_grad_(False),
    ],
    ids=str,
)
def test_what_it_cannot_sum(convolution):
    """Other channels, filters and kernels, and what does not learn."""
    with bf16():
        x = torch.zeros(2, convolution.in_channels, 8, 8, dtype=torch.bfloat16)
        assert not can_sum(x, convolution)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_not_maps_of_another_type(dtype):
    with bf16():
        assert not can_sum(torch.zeros(2, 16, 8, 8, dtype=dtype), layer())


def test_not_without_autocast_to_bfloat16():
    x = torch.zeros(2, 16, 8, 8, dtype=torch.bfloat16)
    assert not can_sum(x, layer())
    assert not can_sum(x, layer().bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert not can_sum(x, layer())


def test_not_with_autocast_to_float16():
    """Where the gradient by the maps is of that type."""
    with torch.autocast("cpu", torch.float16):
        assert not can_sum(torch.zeros(2, 16, 8, 8, dtype=torch.bfloat16), layer())


def test_not_one_image_without_its_dimension():
    with bf16():
        assert not can_sum(torch.zeros(16, 8, 8, dtype=torch.bfloat16), layer())


def test_not_when_switched_off():
    library.use(False)
    with bf16():
        assert not can_sum(torch.zeros(2, 16, 8, 8, dtype=torch.bfloat16), layer())


def varied(network):
    """Of which no scale or shift is what it begins with."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.to(memory_format=torch.channels_last)


def of_network(network, x, *, dtype=torch.float32, kernels):
    """By name, of a number made of the features; in bfloat16 unless `dtype` is float64. Without
    those that are nothing but rounding: batch norm takes a convolution's bias out again."""
    library.use(kernels)
    network, x = deepcopy(network).to(dtype), x.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y = network(F.conv2d(x, torch.eye(x.shape[1], dtype=dtype)[..., None, None])).to(dtype)
    params = {k: v for k, v in network.named_parameters() if not k.endswith("0.bias")}
    found = torch.autograd.grad((y.sin() * factors(y)).sum(), params.values())
    return {name: g.double() for name, g in zip(params, found, strict=True)}


def distances(found, wanted):
    """How far from the truth, each as a share of its length."""
    return torch.stack([(found[name] - g).norm() / g.norm() for name, g in wanted.items()])


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize(("channels", "width", "size"), [(3, 32, 24), (1, 64, 16)])
def test_a_conv4(channels, width, size, batch_norm, sums):
    """With all the kernels it is as near to float64's as it is without any. (They round less, so
    that it is not near to that in each number.)"""
    torch.manual_seed(0)
    network = varied(Conv4((channels, size, size), width, batch_norm, pools=2, blocks=3))
    x = normal(6, channels, size, size)
    wanted = of_network(network, x, dtype=torch.float64, kernels=False)
    plain = distances(of_network(network, x, kernels=False), wanted)
    assert not sums
    ours = distances(of_network(network, x, kernels=True), wanted)
    assert len(sums) == 2
    assert ours.max() < 0.25
    assert ours.mean() < 1.2 * plain.mean()


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize(("channels", "width", "convolutions"), [(16, 32, 3), (8, 64, 2)])
def test_a_resnet12_block(channels, width, convolutions, batch_norm, sums):
    """Only the weights' gradients are summed otherwise, those of the first convolution not where it
    has too few channels."""
    torch.manual_seed(0)
    network = varied(resnet12.Block(channels, width, batch_norm, pool=True))
    x = normal(5, channels, 12, 13)
    wanted = of_network(network, x, dtype=torch.float64, kernels=False)
    plain = of_network(network, x, kernels=False)
    assert not sums
    ours = of_network(network, x, kernels=True)
    assert len(sums) == convolutions
    assert distances(ours, plain).max() < 2**-8
    assert distances(ours, wanted).max() < 0.25


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("width", [16, 32])
def test_a_network_of_tasks_at_once(width, learning, own_weights, kernels):
    """In bfloat16, as evaluation and a training of several seeds have it, with filters that the
    kernel is for and others, near to a loop's in float64."""
    torch.manual_seed(0)
    network = Conv4((1, 12, 12), width, "batch", pools=2, blocks=3).requires_grad_(learning)
    library.use(kernels)
    x, params = normal(3, 4, 1, 12, 12), dict(network.named_parameters())
    if own_weights:
        params = {k: torch.stack([v, 1.1 * v, 0.9 * v]) for k, v in params.items()}

    def features(params, x):
        return functional_call(network, params, (x,))

    with bf16(), torch.set_grad_enabled(learning):
        found = torch.vmap(features, (0 if own_weights else None, 0))(params, x)
    library.use(False)
    exact = {name: p.detach().double() for name, p in params.items()}
    for i, task in enumerate(x.double()):
        wanted = features({k: v[i] if own_weights else v for k, v in exact.items()}, task)
        assert (found[i].detach() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("own_weights", [False, True])
def test_an_inner_step_of_tasks_at_once(own_weights, kernels):
    """By a network in bfloat16: the loss after it and its gradient, as near to a loop's in float64
    with kernels as without."""
    torch.manual_seed(0)
    network = Conv4((1, 12, 12), 32, "batch", pools=2, blocks=2)
    library.use(kernels)
    x = normal(3, 4, 1, 12, 12)

    def loss(params, x):
        y = functional_call(network, params, (x,)).to(params["0.1.bias"].dtype)
        return (y.sin() * factors(y)).mean()

    def after_a_step(params, x):
        slopes = grad(loss)(params, x)
        return loss({name: p - 0.1 * slopes[name] for name, p in params.items()}, x)

    def outcome(params, x, f):
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
        losses = f(params, x)
        return losses.detach(), torch.autograd.grad(losses.sum(), params["1.0.weight"])[0]

    def in_turn(params, x):
        each = [{k: v[i] if own_weights else v for k, v in params.items()} for i in range(3)]
        return torch.stack([after_a_step(*task) for task in zip(each, x, strict=True)])

    params = dict(network.named_parameters())
    if own_weights:
        params = {k: torch.stack([v, 1.1 * v, 0.9 * v]) for k, v in params.items()}
    with bf16():
        found = outcome(params, x, torch.vmap(after_a_step, (0 if own_weights else None, 0)))
    library.use(False)
    exact = {name: p.double() for name, p in params.items()}
    for got, wanted in zip(found, outcome(exact, x.double(), in_turn), strict=True):
        assert (got - wanted).norm() < 0.15 * wanted.norm()
