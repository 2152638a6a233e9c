"""Beside torch's own operations in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from metarun.backbones.batch_norm import BatchNorm, statistics_from
from metarun.backbones.conv4 import Conv4
from metarun.backbones.pooling import can_pool, pooled_normalisation
from metarun.kernels import library
from metarun.kernels.pooled_normalisation import maps_of

EPS = 1e-5
NAN_BITS = [0x7FC0, -0x40, 0x7FFF, -1, 0x7F81]


pytestmark = pytest.mark.usefixtures("kernels")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distinct(*shape, seed=0):
    """Numbers from -2 to 2, so far apart that rounding does not decide which is the largest."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (order.view(shape) + 0.5) * (4 / count) - 2


def arguments(filters=16, size=(8, 8), count=5, tasks=()):
    """Maps, weight and bias. Half of the weights are negative, and two are zero: of one filter
    nothing but the bias is left, of the other nothing."""
    x = distinct(*tasks, count, filters, *size) * normal(filters, 1, 1, seed=3).exp()
    weight, bias = normal(*tasks, filters, seed=1), normal(*tasks, filters, seed=2)
    weight[..., :2] = 0
    bias[..., 0], bias[..., 1] = 1, -1
    assert (weight < 0).any()
    return x + normal(filters, 1, 1, seed=4), weight, bias


class Pooled(nn.Module):
    """What is tested, as a module whose weight and bias torch.func can give it."""

    def __init__(self, filters):
        super().__init__()
        self.norm = BatchNorm(filters, "batch", eps=EPS)

    def forward(self, x):
        return pooled_normalisation(x, self.norm)


def ours(x, weight, bias):
    network = Pooled(weight.shape[-1])
    return functional_call(network, {"norm.weight": weight, "norm.bias": bias}, (x,))


def torchs(x, weight, bias):
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    y = centred * (variance + EPS).rsqrt() * weight[:, None, None] + bias[:, None, None]
    return F.max_pool2d(y, 2).relu()


def in_turn(f, in_dims):
    """What torch.vmap(f, in_dims) gives, by a loop."""

    def loop(*inputs):
        (count,) = {v.shape[d] for v, d in zip(inputs, in_dims, strict=True) if d is not None}
        return torch.stack(
            [
                f(
                    *(
                        v if d is None else v.select(d, i)
                        for v, d in zip(inputs, in_dims, strict=True)
                    )
                )
                for i in range(count)
            ]
        )

    return loop


def assert_near(got, wanted, within=1e-5):
    """To so many of the largest number."""
    assert got.shape == wanted.shape
    scale = wanted.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=within * scale)


def factors(like):
    """Of many sizes and both signs; not drawn, which torch.vmap forbids."""
    return torch.arange(1.0, 1 + like.numel()).cos().view(like.shape).to(like.dtype)


def number_of(f):
    """A number made of what f gives."""

    def number(*inputs):
        y = f(*inputs)
        return (y.sin() * factors(y)).sum()

    return number


def number_of_slopes(slopes):
    """A number made of gradients, of which each is multiplied by something else: the sum of those
    by x is nothing."""
    return sum((slope * factors(slope)).sum() for slope in slopes)


def derivatives(f, inputs):
    """First derivatives of a number made of f by its inputs, and second ones of one made of
    those, by torch.autograd."""
    inputs = [v.detach().requires_grad_() for v in inputs]
    first = torch.autograd.grad(number_of(f)(*inputs), inputs, create_graph=True)
    second = torch.autograd.grad(number_of_slopes(first), inputs)
    return [v.detach() for v in (*first, *second)]


def derivatives_by_func(f, inputs):
    """The same by torch.func."""
    which = (0, 1, 2)
    first = grad(number_of(f), which)
    return [*first(*inputs), *grad(lambda *v: number_of_slopes(first(*v)), which)(*inputs)]


