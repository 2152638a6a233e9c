"""Beside torch's own operations, in float64 on the same numbers."""

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
from metarun.kernels import library, winograd
from metarun.kernels.winograd import Product, by_weight, can_convolve, convolution

FULL, BRIEF = torch.float32, torch.bfloat16
NEAR = {FULL: 2e-6, BRIEF: 2**-7}  # to so many of the largest number


@pytest.fixture(autouse=True)
def in_use(kernels):
    """The kernels are in use."""


@pytest.fixture
def bf16(kernels):
    """The processor multiplies bfloat16 numbers."""
    if not winograd.multiplies_bfloat16():
        pytest.skip("the processor has no AVX512-BF16")


@pytest.fixture(params=[FULL, BRIEF], ids=["float32", "bfloat16"])
def dtype(request):
    """Of the maps."""
    if request.param == BRIEF:
        request.getfixturevalue("bf16")
    return request.param


@pytest.fixture
def convolved(monkeypatch) -> list:
    """The shapes of the maps that kernels were given for weights' gradients."""
    shapes = []

    def remembered(x, g):
        shapes.append((*x.shape[:-4], x.shape[-1], g.shape[-1]))
        return by_weight(x, g)

    monkeypatch.setattr(winograd, "by_weight", remembered)
    return shapes


def normal(*shape, seed=0):
    """Numbers that bfloat16 has, in float32."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return numbers.bfloat16().float()


def arguments(channels=16, filters=32, size=(6, 7), count=5, tasks=()):
    """Maps, weight and bias."""
    return (
        normal(*tasks, count, channels, *size),
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


def slopes(f, inputs, dtypes, create_graph=False):
    """What f gives, and its gradients by the inputs that there are, for one by the maps that
    bfloat16 has."""
    x, *rest = inputs
    inputs = [
        x.to(dtypes[0], copy=True),
        *(v.to(dtypes[1], copy=True) for v in rest if v is not None),
    ]
    for v in inputs:
        v.requires_grad_()
    y = f(*inputs, *(None for v in rest if v is None))
    g = normal(*y.shape, seed=5).to(y.dtype)
    return y, inputs, torch.autograd.grad(y, inputs, g, create_graph=create_graph)


EXACT = (torch.float64, torch.float64)


def assert_right(dtype, *inputs):
    """The convolution and its gradients, in their types."""
    y, _, found = slopes(convolution, inputs, (dtype, FULL))
    exact, _, wanted = slopes(torchs, inputs, EXACT)
    assert [v.dtype for v in (y, *found)] == [dtype, dtype, FULL, FULL][: 1 + len(found)]
    for got, its in zip((y, *found), (exact, *wanted), strict=True):
        assert_near(got, its, NEAR[dtype])


@pytest.mark.parametrize("channels", [16, 32, 48, 64, 80])
@pytest.mark.parametrize("filters", [16, 32, 64, 96, 128])
def test_channels_and_filters(filters, channels, dtype):
    """One, two and four vectors of them at a time, either way."""
    assert_right(dtype, *arguments(channels, filters))


@pytest.mark.parametrize("count", [1, 2, 7, 12, 13, 16, 24, 25, 60])
def test_numbers_of_images(count, dtype):
    """Of 4 tiles each, of which the kernels take 48 together: fewer, as many, and more."""
    assert_right(dtype, *arguments(count=count, size=(4, 4)))


@pytest.mark.parametrize(
    "size", [(2, 2), (2, 3), (3, 2), (3, 3), (2, 100), (100, 2), (5, 8), (8, 5), (21, 21), (42, 40)]
)
def test_sizes_of_maps(size, dtype):
    """Even and odd, and images that end within a block."""
    assert_right(dtype, *arguments(size=size, count=3))


def test_without_a_bias(dtype):
    x, weight, _ = arguments()
    assert_right(dtype, x, weight, None)


def test_no_images():
    y, _, found = slopes(convolution, arguments(count=0), (FULL, FULL))
    assert y.shape == (0, 32, 6, 7)
    assert [v.shape for v in found] == [(0, 16, 6, 7), (32, 16, 3, 3), (32,)]
    assert not any(v.any() for v in found)


def test_whole_numbers_are_convolved_exactly(dtype):
    """Of even taps: halves of their sums are whole too, and small enough for bfloat16."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 10, (7, 16, 9, 8), generator=draw).double()
    g = torch.randint(-9, 10, (7, 32, 9, 8), generator=draw).double()
    weight = 4.0 * torch.randint(-3, 4, (32, 16, 3, 3), generator=draw)
    maps, of_output = (v.to(dtype).movedim(1, -1) for v in (x, g))
    y = Product.apply(maps, weight.movedim(1, -1), None, None).movedim(-1, 1)
    wanted = F.conv2d(x, weight.double(), padding=1)
    assert torch.equal(y, wanted.to(dtype))
    found = by_weight(maps, of_output).movedim(-1, 1)
    assert torch.equal(found.double(), conv2d_weight(x, weight.shape, g, padding=1))


