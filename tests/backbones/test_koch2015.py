import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarun.backbones.koch2015 import Koch2015
from metarun.errors import UserError


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_maps_and_parameters_of_the_paper():
    """Fig. 4: 105 - 9 = 96, half of it 48, 48 - 6 = 42, 21, 21 - 3 = 18, 9 and 9 - 3 = 6."""
    backbone = Koch2015((1, 105, 105), features=8)  # the paper's 4096 are a matter of time alone
    shapes, x = [], torch.zeros(2, 1, 105, 105)
    with torch.no_grad():
        for layer in backbone:
            x = layer(x)
            shapes.append(tuple(x.shape[1:]))
    maps = [shape for shape in dict.fromkeys(shapes) if len(shape) == 3]
    assert maps == [
        *((64, 96, 96), (64, 48, 48), (128, 42, 42), (128, 21, 21)),
        *((128, 18, 18), (128, 9, 9), (256, 6, 6)),
    ]
    assert shapes[-1] == (backbone.out_dim,) == (8,)
    numbers = [(100 + 1) * 64, (49 * 64 + 1) * 128, (16 * 128 + 1) * 128, (16 * 128 + 1) * 256]
    numbers.append((256 * 6 * 6 + 1) * 8)
    assert sum(p.numel() for p in backbone.parameters()) == sum(numbers)


def test_equals_the_papers_order():
    """Convolution, ReLU, then pooling, by torch's own functions; sigmoids of a dense layer."""
    torch.manual_seed(0)
    backbone = Koch2015((2, 66, 75), features=5).double()
    z = x = images(2, 2, 66, 75)
    weights = list(backbone.parameters())
    for i in range(4):
        z = nn.functional.conv2d(z, weights[2 * i], weights[2 * i + 1]).relu()
        if i < 3:
            z = nn.functional.max_pool2d(z, 2)
    wanted = (z.flatten(1) @ weights[8].T + weights[9]).sigmoid()
    torch.testing.assert_close(backbone(x), wanted, rtol=0, atol=1e-12)
    assert wanted.std() > 1e-6


@pytest.mark.parametrize(
    ("kind", "deviation"), [(nn.Conv2d, 0.01), (nn.Linear, 0.2)], ids=["convolution", "dense"]
)
def test_the_papers_initialisation(kind, deviation):
    """Weights about 0, biases about one half."""
    torch.manual_seed(0)
    for layer in Koch2015((1, 65, 65), features=300):
        if isinstance(layer, kind):
            count = layer.weight.numel()
            assert layer.weight.mean().item() == pytest.approx(0, abs=4 * deviation / count**0.5)
            assert layer.weight.std().item() == pytest.approx(deviation, rel=3 / count**0.5)
            assert layer.bias.mean().item() == pytest.approx(0.5, abs=0.006)
            assert layer.bias.std().item() == pytest.approx(0.01, rel=0.3)


def test_each_task_with_its_own_weights_under_vmap():
    """Equals a loop over the tasks."""
    torch.manual_seed(0)
    backbone = Koch2015((1, 65, 65), features=3).double()
    params = {
        name: torch.stack([p.detach(), p.detach() * 0.5]) for name, p in backbone.named_parameters()
    }
    x = images(2, 2, 1, 65, 65)
    got = torch.vmap(lambda p, x: functional_call(backbone, p, x))(params, x)
    for task in range(2):
        alone = functional_call(backbone, {name: p[task] for name, p in params.items()}, x[task])
        torch.testing.assert_close(got[task], alone, rtol=0, atol=1e-10)
    assert not torch.allclose(got[0], got[1])


@pytest.mark.parametrize("shape", [(1, 64, 105), (3, 84, 28), (10,)])
def test_examples_that_are_not_large_images_are_refused(shape):
    numbers = ", ".join(map(str, shape))
    with pytest.raises(UserError, match=rf"at least 65×65, not .* \[{numbers}\]: use data.size="):
        Koch2015(shape, features=8)


def test_no_features_are_refused():
    with pytest.raises(UserError, match=r"backbone.features=0: it must be at least 1"):
        Koch2015((1, 65, 65), features=0)
