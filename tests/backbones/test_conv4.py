import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarun.backbones.batch_norm import BatchNorm
from metarun.backbones.conv4 import Conv4
from metarun.errors import UserError


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "wanted"), [((1, 28, 28), 64), ((3, 84, 84), 1600), ((2, 16, 35), 128)]
)
def test_features_of_the_papers_images(shape, wanted):
    """64 · (28 // 16)² = 64 · 1 and 64 · (84 // 16)² = 64 · 25."""
    backbone = Conv4(shape, width=64, batch_norm="running")
    assert backbone.out_dim == wanted
    assert backbone(torch.zeros(2, *shape)).shape == (2, wanted)


@pytest.mark.parametrize(("channels", "wanted"), [(1, 111_936), (3, 113_088)])
def test_number_of_parameters(channels, wanted):
    """(9 c + 1) 64 and three times (9 · 64 + 1) 64 of convolution, four times 2 · 64 of norm."""
    backbone = Conv4((channels, 28, 28), width=64, batch_norm="batch")
    assert sum(p.numel() for p in backbone.parameters()) == wanted


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_papers_order(training):
    """Convolution, batch norm, ReLU, then pooling, by torch's own layers."""
    torch.manual_seed(0)
    backbone = Conv4((3, 20, 37), width=5, batch_norm="running").double()
    layers = []
    for i, ours in enumerate(list(backbone)[:4]):
        convolution = nn.Conv2d(5 if i else 3, 5, 3, padding=1).double()
        norm = nn.BatchNorm2d(5).double()
        convolution.load_state_dict(ours[0].state_dict())
        with torch.no_grad():
            for parameter in (ours[1].weight, ours[1].bias):
                parameter.normal_()
            ours[1].running_mean.normal_()
            ours[1].running_var.uniform_(0.5, 2)
        norm.load_state_dict(ours[1].state_dict(), strict=False)
        layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
    wanted = nn.Sequential(*layers, nn.Flatten()).train(training)
    backbone.train(training)
    x = images(4, 3, 20, 37)
    torch.testing.assert_close(backbone(x), wanted(x), rtol=0, atol=1e-12)


def test_each_task_with_its_own_weights_under_vmap():
    """Equals a loop over the tasks."""
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), width=4, batch_norm="batch").double()
    params = {
        name: torch.stack([p.detach(), p.detach() * 1.5 + 0.1])
        for name, p in backbone.named_parameters()
    }
    x = images(2, 6, 1, 16, 16)
    got = torch.vmap(lambda p, x: functional_call(backbone, p, x))(params, x)
    for task in range(2):
        alone = functional_call(backbone, {name: p[task] for name, p in params.items()}, x[task])
        torch.testing.assert_close(got[task], alone, rtol=0, atol=1e-10)
    assert not torch.allclose(got[0], functional_call(backbone, {}, x[1]))


@pytest.mark.parametrize("shape", [(1, 15, 28), (3, 84, 12), (10,)])
def test_examples_that_are_not_large_images_are_refused(shape):
    numbers = ", ".join(map(str, shape))
    with pytest.raises(UserError, match=rf"at least 16×16, not .* \[{numbers}\]: raise data.size"):
        Conv4(shape, width=64, batch_norm="running")


def test_fewer_pools_keep_a_larger_map():
    """28 // 4 = 7, as it is or flattened."""
    maps = Conv4((1, 28, 28), width=8, batch_norm="running", pools=2, flatten=False)
    assert maps.out_shape == (8, 7, 7)
    assert maps(torch.zeros(2, 1, 28, 28)).shape == (2, 8, 7, 7)
    flat = Conv4((1, 28, 28), width=8, batch_norm="running", pools=2)
    flat.load_state_dict(maps.state_dict())
    assert flat.out_dim == 8 * 7 * 7
    x = images(2, 1, 28, 28).float()
    assert torch.equal(flat.eval()(x), maps.eval()(x).flatten(1))


def test_strides_equal_torchs_own_layers():
    """Finn's: convolutions of stride 2, batch norm, ReLU, and the mean of the last map."""
    torch.manual_seed(0)
    backbone = Conv4((1, 28, 28), width=5, batch_norm="batch", strides=True).double()
    x = images(6, 1, 28, 28)
    wanted, sizes = x, []
    for ours in list(backbone)[:4]:
        wanted = nn.functional.conv2d(wanted, ours[0].weight, ours[0].bias, stride=2, padding=1)
        wanted = nn.functional.batch_norm(wanted, None, None, training=True).relu()
        sizes.append(wanted.shape[2])
    assert sizes == [14, 7, 4, 2]
    torch.testing.assert_close(backbone(x), wanted.mean(dim=(2, 3)))
    assert backbone.out_dim == 5


def test_no_batch_norm():
    backbone = Conv4((1, 16, 16), width=4, batch_norm="none")
    assert not [m for m in backbone.modules() if isinstance(m, BatchNorm)]
    assert backbone(torch.zeros(2, 1, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize("pools", [-1, 5])
def test_a_number_of_pools_that_cannot_be(pools):
    with pytest.raises(UserError, match=rf"backbone.pools={pools}: it must be from 0 to 4"):
        Conv4((1, 28, 28), width=8, batch_norm="running", pools=pools)