def test_maps_that_lie_otherwise(dtype):
    x, weight, bias = arguments()
    x = x.to(dtype)
    wanted, last = convolution(x, weight, bias), torch.channels_last
    assert wanted.is_contiguous(memory_format=last)
    for maps in (x.to(memory_format=last), x.mT.contiguous().mT):
        for taps in (weight.to(memory_format=last), weight.mT.contiguous().mT):
            assert torch.equal(convolution(maps, taps, bias), wanted)
    assert torch.equal(convolution(x[::2], weight, bias), convolution(x, weight, bias)[::2])
    alike = x[:, :, :1, :1].expand(x.shape)
    assert torch.equal(convolution(alike, weight, bias), convolution(alike.clone(), weight, bias))


def test_a_nan_spoils_what_it_would_spoil(dtype):
    """The pixels beside it; in a gradient its channel or filter."""
    x, weight, bias = arguments(size=(9, 10))
    x[2, 3, 4, 4] = torch.nan
    spoilt = convolution(x.to(dtype), weight, bias).isnan().any(1)
    wanted = torch.zeros(5, 9, 10, dtype=torch.bool)
    wanted[2, 3:6, 3:6] = True
    assert torch.equal(spoilt, wanted)
    g = normal(5, 32, 9, 10, seed=1)
    g[1, 7, 3, 3] = torch.nan
    found = by_weight(x.to(dtype).movedim(1, -1), g.to(dtype).movedim(1, -1)).isnan()
    wanted = torch.zeros(32, 3, 3, 16, dtype=torch.bool)
    wanted[7] = wanted[..., 3] = True
    assert torch.equal(found, wanted)