def assert_equal_torchs(f, torchs, inputs, take=derivatives):
    """In values, first and second derivatives."""
    exact = [v.double() for v in inputs]
    assert_near(f(*inputs), torchs(*exact))
    for got, wanted in zip(take(f, inputs), derivatives(torchs, exact), strict=True):
        assert got.dtype == torch.float32
        assert_near(got, wanted, within=2e-5)


def parts(x):
    maps = maps_of(x.movedim(-3, -1))
    return -(-maps.images // maps.together)


@pytest.mark.parametrize("take", [derivatives, derivatives_by_func])
@pytest.mark.parametrize("filters", [16, 32, 48, 64])
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (2, 5), (8, 8), (9, 7), (21, 21)])
def test_it_and_its_derivatives_are_those_of_torch(size, filters, take):
    """Of odd sizes the last row and column count in the statistics, and are not pooled."""
    assert_equal_torchs(ours, torchs, arguments(filters, size), take)


@pytest.mark.parametrize(("filters", "size", "count"), [(16, (40, 40), 7), (64, (15, 16), 11)])
def test_images_in_several_parts(filters, size, count):
    """Of which the last has fewer."""
    inputs = arguments(filters, size, count)
    assert parts(inputs[0]) > 2
    assert count % maps_of(inputs[0].movedim(-3, -1)).together
    assert_equal_torchs(ours, torchs, inputs)


def test_a_map_larger_than_a_part():
    inputs = arguments(32, size=(50, 51), count=2)
    assert parts(inputs[0]) == 2
    assert_equal_torchs(ours, torchs, inputs)


def test_tasks_in_several_parts():
    inputs = arguments(64, size=(12, 12), count=9, tasks=(2,))
    assert parts(inputs[0]) > 1
    in_dims = (0, 0, 0)
    assert_equal_torchs(torch.vmap(ours, in_dims), in_turn(torchs, in_dims), inputs)


def test_worked_by_hand():
    """One square of 0, 0, 0 and 4: mean 1, variance 3. Normalised -1/√3 and √3 (ε aside), of
    which a positive weight pools the last and a negative one the first of the three."""
    x = torch.tensor([0.0, 0, 0, 4]).view(1, 1, 2, 2).expand(1, 16, 2, 2)
    weight, bias = torch.ones(16), torch.zeros(16)
    weight[1] = -3
    y = ours(x, weight, bias).flatten()
    torch.testing.assert_close(y[:2], torch.tensor([3**0.5, 3**0.5]), rtol=1e-5, atol=0)
    _, by_weight, by_bias = grad(lambda *v: ours(*v).sum(), (0, 1, 2))(x, weight, bias)
    torch.testing.assert_close(by_weight[:2], torch.tensor([3**0.5, -(3**-0.5)]), rtol=1e-5, atol=0)
    assert by_bias.tolist() == [1] * 16


