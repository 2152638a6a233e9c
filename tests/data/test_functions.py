"""Functions are known by their points alone: fits to those are exact only if the formula holds."""

import math

import pytest
import torch

from metarun.data.functions import FunctionData, harmonics, sinusoid
from metarun.data.functions import Functions as Family
from metarun.functional.metrics import MSE
from metarun.samplers.functions import Functions
from metarun.seeds import stream
from metarun.testing.fixed_episodes import fixed_functions

SINUSOID = {"amplitude": [0.1, 5.0], "phase": [0.0, math.pi], "x": [-5.0, 5.0]}
HARMONICS = {"frequency": [5.0, 7.0], "noise": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(data, tasks, count, seed=0):
    """x and y [T, N] in float64."""
    x, y = data.open("train").draw(tasks, count, generator(seed))
    assert x.shape == y.shape == (tasks, count, 1)
    assert x.dtype == y.dtype == torch.float32
    return x[..., 0].double(), y[..., 0].double()


def residual(columns, y):
    """Coefficients [T, C] of the best combination of columns [T, N, C], and how far it is off."""
    found = torch.linalg.lstsq(columns, y[..., None]).solution
    return found[..., 0], (columns @ found)[..., 0] - y


def test_sinusoids_are_sinusoids():
    """A sin(x − φ) = a sin x − b cos x with a = A cos φ, b = A sin φ."""
    x, y = points(sinusoid(**SINUSOID), 500, 20)
    (found, error) = residual(torch.stack([x.sin(), -x.cos()], dim=2), y)
    assert error.abs().max() < 1e-5  # y is float32
    amplitude, phase = found.square().sum(dim=1).sqrt(), torch.atan2(found[:, 1], found[:, 0])
    assert_spread(amplitude, 0.1, 5.0)
    assert_spread(phase, 0.0, math.pi)
    assert_spread(x.flatten(), -5.0, 5.0)
    assert residual(torch.stack([x.sin(), x], dim=2), y)[1].abs().max() > 0.1


def assert_spread(values, low, high):
    """Uniform in [low, high]: by its bounds, and Kolmogorov and Smirnov's distance."""
    assert low - 1e-3 <= values.min()
    assert values.max() <= high + 1e-3
    share = ((values.sort().values - low) / (high - low)).clamp(0, 1)
    steps = torch.arange(1, len(values) + 1) / len(values)
    assert (share - steps).abs().max() < 1.95 / len(values) ** 0.5  # one in a thousand


def test_other_ranges():
    x, y = points(sinusoid(amplitude=[2.0, 2.0], phase=[1.0, 1.0], x=[0.0, 3.0]), 5, 7)
    torch.testing.assert_close(y, 2 * (x - 1).sin(), rtol=0, atol=1e-5)
    assert_spread(x.flatten(), 0.0, 3.0)


def test_harmonics_are_two_harmonics():
    """For each task there is an ω in [5, 7] at which sines and cosines of ω and 2ω fit exactly.

    It is sought on a grid, then refined; a single harmonic does not fit.
    """
    x, y = points(harmonics(**HARMONICS), 40, 60, seed=1)

    def misfit(omega, waves=(1, 2)):
        """Root mean squared error [T] of the best fit with omega [T]."""
        angles = [n * omega[:, None] * x for n in waves]
        columns = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
        return residual(torch.stack(columns, dim=2), y)[1].square().mean(dim=1).sqrt()

    low, high, omega = 5.0, 7.0, None
    centre, width = torch.full((40,), 6.0).double(), 1.0
    for _ in range(8):
        offsets = torch.linspace(-width, width, 161).double()
        errors = torch.stack([misfit((centre + o).clamp(low, high)) for o in offsets])
        centre = (centre + offsets[errors.argmin(dim=0)]).clamp(low, high)
        width /= 20
    omega = centre
    scale = y.square().mean(dim=1).sqrt()
    assert (misfit(omega) / scale).max() < 1e-4
    assert (misfit(omega, waves=(1,)) / scale).median() > 0.1
    assert_spread(omega, low, high)


def test_inputs_of_harmonics_are_about_a_centre_of_the_task():
    """x ~ N(μ, 1) with μ uniform in [−4, 4], so its overall variance is 1 + 64 / 12."""
    x, _ = points(harmonics(**HARMONICS), 2000, 50)
    assert x.var(dim=1).mean().item() == pytest.approx(1, rel=0.02)
    assert x.mean(dim=1).var().item() == pytest.approx(64 / 12 + 1 / 50, rel=0.06)
    assert x.mean(dim=1).abs().max() < 4 + 0.6


def test_amplitudes_of_harmonics_are_normal():
    """Mean of y² is (a₁² + a₂²) / 2, whose mean is 1, in the mean over phases."""
    _, y = points(harmonics(**HARMONICS), 4000, 50)
    assert y.square().mean().item() == pytest.approx(1, rel=0.06)
    assert y.mean().item() == pytest.approx(0, abs=0.05)


def test_the_noise_is_added_to_each_point():
    """The same draws without noise differ by it alone."""
    x, y = points(harmonics([5.0, 7.0], noise=0.0), 200, 50)
    same, noisy = points(harmonics([5.0, 7.0], noise=0.3), 200, 50)
    assert torch.equal(same, x)
    noise = noisy - y
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert noise.std(dim=1).mean().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    "family", [lambda: sinusoid(**SINUSOID), lambda: harmonics([5.0, 7.0], 0.1)]
)
def test_the_generator_decides_the_functions(family):
    torch.manual_seed(1)
    first = points(family(), 3, 4, seed=7)
    torch.manual_seed(2)
    again, other = points(family(), 3, 4, seed=7), points(family(), 3, 4, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_the_next_functions_are_new_ones():
    draw, of_seed = sinusoid(**SINUSOID).open("train").draw, generator()
    assert not torch.equal(draw(2, 3, of_seed)[1], draw(2, 3, of_seed)[1])


def test_each_split_has_functions_of_its_own():
    """Those of training, validation and test of one seed have no point in common."""
    data, sampler = sinusoid(**SINUSOID), Functions(shot=5, query=5, tasks=1)
    drawn = [data.open("train").draw(40, 10, stream(0, "train"))[1].flatten()]
    for name in ("val", "test"):
        episodes = fixed_functions(data.open(name), sampler, name=name, seed=0, episodes=40)
        episodes = episodes.batch(slice(None))
        drawn.append(torch.cat([episodes.support_y, episodes.query_y], dim=1).flatten())
    assert len(torch.cat(drawn).unique()) > 3 * 400 - 5  # but for chance


def test_a_split_on_a_device():
    here = sinusoid(**SINUSOID).open("val")
    there = here.to(torch.device("meta"))
    assert (here.device.type, there.device.type) == ("cpu", "meta")
    assert there.draw is here.draw
    assert here.input_shape == there.input_shape == (1,)


def test_a_sealed_split_does_not_open():
    data = sinusoid(**SINUSOID)
    with data.sealed("test"):
        with pytest.raises(AssertionError, match="the test split was opened"):
            data.open("test")
        assert isinstance(data.open("train"), Family)
    assert isinstance(data.open("test"), Family)
    with pytest.raises(KeyError):
        data.open("rest")


def test_the_checksum_tells_families_apart():
    """By what decides the functions, and nothing else."""
    narrow = SINUSOID | {"amplitude": [1.0, 5.0]}
    families = [
        *(sinusoid(**SINUSOID), sinusoid(**narrow)),
        *(harmonics([5.0, 7.0], 0.0), harmonics([5.0, 7.0], 0.1), harmonics([4.0, 7.0], 0.1)),
    ]
    assert len({data.checksum for data in families}) == 5
    assert sinusoid(**SINUSOID).checksum == families[0].checksum
    assert families[0].facts()["checksum"] == families[0].checksum
    assert "[0.1, 5.0]" in families[0].summary()
    assert all(isinstance(data, FunctionData) and data.metric is MSE for data in families)