def test_the_number_of_threads_changes_nothing(dtype):
    """Not a bit."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        inputs = arguments(48, 64, (9, 8), 37)
        y, _, wanted = slopes(convolution, inputs, (dtype, FULL))
        for threads in (2, 3, 20):
            torch.set_num_threads(threads)
            again, _, found = slopes(convolution, inputs, (dtype, FULL))
            assert torch.equal(again, y)
            for ours, others in zip(found[:2], wanted[:2], strict=True):  # the bias is torch's sum
                assert torch.equal(ours, others)
    finally:
        torch.set_num_threads(before)


def test_a_backward_pass_outside_autocast(convolved, bf16):
    """As in training, where only the network is within it."""
    x, *_ = arguments()
    layer = Conv2d(16, 32, 3, padding=1)
    with torch.autocast("cpu", BRIEF):
        y = layer(x)
    assert y.dtype == BRIEF
    y.float().square().sum().backward()
    g = 2 * y.detach().double()
    exact = conv2d_weight(x.double(), layer.weight.shape, g, padding=1)
    assert_near(layer.weight.grad, exact, within=2**-7)
    assert_near(layer.bias.grad, g.sum((0, 2, 3)), within=2**-8)
    assert len(convolved) == 1


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_one_gradient_alone(wanted, convolved):
    i = ["x", "weight", "bias"].index(wanted)
    inputs = arguments()
    _, _, exact = slopes(torchs, inputs, EXACT)
    inputs = [v.requires_grad_(j == i) for j, v in enumerate(inputs)]
    y = convolution(*inputs)
    (got,) = torch.autograd.grad(y, inputs[i], normal(*y.shape, seed=5))
    assert_near(got, exact[i], NEAR[FULL])
    assert len(convolved) == (i == 1)


def derivatives(f, inputs, dtypes, order):
    """Each of a number made of those before it."""
    _, inputs, found = slopes(lambda *v: f(*v).sin(), inputs, dtypes, create_graph=True)
    for _ in range(order - 1):
        number = sum((v.to(dtypes[1]) * factors(v).to(dtypes[1])).sum() for v in found)
        found = torch.autograd.grad(number, inputs, create_graph=True)
    return found


@pytest.mark.parametrize("order", [2, 3])
def test_higher_derivatives(order, dtype):
    """In bfloat16 at most twice as far from the truth as by torch's own operations."""
    inputs = arguments(count=3)
    wanted = derivatives(torchs, inputs, EXACT, order)
    found = derivatives(convolution, inputs, (dtype, FULL), order)
    if dtype == FULL:
        for got, its in zip(found, wanted, strict=True):
            assert_near(got, its, within=2e-5)
        return

    def of_torch(x, weight, bias):
        return torchs(x, weight.to(BRIEF), bias.to(BRIEF))

    for got, other, its in zip(
        found, derivatives(of_torch, inputs, (BRIEF, FULL), order), wanted, strict=True
    ):
        assert (got - its).norm() < 2 * (other - its).norm() < 0.1 * its.norm()


@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (2, 1, None), (0, None, 0)]
)
def test_tasks_at_once(in_dims, dtype):
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

    y, _, found = slopes(torch.vmap(convolution, in_dims), inputs, (dtype, FULL))
    assert y.dtype == dtype
    exact, _, wanted = slopes(in_turn, inputs, EXACT)
    for got, its in zip((y, *found), (exact, *wanted), strict=True):
        assert_near(got, its, NEAR[dtype])


@pytest.mark.parametrize(("tasks", "size"), [(3, (42, 40)), (17, (6, 6)), (2, (28, 28))])
def test_parts_of_many_tasks(tasks, size, dtype):
    """Each with weights of its own, whose gradients are summed in several parts, or one."""
    assert_right_for_each(dtype, arguments(tasks=(tasks,), size=size, count=2))


def assert_right_for_each(dtype, inputs):
    y, _, found = slopes(torch.vmap(convolution), inputs, (dtype, FULL))
    exact, _, wanted = slopes(
        lambda *v: torch.stack([torchs(*task) for task in zip(*v, strict=True)]), inputs, EXACT
    )
    for got, its in zip((y, *found), (exact, *wanted), strict=True):
        assert_near(got, its, NEAR[dtype])


@pytest.mark.parametrize(
    ("inner", "outer"),
    [((0, None, None), (0, 0, 0)), ((0, 0, 0), (0, None, None)), ((None, 0, 0), (0, 0, 0))],
)
def test_tasks_of_tasks(inner, outer):
    """As of several seeds at once, each of many tasks; gradients too."""
    x, weight, bias = arguments(tasks=(2, 3), count=2)
    inputs = [
        v[(slice(None) if out is not None else 0, slice(None) if within is not None else 0)]
        for v, within, out in zip((x, weight, bias), inner, outer, strict=True)
    ]

    def of_task(i, j, inputs):
        return [
            v[tuple(k for k, d in ((i, out), (j, within)) if d is not None)]
            for v, within, out in zip(inputs, inner, outer, strict=True)
        ]

    def in_turn(*inputs):
        each = [[torchs(*of_task(i, j, inputs)) for j in range(3)] for i in range(2)]
        return torch.stack([torch.stack(row) for row in each])

    at_once = torch.vmap(torch.vmap(convolution, inner), outer)
    y, _, found = slopes(at_once, inputs, (FULL, FULL))
    exact, _, wanted = slopes(in_turn, inputs, EXACT)
    for got, its in zip((y, *found), (exact, *wanted), strict=True):
        assert_near(got, its, NEAR[FULL])


