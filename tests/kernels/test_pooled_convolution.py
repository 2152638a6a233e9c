"""Beside torch's own operations in float64."""

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional as F

from metarun.backbones.conv4 import Conv4
from metarun.kernels import library
from metarun.kernels.pooled_convolution import can_convolve, patch_moments, pooled_convolution

SIZES = [(2, 2), (3, 2), (8, 8), (9, 6), (5, 12), (7, 7), (28, 28)]
FILTERS = [16, 32, 48, 64, 112]
COUNT = 11  # images: more than have their gradients added up together, and not a multiple


pytestmark = pytest.mark.usefixtures("kernels")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape, most, seed=0):
    """Whole numbers, whose sums and products are exact in float32."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=draw).float()


def arguments(channels=1, size=(8, 8), filters=16, count=COUNT, tasks=()):
    """Images, weight and bias."""
    return (
        normal(*tasks, count, channels, *size),
        normal(*tasks, filters, channels, 3, 3, seed=1) / 3,
        normal(*tasks, filters, seed=2) / 3,
    )


def ours(x, weight, bias):
    return pooled_convolution(x, weight, bias, torch.float32)


def rounded(x, weight, bias):
    return pooled_convolution(x, weight, bias, torch.bfloat16)


def torchs(x, weight, bias):
    return F.max_pool2d(F.conv2d(x, weight, bias, padding=1), 2).relu()


def settled(x, weight, bias):
    """1 where what comes out is clearly made of one number or clearly of none, and 0 where rounding
    may decide."""
    y = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    height, width = y.shape[2] // 2, y.shape[3] // 2
    squares = y[..., : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2))
    first, second = squares.movedim(3, 4).flatten(4).topk(2).values.unbind(-1)
    return ((first - second > 1e-4) & (first.abs() > 1e-4) | (first < -1e-4)).double()


def assert_near(got, wanted, within=1e-5):
    """To so many of the largest number."""
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), wanted, rtol=0, atol=within * wanted.abs().max().item()
    )


def derivatives(f, x, weight, bias, order, counted):
    """By weight and bias, of a number made of what f gives; then of a number made of those."""
    inputs = [v.detach().requires_grad_() for v in (weight, bias)]
    share = counted.to(x.dtype) * len(bias) / counted.numel()  # so that no sum becomes large
    number = (f(x, *inputs).sin() * share).sum()
    found = []
    for _ in range(order):
        found.append(torch.autograd.grad(number, inputs, create_graph=True))
        number = sum(g.sin().sum() for g in found[-1])
    return [g for grads in found for g in grads]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_and_its_derivatives_are_those_of_torch(channels, size, filters):
    """Derivatives up to the third, by weight and bias."""
    inputs = arguments(channels, size, filters)
    exact = [v.double() for v in inputs]
    assert_near(ours(*inputs), torchs(*exact))
    counted = settled(*inputs)
    assert counted.mean() > 0.95
    got = derivatives(ours, *inputs, 3, counted)
    for mine, its in zip(got, derivatives(torchs, *exact, 3, counted), strict=True):
        assert_near(mine, its, within=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_numbers_come_out_exactly(channels):
    """With many that are equal: the gradient is that of a square's first, and none of a zero's."""
    inputs = [
        whole(COUNT, channels, 9, 10, most=2),
        whole(16, channels, 3, 3, most=1, seed=1),
        whole(16, most=2, seed=2),
    ]
    factors = whole(COUNT, 16, 4, 5, most=3, seed=3)
    results = []
    for f, dtype in ((ours, torch.float32), (torchs, torch.float64)):
        x, weight, bias = (v.to(dtype) for v in inputs)
        weight.requires_grad_()
        bias.requires_grad_()
        y = f(x, weight, bias)
        grads = torch.autograd.grad((y * factors).sum(), (weight, bias))
        results.append([v.detach().double() for v in (y, *grads)])
    assert (results[1][0] == 0).double().mean() > 0.05
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


def test_it_lies_channels_last():
    y = ours(*arguments(filters=32))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_images_that_lie_otherwise():
    x, weight, bias = arguments(channels=3)
    wanted = ours(x, weight, bias)
    assert torch.equal(ours(x.to(memory_format=torch.channels_last), weight, bias), wanted)
    assert torch.equal(ours(x.mT.contiguous().mT, weight, bias), wanted)
    assert torch.equal(ours(x[::2], weight, bias), wanted[::2])
    assert torch.equal(patch_moments(x[::2]), patch_moments(x)[::2])


def test_no_images():
    x, weight, bias = arguments(count=0)
    weight.requires_grad_()
    y = ours(x, weight, bias)
    assert y.shape == (0, 16, 4, 4)
    y.sum().backward()
    assert not weight.grad.any()
    assert patch_moments(x).shape == (0, 10, 10)


@pytest.mark.parametrize("numbers", ["any", "whole"])
def test_bfloat16_is_float32_rounded(numbers):
    """To the nearest, and half way between two to the even one: of whole numbers from 256 to 512
    every odd one is half way."""
    if numbers == "any":
        inputs = arguments(channels=3, filters=48)
    else:
        inputs = whole(4, 3, 9, 8, most=9), whole(48, 3, 3, 3, most=9, seed=1), torch.zeros(48)
    exact, y = ours(*inputs), rounded(*inputs)
    if numbers == "whole":
        assert ((exact > 256) & (exact < 512) & (exact % 2 == 1)).sum() > 50
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())


def test_derivatives_of_bfloat16_maps():
    """The gradient by weight and bias keeps float32's precision, for a gradient by the maps in
    bfloat16; and what goes back to that is in bfloat16 too."""
    x, weight, bias = arguments(channels=3, filters=48)
    by_maps = (normal(COUNT, 48, 4, 4, seed=3) * settled(x, weight, bias)).bfloat16()
    factors = normal(48, 3, 3, 3, seed=4)
    results = []
    for f, dtype in ((rounded, torch.float32), (torchs, torch.float64)):
        x, weight, bias, factors = (v.to(dtype) for v in (x, weight, bias, factors))
        inputs = [v.detach().requires_grad_() for v in (weight, bias)]
        y = f(x, *inputs)
        g = by_maps.to(y.dtype, copy=True).requires_grad_()
        slopes = torch.autograd.grad(y, inputs, g, create_graph=True)
        (back,) = torch.autograd.grad((slopes[0] * factors).sum(), g)
        results.append([*slopes, back])
    (by_weight, by_bias, back), (wanted_by_weight, wanted_by_bias, wanted_back) = results
    assert_near(by_weight, wanted_by_weight)
    assert_near(by_bias, wanted_by_bias)
    assert back.dtype == torch.bfloat16
    torch.testing.assert_close(back.double(), wanted_back, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_no_number_comes_out_as_of_torch(channels, value, dtype):
    x, weight, bias = arguments(channels, size=(8, 10), count=4)
    x[0, 0, 0, 0] = x[1, -1, 3, 4] = x[2, 0, -1, -1] = value
    got, wanted = pooled_convolution(x, weight, bias, dtype), torchs(x, weight, bias)
    assert 0 < wanted[:3].isfinite().double().mean() < 1
    assert wanted[3].isfinite().all()
    within = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(got.float(), wanted, rtol=within, atol=within, equal_nan=True)


@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000, 0x7FFFFFFF, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_nan_comes_out_as_nan(dtype, bits):
    """Whichever of its bits are set."""
    x, weight, bias = arguments(count=1, size=(4, 4))
    x[0, 0, 1, 1] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert x.isnan().any()
    nan = pooled_convolution(x, weight, bias, dtype).isnan()
    assert nan.all()


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (2, 1, None)])
def test_tasks_at_once_equal_one_at_a_time(in_dims):
    """Whichever of the inputs differ between the tasks, and wherever their dimension stands; with
    first, second and third derivatives."""
    inputs = [
        v[0] if d is None else v.movedim(0, d)
        for v, d in zip(arguments(channels=3, tasks=(3,)), in_dims, strict=True)
    ]

    def at_once(*inputs):
        return torch.vmap(ours, in_dims)(*inputs)

    def in_turn(f, inputs):
        each = [
            [v if d is None else v.select(d, task) for v, d in zip(inputs, in_dims, strict=True)]
            for task in range(3)
        ]
        return torch.stack([f(*of_task) for of_task in each])

    assert torch.equal(at_once(*inputs), in_turn(ours, inputs))
    assert_equal_torchs_in_turn(at_once, in_turn, inputs)


def test_tasks_of_seeds_at_once():
    """A vmap within another: the weights differ by seed, the images by seed and task."""
    inputs = normal(2, 3, 5, 1, 8, 8), normal(2, 16, 1, 3, 3, seed=1), normal(2, 16, seed=2)

    def of_seed(x, weight, bias):
        return torch.vmap(ours, (0, None, None))(x, weight, bias)

    def in_turn(f, inputs):
        seeds = zip(*inputs, strict=True)
        return torch.stack([torch.stack([f(x, w, b) for x in tasks]) for tasks, w, b in seeds])

    assert_equal_torchs_in_turn(torch.vmap(of_seed), in_turn, inputs)


def assert_equal_torchs_in_turn(at_once, in_turn, inputs):
    """In values and derivatives up to the third."""
    exact, counted = [v.double() for v in inputs], in_turn(settled, inputs)

    def torchs_in_turn(*inputs):
        return in_turn(torchs, inputs)

    assert_near(at_once(*inputs), torchs_in_turn(*exact))
    got = derivatives(at_once, *inputs, 3, counted)
    for mine, its in zip(got, derivatives(torchs_in_turn, *exact, 3, counted), strict=True):
        assert_near(mine, its, within=1e-4)


def test_gradients_within_gradients_of_tasks():
    """As an inner loop takes them: torch.func.grad in torch.vmap, differentiated from outside."""
    x, weight, bias = arguments(channels=3, tasks=(3,))
    weight, bias = weight[0], bias[0]
    counted = torch.stack([settled(task, weight, bias) for task in x])

    def number(f, x, w, b, counted):
        return (f(x, w, b).sin() * counted.to(x.dtype)).sum()

    def slopes(w, b):
        def of_task(x, counted):
            return grad(lambda w: number(ours, x, w, b, counted))(w)

        return torch.vmap(of_task)(x, counted)

    def slopes_in_turn(w, b):
        return torch.stack(
            [
                torch.autograd.grad(number(torchs, task, w, b, marks), w, create_graph=True)[0]
                for task, marks in zip(x.double(), counted, strict=True)
            ]
        )

    results = []
    for f, dtype in ((slopes, torch.float32), (slopes_in_turn, torch.float64)):
        inputs = [v.to(dtype, copy=True).requires_grad_() for v in (weight, bias)]
        found = f(*inputs)
        results.append([found, *torch.autograd.grad(found.sin().sum(), inputs)])
    for got, wanted in zip(*results, strict=True):
        assert_near(got, wanted, within=1e-4)


@pytest.mark.parametrize(
    "shape",
    [(5, 1, 2, 3), (5, 3, 7, 8), (3, 1, 28, 28), (2, 1, 105, 105), (2, 3, 84, 84), (1, 3, 5, 700)],
)
@pytest.mark.parametrize("numbers", ["any", "whole"])
def test_moments_of_the_patches(shape, numbers):
    """From torch's own patches; of whole numbers exactly."""
    x = whole(*shape, most=3) if numbers == "whole" else normal(*shape) + 1
    patches = F.unfold(x.double(), 3, padding=1)  # [N, 9 C, H · W]
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
    wanted, got = patches @ patches.mT, patch_moments(x)
    assert got.dtype == torch.float64
    assert torch.equal(got, got.mT)
    if numbers == "whole":
        assert torch.equal(got, wanted)
    else:
        atol = 1e-6 * shape[2] * shape[3]
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def test_moments_of_tasks_at_once():
    x = normal(2, 3, 4, 1, 6, 7)
    wanted = torch.stack([torch.stack([patch_moments(task) for task in tasks]) for tasks in x])
    assert torch.equal(torch.vmap(torch.vmap(patch_moments))(x), wanted)
    assert torch.equal(torch.vmap(patch_moments, in_dims=3)(x[0].movedim(0, 3)), wanted[0])