def test_equal_numbers():
    """The gradient is that of a square's first, as of torch."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (5, 16, 8, 8), generator=draw).float()
    _, weight, bias = arguments()
    assert_equal_torchs(ours, torchs, (x, weight, bias))


def test_it_lies_channels_last():
    x, weight, bias = arguments(32, size=(8, 10))
    wanted = ours(x, weight, bias)
    assert wanted.is_contiguous(memory_format=torch.channels_last)
    for other in (x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        assert torch.equal(ours(other, weight, bias), wanted)
    assert torch.equal(ours(x[::2], weight, bias), ours(x[::2].contiguous(), weight, bias))


def test_gradients_that_lie_otherwise():
    x, *weights = arguments(32, size=(8, 10))
    g = normal(5, 32, 4, 5)
    found = []
    for by_y in (g, g.to(memory_format=torch.channels_last), g[:, :, :1, :1].expand(g.shape)):
        inputs = [v.requires_grad_() for v in (x, *weights)]
        found.append(torch.autograd.grad(ours(*inputs), inputs, by_y))
    for own, other in zip(*found[:2], strict=True):
        assert torch.equal(own, other)
    exact = [v.detach().double().requires_grad_() for v in (x, *weights)]
    wanted = torch.autograd.grad(torchs(*exact), exact, g[:, :, :1, :1].expand(g.shape).double())
    for got, its in zip(found[2], wanted, strict=True):
        assert_near(got, its)


@pytest.mark.parametrize("constant", [0, 0.1, 7, -300])
def test_a_filter_whose_numbers_do_not_vary(constant):
    """Nothing but the bias is left of it, and no gradient is infinite or NaN."""
    x, weight, bias = arguments()
    x[:, 5] = constant
    weight[5], bias[5] = 1, 0.5
    y = ours(x, weight, bias)
    torch.testing.assert_close(y[:, 5], torch.full_like(y[:, 5], 0.5), rtol=0, atol=0.02)
    assert all(v.isfinite().all() for v in derivatives(ours, (x, weight, bias)))


@pytest.mark.parametrize("size", [(8, 8), (40, 40), (84, 84)])
@pytest.mark.parametrize("mean", [30, 1000])
def test_a_large_mean_beside_a_small_spread(mean, size):
    """The mean of squares less the square of the mean would lose all digits but one or two. What
    is left to lose is that the numbers themselves are rounded at the size of their mean."""
    x = mean + normal(9, 16, *size).mul_(0.1)
    x[:, ::2] *= -1
    weight, bias = normal(16, seed=1), normal(16, seed=2)
    within = 2e-7 * mean / 0.1
    assert_near(ours(x, weight, bias), torchs(x.double(), weight.double(), bias.double()), within)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (2, 1, None)])
@pytest.mark.parametrize("take", [derivatives, derivatives_by_func])
def test_tasks_at_once(in_dims, take):
    """Whichever of the inputs differ between the tasks, and wherever their dimension stands."""
    inputs = [
        v[0] if d is None else v.movedim(0, d)
        for v, d in zip(arguments(size=(7, 6), tasks=(3,)), in_dims, strict=True)
    ]
    at_once = torch.vmap(ours, in_dims)
    assert torch.equal(at_once(*inputs), in_turn(ours, in_dims)(*inputs))
    assert_equal_torchs(at_once, in_turn(torchs, in_dims), inputs, take)


@pytest.mark.parametrize("take", [derivatives, derivatives_by_func])
def test_tasks_of_seeds_at_once(take):
    """A vmap within another: the weights differ by seed, the maps by seed and task."""
    x, _, _ = arguments(size=(6, 5), tasks=(2, 3))
    _, weight, bias = arguments(tasks=(2,))
    tasks, seeds = (0, None, None), (0, 0, 0)
    assert_equal_torchs(
        torch.vmap(torch.vmap(ours, tasks), seeds),
        in_turn(in_turn(torchs, tasks), seeds),
        (x, weight, bias),
        take,
    )


@pytest.mark.parametrize("outside", ["autograd", "grad"])
@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0), (None, 0, None)])
def test_gradients_within_gradients_of_tasks(in_dims, outside):
    """As an inner loop takes them: torch.func.grad in torch.vmap, differentiated from outside."""
    inputs = [
        v[0] if d is None else v
        for v, d in zip(arguments(size=(6, 7), tasks=(3,)), in_dims, strict=True)
    ]
    which = (0, 1, 2)

    def outer(*inputs):
        return number_of_slopes(torch.vmap(grad(number_of(ours), which), in_dims)(*inputs))

    def outer_of_torch(*inputs):
        def slopes(*task):
            task = [v.view_as(v) for v in task]
            return torch.autograd.grad(number_of(torchs)(*task), task, create_graph=True)

        return number_of_slopes(
            [in_turn(lambda *v, i=i: slopes(*v)[i], in_dims)(*inputs) for i in which]
        )

    if outside == "grad":
        found = grad(outer, which)(*inputs)
    else:
        own = [v.clone().requires_grad_() for v in inputs]
        found = torch.autograd.grad(outer(*own), own)
    exact = [v.double().requires_grad_() for v in inputs]
    for got, wanted in zip(found, torch.autograd.grad(outer_of_torch(*exact), exact), strict=True):
        assert_near(got, wanted, within=2e-5)


@pytest.mark.parametrize("input", [0, 1, 2])
def test_gradients_of_gradients_by_one_input_alone(input):
    """The others being constants, as where only weights are learnt."""
    x, *weights = arguments()

    def slopes(f, dtype):
        inputs = [v.to(dtype, copy=True) for v in (x, *weights)]
        own = inputs[input].requires_grad_()
        (slope,) = torch.autograd.grad(number_of(f)(*inputs), own, create_graph=True)
        return slope.detach(), *torch.autograd.grad(number_of_slopes([slope]), own)

    for got, wanted in zip(slopes(ours, torch.float32), slopes(torchs, torch.float64), strict=True):
        assert_near(got, wanted, within=2e-5)


def test_third_derivatives_are_refused():
    said = "no third derivatives"
    x, weight, bias = arguments()

    def first(weight):
        return grad(lambda w: number_of(ours)(x, w, bias))(weight).sin().sum()

    def second(weight):
        return grad(first)(weight).sin().sum()

    assert second(weight).isfinite()
    with pytest.raises(RuntimeError, match=said):
        grad(second)(weight)
    with pytest.raises(RuntimeError, match=said):
        torch.vmap(grad(second))(torch.stack([weight, weight]))
    number = second(weight.requires_grad_())
    with pytest.raises(RuntimeError, match=said):
        number.backward()


def test_bfloat16():
    """Values are rounded once, to the nearest; sums by weight and bias keep float32's precision."""
    x, weight, bias = arguments(48, size=(9, 8), count=40)
    x = x.bfloat16()
    assert parts(x) > 1
    g, w = normal(40, 48, 4, 4, seed=5).bfloat16(), normal(*x.shape, seed=6).bfloat16()
    p, q = normal(48, seed=7), normal(48, seed=8)

    def compute(f, dtype):
        maps = x.to(dtype if dtype == torch.float64 else torch.bfloat16, copy=True)
        inputs = [maps, weight.to(dtype, copy=True), bias.to(dtype, copy=True)]
        for v in inputs:
            v.requires_grad_()
        y = f(*inputs)
        by_y = g.to(y.dtype, copy=True).requires_grad_()
        slopes = torch.autograd.grad(y, inputs, by_y, create_graph=True)
        by_slopes = [w.to(maps.dtype), p.to(dtype), q.to(dtype)]
        again = torch.autograd.grad(slopes, [by_y, *inputs[:2]], by_slopes)
        return [v.detach() for v in (y, *slopes, *again)]

    found, wanted = compute(ours, torch.float32), compute(torchs, torch.float64)
    rounded = [torch.bfloat16, *[torch.bfloat16, torch.float32, torch.float32]]
    rounded += [torch.bfloat16, torch.bfloat16, torch.float32]
    assert [v.dtype for v in found] == rounded
    for got, its in zip(found, wanted, strict=True):
        if got.dtype == torch.bfloat16:
            atol = 1e-5 * its.abs().max().item()
            torch.testing.assert_close(got.double(), its, rtol=2**-8, atol=atol)
        else:
            assert_near(got, its, within=2e-5)