@pytest.mark.parametrize("outside", [None, "autograd", "grad"])
@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0), (None, 0, None)])
def test_gradients_within_tasks(in_dims, outside):
    """As an inner loop takes them: torch.func.grad in torch.vmap, differentiated from outside."""
    inputs = [
        v[0] if d is None else v
        for v, d in zip(arguments(count=2, tasks=(3,)), in_dims, strict=True)
    ]

    def number(f, *inputs):
        y = f(*inputs)
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
    if outside is None:
        with torch.no_grad():  # as in a test
            assert_near(at_once(*inputs), wanted, within=5e-6)
        return
    if outside == "grad":
        found = grad(lambda *v: (at_once(*v) * factors(wanted)).sum(), (0, 1, 2))(*inputs)
    else:
        own = [v.clone().requires_grad_() for v in inputs]
        found = torch.autograd.grad((at_once(*own) * factors(wanted).float()).sum(), own)
    again = torch.autograd.grad((wanted * factors(wanted)).sum(), exact)
    for got, its in zip(found, again, strict=True):
        assert_near(got, its, within=1e-5)


def layer(channels=16, filters=32, size=3, **options):
    return nn.Conv2d(channels, filters, size, padding=size // 2, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "filters"), [(16, 16), (48, 64), (320, 320)])
def test_what_it_can_convolve(channels, filters, bias, dtype):
    with torch.autocast("cpu", BRIEF, enabled=dtype == BRIEF):
        x = torch.zeros(2, channels, 5, 4)
        assert can_convolve(x, layer(channels, filters, bias=bias), dtype)
        assert can_convolve(x.to(dtype), layer(channels, filters, bias=bias), dtype)


@pytest.mark.parametrize(
    "convolution",
    [
        layer(channels=3),
        layer(channels=24),
        layer(filters=24),
        layer(channels=320, filters=416),
        layer(size=1),
        layer(size=5),
        layer(stride=2),
        layer(dilation=2),
        layer(channels=32, groups=2),
        layer(padding_mode="circular"),
        nn.Conv2d(16, 32, 3),
        nn.Conv2d(16, 32, 3, padding="same"),
        layer().double(),
        layer().bfloat16(),
    ],
    ids=str,
)
def test_what_it_cannot_convolve(convolution, dtype):
    """Other channels, filters, kernels and types."""
    with torch.autocast("cpu", BRIEF, enabled=dtype == BRIEF):
        assert not can_convolve(torch.zeros(2, convolution.in_channels, 8, 8), convolution, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_not_maps_of_another_type(dtype):
    assert not can_convolve(torch.zeros(2, 16, 8, 8, dtype=dtype), layer(), dtype)


def test_not_bfloat16_without_autocast():
    """Torch refuses maps and weights of two types, and goes on refusing them."""
    assert not can_convolve(torch.zeros(2, 16, 8, 8, dtype=BRIEF), layer(), BRIEF)
    with pytest.raises(RuntimeError, match="type"):
        Conv2d(16, 32, 3, padding=1)(torch.zeros(2, 16, 8, 8, dtype=BRIEF))


@pytest.mark.parametrize("shape", [(16, 8, 8), (2, 16, 1, 8), (2, 16, 8, 1)])
def test_not_maps_of_another_shape(shape):
    """One image without its dimension, and lines, of which a tile would be half empty."""
    assert not can_convolve(torch.zeros(shape), layer(), FULL)


def test_channels_that_do_not_fit_are_refused_by_torch():
    with pytest.raises(RuntimeError, match="channels"):
        Conv2d(32, 32, 3, padding=1)(torch.zeros(2, 16, 8, 8))


def test_not_when_switched_off():
    library.use(False)
    assert not can_convolve(torch.zeros(2, 16, 8, 8), layer(), FULL)


def varied(network):
    """Of which no scale or shift is what it begins with."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.to(memory_format=torch.channels_last)


def of_network(network, x, *, dtype=FULL, kernels):
    """By name, of a number made of the features; in bfloat16 unless `dtype` is float64. Without
    those that are nothing but rounding: batch norm takes a convolution's bias out again."""
    library.use(kernels)
    network, x = deepcopy(network).to(dtype), x.to(dtype)
    with torch.autocast("cpu", BRIEF, enabled=dtype == FULL):
        y = network(F.conv2d(x, torch.eye(x.shape[1], dtype=dtype)[..., None, None])).to(dtype)
    params = {k: v for k, v in network.named_parameters() if not k.endswith("0.bias")}
    found = torch.autograd.grad((y.sin() * factors(y)).sum(), params.values())
    return {name: g.double() for name, g in zip(params, found, strict=True)}


def distances(found, wanted):
    """How far from the truth, each as a share of its length."""
    return torch.stack([(found[name] - g).norm() / g.norm() for name, g in wanted.items()])


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize(("channels", "width", "size"), [(3, 32, 24), (1, 64, 16)])
def test_a_conv4(channels, width, size, batch_norm, convolved, bf16):
    """In bfloat16, where the kernels round more, it is on average at most 1.4 times as far from
    float64's as without them."""
    torch.manual_seed(0)
    network = varied(Conv4((channels, size, size), width, batch_norm, pools=2, blocks=3))
    x = normal(6, channels, size, size)
    wanted = of_network(network, x, dtype=torch.float64, kernels=False)
    plain = distances(of_network(network, x, kernels=False), wanted)
    assert not convolved
    ours = distances(of_network(network, x, kernels=True), wanted)
    assert len(convolved) == 2
    assert ours.max() < 0.25
    assert ours.mean() < 1.4 * plain.mean()


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
@pytest.mark.parametrize(("channels", "width", "convolutions"), [(16, 32, 3), (8, 64, 2)])
def test_a_resnet12_block(channels, width, convolutions, batch_norm, convolved, bf16):
    """As a conv4's; the first convolution not by the kernels where it has too few channels."""
    torch.manual_seed(0)
    network = varied(resnet12.Block(channels, width, batch_norm, pool=True))
    x = normal(5, channels, 12, 13)
    wanted = of_network(network, x, dtype=torch.float64, kernels=False)
    plain = distances(of_network(network, x, kernels=False), wanted)
    assert not convolved
    ours = distances(of_network(network, x, kernels=True), wanted)
    assert len(convolved) == convolutions
    assert ours.max() < 0.25
    assert ours.mean() < 1.4 * plain.mean()


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("width", [24, 32])
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

    with torch.autocast("cpu", BRIEF), torch.set_grad_enabled(learning):
        found = torch.vmap(features, (0 if own_weights else None, 0))(params, x)
    library.use(False)
    exact = {name: p.detach().double() for name, p in params.items()}
    for i, task in enumerate(x.double()):
        wanted = features({k: v[i] if own_weights else v for k, v in exact.items()}, task)
        assert (found[i].detach() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("own_weights", [False, True])
def test_an_inner_step_of_tasks_at_once(own_weights, kernels):
    """By a network in bfloat16, with kernels and without: the loss after it and its gradient, near
    to a loop's in float64."""
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
    with torch.autocast("cpu", BRIEF):
        found = outcome(params, x, torch.vmap(after_a_step, (0 if own_weights else None, 0)))
    library.use(False)
    exact = {name: p.double() for name, p in params.items()}
    for got, wanted in zip(found, outcome(exact, x.double(), in_turn), strict=True):
        assert (got - wanted).norm() < 0.15 * wanted.norm()