def test_moments_are_constants():
    x, weight = normal(2, 1, 4, 4), torch.ones((), requires_grad=True)
    assert not patch_moments(x).requires_grad
    (weight * patch_moments(x)).sum().backward()
    torch.testing.assert_close(weight.grad.double(), patch_moments(x).sum())


def test_the_number_of_threads_changes_nothing():
    """Not a bit: of values, derivatives and moments, for many images and for tasks of a few."""

    def results(threads):
        torch.set_num_threads(threads)
        for count, tasks in ((37, ()), (3, (5,))):
            x, *weights = arguments(channels=3, filters=48, count=count, tasks=tasks)
            f, moments = (torch.vmap(g) if tasks else g for g in (ours, patch_moments))
            y = f(x, *weights)
            yield from (y, *derivatives(f, x, *weights, 3, torch.ones_like(y)), moments(x))

    before = torch.get_num_threads()
    try:
        wanted = list(results(1))
        for threads in (2, 3):
            for got, its in zip(results(threads), wanted, strict=True):
                assert torch.equal(got, its)
    finally:
        torch.set_num_threads(before)


def convolution(channels=1, filters=16, size=3, **options):
    return nn.Conv2d(channels, filters, size, padding=size // 2, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("filters", FILTERS)
def test_what_it_can_convolve(channels, filters):
    assert can_convolve(
        torch.rand(2, channels, 8, 9), convolution(channels, filters), torch.float32
    )


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((4, 2, 8, 8), convolution(channels=2)),
        ((4, 16, 8, 8), convolution(channels=16)),
        ((4, 1, 8, 8), convolution(filters=8)),
        ((4, 1, 8, 8), convolution(filters=24)),
        ((4, 1, 8, 8), convolution(size=1)),
        ((4, 1, 8, 8), convolution(size=5)),
        ((4, 1, 8, 8), nn.Conv2d(1, 16, (3, 5), padding=(1, 2))),
        ((4, 1, 8, 8), convolution(bias=False)),
        ((4, 1, 8, 8), convolution().double()),
        ((4, 3, 8, 8), convolution(channels=3, filters=48, groups=3)),
        ((4, 1, 1, 8), convolution()),
        ((4, 1, 8, 1), convolution()),
        ((1, 8, 8), convolution()),
    ],
    ids=str,
)
def test_what_it_cannot_convolve(shape, layer):
    """Other channels, filters, kernels, types and shapes."""
    assert not can_convolve(torch.rand(*shape), layer, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_not_images_of_another_type(dtype):
    images = torch.zeros(2, 1, 8, 8, dtype=dtype)
    assert not can_convolve(images, convolution(), torch.float32)
    assert not can_convolve(images, convolution().to(dtype), torch.float32)


@pytest.mark.parametrize(
    ("dtype", "can"),
    [
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float16, False),
        (torch.float64, False),
    ],
)
def test_what_type_the_maps_can_have(dtype, can):
    assert can_convolve(torch.rand(2, 1, 8, 8), convolution(), dtype) == can