def test_bfloat16_is_float32_rounded():
    x, weight, bias = arguments(32, size=(9, 8))
    x = x.bfloat16()
    assert torch.equal(ours(x, weight, bias), ours(x.float(), weight, bias).bfloat16())


@pytest.mark.parametrize("bits", NAN_BITS)
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_every_nan_comes_out_as_nan(mode, bits):
    """Whichever of its bits are set: all of the filter's numbers where the statistics are the
    batch's, and its own square where they are not."""
    x, *_ = arguments()
    x = x.bfloat16()
    x[2, 3, 4, 5] = torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)
    norm = BatchNorm(16, mode).eval()
    with torch.no_grad():
        norm.bias.fill_(5)
        got = pooled_normalisation(x, norm)
    wanted = torch.zeros(5, 16, 4, 4, dtype=torch.bool)
    wanted[(slice(None), 3) if mode == "batch" else (2, 3, 2, 2)] = True
    assert torch.equal(got.isnan(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_comes_out_as_of_torch(value, dtype):
    """With running statistics it is its own square's alone."""
    x, *_ = arguments()
    x = x.to(dtype)
    for place in range(4):  # of the square
        x[place, :, 2 + place // 2, 4 + place % 2] = value
    norm = running(16).eval()
    with torch.no_grad():
        got = pooled_normalisation(x, norm)
        wanted = F.max_pool2d(norm(x.float()), 2).relu()
    assert not wanted.isfinite().all()
    assert wanted[4].isfinite().all()
    within = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(got.float(), wanted, rtol=within, atol=within, equal_nan=True)


def running(filters):
    """Statistics, scales and shifts that are not what they begin with."""
    norm = BatchNorm(filters, "running")
    with torch.no_grad():
        norm.weight.copy_(normal(filters, seed=1))
        norm.bias.copy_(normal(filters, seed=2))
        norm.running_mean.copy_(normal(filters, seed=3))
        norm.running_var.copy_(normal(filters, seed=4).exp())
    return norm


def torchs_running(x, norm):
    """By torch's own batch norm, which moves the statistics too."""
    statistics = norm.running_mean, norm.running_var
    y = F.batch_norm(x, *statistics, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
    return F.max_pool2d(y, 2).relu()


def test_running_statistics_in_training():
    """Of several steps, with gradients; without them they move too."""
    norm, exact = running(32), running(32).double()
    for step in range(4):
        x = distinct(6, 32, 9, 8, seed=step) * (1 + step) + step
        results = []
        for f, layer, maps in (
            (pooled_normalisation, norm, x),
            (torchs_running, exact, x.double()),
        ):
            maps.requires_grad_()
            with torch.set_grad_enabled(step != 2):
                y = f(maps, layer)
            slopes = (
                ()
                if step == 2
                else torch.autograd.grad(
                    number_of(lambda y=y: y)(), (maps, layer.weight, layer.bias)
                )
            )
            results.append((y.detach(), *slopes))
        for got, wanted in zip(*results, strict=True):
            assert_near(got, wanted, within=2e-5)
        assert_near(norm.running_mean, exact.running_mean)
        assert_near(norm.running_var, exact.running_var)
    assert not norm.running_mean.requires_grad


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (9, 7)])
@pytest.mark.parametrize("filters", [16, 64])
def test_running_statistics_in_eval(filters, size):
    """Which do not move."""
    norm, (x, *_) = running(filters).eval(), arguments(filters, size)
    before = norm.running_mean.clone(), norm.running_var.clone()
    with torch.no_grad():
        assert can_pool(x, norm)
        got, rounded = (pooled_normalisation(v, norm) for v in (x, x.bfloat16()))
        exact = norm.double()
        assert_near(got, torchs_running(x.double(), exact))
        wanted = torchs_running(x.bfloat16().double(), exact)
    torch.testing.assert_close(rounded.double(), wanted, rtol=2**-8, atol=1e-5)
    assert torch.equal(norm.running_mean.float(), before[0])
    assert torch.equal(norm.running_var.float(), before[1])


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_of_several_seeds_at_once(training):
    """Equal to one at a time, in what they remember too."""
    norms = [running(16).train(training) for _ in range(3)]
    for seed, norm in enumerate(norms):
        with torch.no_grad():
            for value in norm.state_dict().values():
                value.mul_(1 + 0.2 * seed)
    holder = Pooled(16)
    holder.norm = norms[0]
    params, buffers = torch.func.stack_module_state(norms)
    params = {f"norm.{name}": v.detach() for name, v in params.items()}
    buffers = {f"norm.{name}": v.clone() for name, v in buffers.items()}
    x = distinct(3, 4, 16, 6, 6)
    with torch.no_grad():
        y = torch.vmap(lambda p, b, x: functional_call(holder, (p, b), (x,)))(params, buffers, x)
        for seed, norm in enumerate(norms):
            assert_near(y[seed], torchs_running(x[seed].double(), norm.double()))
            assert_near(buffers["norm.running_mean"][seed], norm.running_mean)
            assert_near(buffers["norm.running_var"][seed], norm.running_var)


def test_the_number_of_threads_changes_nothing():
    """Not a bit: of values and derivatives, for many images and for tasks of a few."""

    def results(threads):
        torch.set_num_threads(threads)
        for count, tasks in ((37, ()), (3, (5,))):
            inputs = arguments(48, size=(10, 9), count=count, tasks=tasks)
            f = torch.vmap(ours) if tasks else ours
            yield from (f(*inputs), *derivatives(f, inputs))

    before = torch.get_num_threads()
    try:
        wanted = list(results(1))
        for threads in (2, 3):
            for got, its in zip(results(threads), wanted, strict=True):
                assert torch.equal(got, its)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filters", [16, 48, 64])
@pytest.mark.parametrize("mode", ["batch", "support", "running"])
def test_what_it_can_pool(mode, filters, dtype):
    x, norm = torch.rand(2, filters, 8, 7).to(dtype), BatchNorm(filters, mode)
    assert can_pool(x, norm)
    with torch.no_grad():
        assert can_pool(x, norm.eval())


@pytest.mark.parametrize(
    ("shape", "norm"),
    [
        ((4, 8, 8, 8), BatchNorm(8, "batch")),
        ((4, 24, 8, 8), BatchNorm(24, "batch")),
        ((4, 16, 1, 8), BatchNorm(16, "batch")),
        ((4, 16, 8, 1), BatchNorm(16, "batch")),
        ((4, 16, 8), BatchNorm(16, "batch")),
        ((4, 16), BatchNorm(16, "batch")),
        ((4, 16, 8, 8), BatchNorm(16, "batch").double()),
        ((4, 16, 8, 8), BatchNorm(16, "batch").bfloat16()),
        ((4, 16, 8, 8), nn.BatchNorm2d(16)),
        ((4, 16, 8, 8), nn.GroupNorm(4, 16)),
        ((4, 16, 8, 8), nn.Identity()),
    ],
    ids=str,
)
def test_what_it_cannot_pool(shape, norm):
    """Other filters, shapes, types and norms."""
    assert not can_pool(torch.rand(*shape), norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_not_maps_of_another_type(dtype):
    assert not can_pool(torch.zeros(2, 16, 8, 8, dtype=dtype), BatchNorm(16, "batch"))


def test_not_where_rows_are_counted():
    """Those of the support set, or all but padding."""
    x, real = torch.rand(4, 16, 8, 8), torch.tensor([True, True, False, True])
    for mode, marks in (("support", {"support": 2}), ("batch", {"real": real})):
        norm = BatchNorm(16, mode)
        with statistics_from(norm, **marks):
            assert not can_pool(x, norm)
        assert can_pool(x, norm)


def test_not_in_eval_where_gradients_may_be_wanted():
    assert not can_pool(torch.rand(2, 16, 8, 8), BatchNorm(16, "running").eval())


def test_not_when_switched_off():
    library.use(False)
    assert not can_pool(torch.rand(2, 16, 8, 8), BatchNorm(16, "batch"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["batch", "running", "support"])
def test_a_network_whose_images_gradient_is_wanted(mode, training):
    """The first block is left to torch's convolution; the gradient goes through this all the
    same, and in eval, with running statistics, through torch's own."""
    torch.manual_seed(0)
    network = Conv4((3, 12, 12), 16, mode, pools=2, blocks=2).train(training)
    x = normal(5, 3, 12, 12).requires_grad_()
    (got,) = torch.autograd.grad(network(x).sin().sum(), x)
    library.use(False)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(network.double()(exact).sin().sum(), exact)
    assert_near(got, wanted, within=1e-4)
