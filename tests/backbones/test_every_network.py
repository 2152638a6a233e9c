"""What each of our networks must do, whatever it looks like inside: run for many tasks at once,
each with weights of its own, be differentiated twice there, and compute in bfloat16."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metarun.backbones.conv4 import Conv4
from metarun.backbones.r2d2 import R2D2
from metarun.backbones.resnet import ResNet
from metarun.backbones.resnet12 import ResNet12
from metarun.backbones.vit import ViT
from metarun.backbones.wrn import WRN
from metarun.configs.rules import conf_folder
from metarun.errors import UserError

SHAPE = (2, 16, 16)
NETWORKS = {
    "conv4": lambda shape, **more: Conv4(shape, width=3, **more),
    "conv6": lambda shape, **more: Conv4(shape, width=3, blocks=6, pools=4, **more),
    "r2d2": lambda shape, **more: R2D2(shape, widths=[3, 4, 5, 6], dropout=0.0, **more),
    "resnet10": lambda shape, **more: ResNet(shape, [1] * 3, [3, 4, 4], stem="small", **more),
    "resnet18": lambda shape, **more: ResNet(shape, [2] * 2, [3, 4], stem="large", **more),
    "resnet12": lambda shape, **more: ResNet12(shape, [3, 3, 4, 5], 0.0, 5, **more),
    "wrn": lambda shape, **more: WRN(shape, depth=10, widening=1, dropout=0.0, **more),
    "vit": lambda shape, batch_norm, **more: ViT(shape, patch=8, width=6, depth=2, heads=2, **more),
}
PUBLISHED = {  # millions of parameters, without the linear layer of the classes
    "conv4": 0.113,
    "resnet10": 4.9,
    "resnet18": 11.2,
    "resnet12": 12.4,
    "resnet12 backbone.widths=[64,128,256,512]": 8.0,
    "wrn28_10": 36.5,
    "vit_small": 21.7,
}
EVERY = pytest.mark.parametrize("name", NETWORKS)
INNER_LR = 0.1


def new(name, **more):
    """The network in float64, with weights of a fixed seed."""
    torch.manual_seed(0)
    network = NETWORKS[name](SHAPE, **{"batch_norm": "batch", **more}).double()
    with torch.no_grad():  # what starts at zero or one would hide mistakes
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype)
    return network


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY
def test_it_tells_its_output(name):
    """As a vector of out_dim numbers, or as a map, which holds the same ones."""
    vectors, maps = new(name), new(name, flatten=False)
    x = images(3, *SHAPE)
    assert vectors(x).shape == (3, vectors.out_dim)
    assert maps(x).shape == (3, *maps.out_shape)
    assert (vectors.gives_maps, maps.gives_maps) == (False, True)
    if name != "vit":  # whose vector is the class token's
        assert vectors.out_shape == maps.out_shape
        assert torch.equal(maps(x).flatten(1), vectors(x))


@EVERY
def test_examples_that_are_not_images_are_refused(name):
    with pytest.raises(UserError, match=r"not examples of shape \[10\]: .*, or use backbone=mlp"):
        NETWORKS[name]((10,), batch_norm="batch")


@pytest.mark.parametrize("typed", PUBLISHED)
def test_the_config_has_the_published_number_of_parameters(typed):
    """For 84×84 images; vit_small's is that of 224×224 and patches of 16, whose positions count."""
    shape, wanted = (3, 84, 84), PUBLISHED[typed]
    if typed == "vit_small":
        shape, typed = (3, 224, 224), "vit_small backbone.patch=16"
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", [f"backbone={typed.split()[0]}", *typed.split()[1:]])
    with torch.device("meta"):  # shapes alone
        network = instantiate(config.backbone, input_shape=shape, _convert_="all")
    places = 3 if wanted < 1 else 1
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, places) == wanted


class Learner(nn.Module):
    """The network and two outputs."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(body.out_dim, 2).double()

    def forward(self, x):
        return self.head(self.body(x))


def loss(network, params, x, y):
    return F.cross_entropy(functional_call(network, params, x), y)


def adapted_loss(network, params, x, y):
    """The loss on one task's last four examples after a gradient step on its first four."""
    inner = torch.func.grad(lambda p: loss(network, p, x[:4], y[:4]))(params)
    return loss(network, {n: p - INNER_LR * inner[n] for n, p in params.items()}, x[4:], y[4:])


def adapted_loss_by_autograd(network, params, x, y):
    """The same by torch.autograd, which knows nothing of vmap."""
    first = loss(network, params, x[:4], y[:4])
    inner = torch.autograd.grad(first, list(params.values()), create_graph=True)
    moved = zip(params.items(), inner, strict=True)
    return loss(network, {n: p - INNER_LR * g for (n, p), g in moved}, x[4:], y[4:])


@EVERY
def test_meta_gradients_of_all_tasks_at_once(name):
    """Each task with weights of its own, under vmap: as one task after another by autograd."""
    network = Learner(new(name))
    x, y = images(2, 8, *SHAPE), torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0, 1, 0]])
    params = {
        n: torch.stack([p.detach(), 0.9 * p.detach()]).requires_grad_()
        for n, p in network.named_parameters()
    }
    torch.vmap(lambda p, x, y: adapted_loss(network, p, x, y))(params, x, y).sum().backward()
    for task in range(2):
        alone = {n: p[task].detach().requires_grad_() for n, p in params.items()}
        adapted_loss_by_autograd(network, alone, x[task], y[task]).backward()
        assert max(p.grad.abs().max() for p in alone.values()) > 1e-2
        for n, p in alone.items():
            wanted = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(params[n].grad[task], wanted, rtol=0, atol=1e-8)


@EVERY
def test_meta_gradient_is_the_slope(name):
    """Along one direction of all weights, by central differences."""
    network = Learner(new(name))
    x, y = images(1, 8, *SHAPE), torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1]])
    start = {n: p.detach() for n, p in network.named_parameters()}
    along = {n: images(*p.shape, seed=i) for i, (n, p) in enumerate(start.items())}

    def at(distance):
        params = {n: (p + distance * along[n]).requires_grad_() for n, p in start.items()}
        at_once = torch.vmap(lambda x, y: adapted_loss(network, params, x, y))
        return params, at_once(x, y).sum()

    params, total = at(0.0)
    total.backward()
    slope = sum((p.grad * along[n]).sum().item() for n, p in params.items())
    step = 1e-8  # so small that hardly any ReLU turns between
    difference = (at(step)[1] - at(-step)[1]).item() / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-4)
    assert abs(slope) > 1e-2


@EVERY
def test_maps_lie_pixel_by_pixel(name):
    """Under vmap too, where torch would lay them out task by task within an image."""
    network, layouts = new(name), []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *call: layouts.append(layout(call[2])))
    network(images(4, *SHAPE))
    torch.vmap(network)(images(3, 4, *SHAPE))
    assert layouts
    assert all(layouts)


def layout(z):
    return z.permute(0, 2, 3, 1).is_contiguous()


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_is_close(name, training):
    """Under autocast, to the result in float32; with gradients for every weight."""
    network, x = new(name, batch_norm="running").float().train(training), images(8, *SHAPE).float()
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(x)
    assert not torch.equal(rounded.float(), exact)
    error = (rounded.float() - exact).norm() / exact.norm()
    assert error < 0.05
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
