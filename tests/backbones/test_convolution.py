"""What type maps have."""

import pytest
import torch

from metarun.backbones.convolution import Conv2d
from metarun.kernels import library


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("within", [lambda f: f, torch.vmap])
def test_within_autocast_maps_have_its_type(within, learning, kernels):
    """Also within torch.vmap where nothing is differentiated, which torch itself leaves out."""
    library.use(kernels)
    convolution = Conv2d(16, 32, 3, padding=1)
    x = torch.randn(2, 3, 16, 6, 6) if within is torch.vmap else torch.randn(3, 16, 6, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learning):
        y = within(convolution)(x)
    assert y.dtype == torch.bfloat16
    exact = within(convolution)(x)
    assert exact.dtype == torch.float32
    assert (y - exact).norm() < 0.01 * exact.norm()