def test_not_when_switched_off():
    library.use(False)
    assert not can_convolve(torch.rand(2, 1, 8, 8), convolution(), torch.float32)


def test_not_images_whose_gradient_is_wanted():
    layer, said = convolution(), []

    def number(x):
        said.append(can_convolve(x, layer, torch.float32))
        return x.sum()

    x = torch.rand(2, 1, 8, 8)
    number(x.clone().requires_grad_())
    grad(number)(x)
    torch.vmap(grad(number))(torch.rand(3, 2, 1, 8, 8))
    assert said == [False, False, False]
    # By something else it is not:
    grad(lambda w: w * number(x))(torch.ones(()))
    assert said.pop()


def by_autograd(f, x):
    x = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(f(x).sum(), x, allow_unused=True)
    assert got is not None, "no gradient by the images"
    return got


@pytest.mark.parametrize(
    "gradient",
    [
        lambda f, x: torch.stack([by_autograd(f, task) for task in x]),
        lambda f, x: torch.stack([grad(f)(task) for task in x]),
        lambda f, x: torch.vmap(grad(f))(x),
    ],
    ids=["autograd", "grad", "grad in vmap"],
)
@pytest.mark.parametrize("batch_norm", ["batch", "none"])
def test_gradients_of_a_network_by_its_images(batch_norm, gradient):
    """Which the kernels leave to torch, where they see that one is wanted."""
    network, x = one_block(batch_norm), normal(3, 4, 1, 8, 8)

    def number(x):
        return network(x).sin().sum()

    got = gradient(number, x)
    network.double()
    wanted = torch.stack([by_autograd(number, task) for task in x.double()])
    assert_near(got, wanted, within=1e-4)


