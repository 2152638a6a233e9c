"""torchvision's and timm's networks, without anything fetched."""

import pickle
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import StochasticDepth

from metarun.backbones import pretrained
from metarun.backbones.layer_norm import LayerNorm
from metarun.backbones.pretrained import (
    DropExamples,
    Pretrained,
    from_timm,
    from_torchvision,
    replace_layers,
)
from metarun.errors import UserError
from metarun.functional.inner_loop import refuse_running_statistics

SMALL = "shufflenet_v2_x0_5"  # torchvision's with the fewest parameters: 0.3 M without its head


def images(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("kind", ["pth", "state_dict", "safetensors"])
def test_features_are_what_reaches_the_last_layer(kind, tmp_path):
    """With weights from a file of any usual kind; grey images count as three equal channels."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(SMALL).eval()
    path, state = tmp_path / f"weights.{kind}", theirs.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "state_dict" else state, path)
    inputs = []
    theirs.fc.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    for channels in (1, 3):
        ours = from_torchvision((channels, 32, 32), SMALL, str(path)).eval()
        x = images(2, channels, 32, 32)
        theirs(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(ours(x), inputs[-1])
        assert ours.out_dim == inputs[-1].shape[1] == 1024


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "resnet5"}, "torchvision has no such model; near it are resnet50, "),
        ({"name": "squeezenet1_1"}, "it ends in no linear layer: choose another"),
        ({"weights": "none.pth"}, "there is no such file; it can also be one of IMAGENET1K_V1, D"),
        ({"input_shape": (4, 32, 32)}, "takes images of 1 or 3 channels, not 4"),
        ({"input_shape": (10,)}, r"not examples of shape \[10\]"),
        ({"name": "alexnet", "input_shape": (3, 8, 8)}, r"shape \[3, 8, 8\] .*: set data.size to"),
    ],
)
def test_what_cannot_be(arguments, said):
    usual = {"input_shape": (3, 32, 32), "name": SMALL, "weights": None}
    with pytest.raises(UserError, match=said):
        from_torchvision(**usual | arguments)


class Trap:
    """Unpickled in the ordinary way, it says so."""

    def __reduce__(self):
        return print, ("executed",)


def test_files_that_hold_no_weights_of_it(tmp_path, capsys):
    """Nothing in them is executed."""
    other = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    with pytest.raises(UserError, match="not this network's: there is no conv1"):
        from_torchvision((3, 32, 32), SMALL, str(other))
    torch.save({"conv1.0.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"backbone.weights=.*other.pth: "):
        from_torchvision((3, 32, 32), SMALL, str(other))
    for content in (pickle.dumps(Trap(), protocol=2), b"", b"not a file of torch's"):
        other.write_bytes(content)
        with pytest.raises(UserError, match="it cannot be read"):
            from_torchvision((3, 32, 32), SMALL, str(other))
    assert capsys.readouterr().out == ""


def test_no_network(monkeypatch, tmp_path):
    """One line says where the file belongs."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"\(no network\): put https://\S+\.pth into .*/checkpoint"):
        from_torchvision((3, 32, 32), SMALL, "DEFAULT")


def test_old_names_of_densenet():
    """Its saved weights say norm.1 where the network says norm1."""

    class Saved:
        @staticmethod
        def get_state_dict(**_):
            return dict.fromkeys(old)

    own = torchvision.models.DenseNet(4, (2, 1, 1, 1), 4).state_dict()
    old = [name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") for name in own]
    assert set(old) != set(own)
    assert set(pretrained.fetched(Saved, "densenet121")) == set(own)


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_one_output_in_training_too(name, monkeypatch):
    """Their further classifiers are left out."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda *_, **__: None)  # takes them seconds
    backbone = from_torchvision((3, 80, 80), name, None)
    assert not [n for n, _ in backbone.named_parameters() if "aux" in n.lower()]
    assert backbone.train()(images(2, 3, 80, 80)).shape == (2, backbone.out_dim)


def test_batch_norm_keeps_it_out_of_inner_loops():
    backbone = from_torchvision((3, 32, 32), SMALL, None)
    with pytest.raises(UserError, match="torch's batch norm gives wrong gradients"):
        refuse_running_statistics(backbone)
    with pytest.raises(UserError, match="torch's layer norm gives wrong gradients"):
        refuse_running_statistics(nn.LayerNorm(3))
    refuse_running_statistics(
        nn.Sequential(LayerNorm(3), nn.LayerNorm(3, elementwise_affine=False))
    )


WITHOUT_BATCH_NORM = {
    "vit": lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=2),
    "convnext": lambda: ConvNeXt([CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)], 0.0, 1.0, 2),
    "swin": lambda: SwinTransformer([4, 4], 8, [1, 2], [2, 2], [2, 2], 2.0, 0, 0, 0, num_classes=2),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_inner_loops_without_batch_norm(name, training):
    """Equal to the library's own outside of them; inside, the meta-gradients of tasks at once are
    those of one task after another by autograd."""
    torch.manual_seed(0)
    theirs, x = WITHOUT_BATCH_NORM[name]().double(), images(2, 8, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.1 * torch.randn_like(p)
    wanted = theirs.eval()(x[0]).detach()
    network = Pretrained(theirs.float(), (3, 16, 16), name).double().train(training)
    torch.testing.assert_close(network(x[0]), wanted)
    refuse_running_statistics(network)

    y = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    params = {
        n: torch.stack([p.detach(), 0.9 * p.detach()]).requires_grad_()
        for n, p in network.named_parameters()
    }

    def loss(params, x, y):
        return F.cross_entropy(functional_call(network, params, x), y)

    def adapted_loss(params, x):
        inner = torch.func.grad(loss)(params, x[:4], y[:4])
        return loss({n: p - 0.1 * inner[n] for n, p in params.items()}, x[4:], y[4:])

    torch.vmap(adapted_loss, randomness="different")(params, x).sum().backward()
    for task in range(2):
        alone = {n: p[task].detach().requires_grad_() for n, p in params.items()}
        inner = torch.autograd.grad(
            loss(alone, x[task, :4], y[:4]), list(alone.values()), create_graph=True
        )
        moved = {n: p - 0.1 * g for (n, p), g in zip(alone.items(), inner, strict=True)}
        loss(moved, x[task, 4:], y[4:]).backward()
        for n, p in alone.items():
            torch.testing.assert_close(params[n].grad[task], p.grad, rtol=0, atol=1e-9)


def test_stochastic_depth():
    """Whole examples are lost, each task's own, as often as asked; the rest makes good for them."""
    torch.manual_seed(0)
    drop, x = DropExamples(0.25), torch.ones(40, 100, 2, 3)
    z = torch.vmap(drop, randomness="different")(x)
    kept = z[:, :, 0, 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert len(kept.unique(dim=0)) == 40
    torch.testing.assert_close(z, kept[..., None, None] / 0.75 * x)
    assert torch.equal(drop.eval()(x), x)
    convnext = torchvision.models.get_model("convnext_tiny")
    rates = [m.p for m in convnext.modules() if isinstance(m, StochasticDepth)]
    replace_layers(convnext)
    assert [m.rate for m in convnext.modules() if isinstance(m, DropExamples)] == rates
    assert max(rates) > 0


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm, .*: pip install 'metarun\[timm\]'"):
        from_timm((3, 32, 32), "resnet18", None)


def test_timm(tmp_path):
    """Its features without a classifier, with weights from a file that has one."""
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    ours = from_timm((3, 32, 32), "resnet10t", str(path)).eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs.forward_head(theirs.forward_features(x), True))
    assert ours.out_dim == 512
    with pytest.raises(UserError, match=r"timm has no such model; near it are .*resnet18"):
        from_timm((3, 32, 32), "resnet18000", None)
    with pytest.raises(UserError, match=r"those of resnet10t.* cannot be fetched"):
        from_timm((3, 32, 32), "resnet10t.nonsense", "DEFAULT")