@pytest.mark.parametrize(
    "gradient",
    [
        lambda f, x: grad(lambda x: torch.vmap(f)(x).sum())(x),
        lambda f, x: by_autograd(torch.vmap(f), x),
    ],
    ids=["grad", "autograd"],
)
@pytest.mark.parametrize("batch_norm", ["batch", "none"])
def test_gradients_by_the_images_within_vmap_are_refused(batch_norm, gradient):
    """There nothing tells that one is wanted until it is asked for."""
    network = one_block(batch_norm)
    with pytest.raises(RuntimeError, match="no gradient by the images"):
        gradient(lambda x: network(x).sin().sum(), normal(3, 4, 1, 8, 8))


def one_block(batch_norm):
    torch.manual_seed(0)
    return Conv4((1, 8, 8), width=16, batch_norm=batch_norm, blocks=1, pools=1)


def slopes_by_weights(network, x, number):
    """A number made of the gradients, by the weights, of `number` of the features."""
    params = dict(network.named_parameters())
    slopes = grad(lambda p: number(torch.func.functional_call(network, p, x)))(params)
    return sum(slope.sin().sum() for slope in slopes.values())


@pytest.mark.parametrize("number", [lambda y: y.sin().sum(), lambda y: y.sum()])
def test_gradients_by_images_of_gradients_by_weights_within_vmap_are_refused(number):
    """Also where those gradients do not depend on the features."""
    network, x = one_block("none"), normal(3, 4, 1, 8, 8).requires_grad_()
    y = torch.vmap(lambda x: slopes_by_weights(network, x, number))(x).sum() + x.sum()
    with pytest.raises(RuntimeError, match="no gradient by the images"):
        y.backward()


def test_gradients_by_images_of_gradients_by_weights():
    """As when the support set itself is learnt."""
    network, x = one_block("batch"), normal(4, 1, 8, 8)

    def number(x):
        return slopes_by_weights(network, x, lambda y: y.sin().sum())

    got, again = by_autograd(number, x), grad(number)(x)
    network.double()
    wanted = by_autograd(number, x.double())
    assert_near(got, wanted, within=1e-4)
    assert_near(again, wanted, within=1e-4)
