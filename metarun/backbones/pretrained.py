"""Networks of other libraries by name, with their weights if wanted: torchvision's and timm's."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models
from torchvision.ops import StochasticDepth

from metarun.backbones.convolution import Mean, image_shape
from metarun.backbones.layer_norm import ScaledApart, is_wrong_in_inner_loops
from metarun.errors import NOTHING, Unsuited, UserError

READS = ("images",)
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # further classifiers of GoogLeNet and Inception


class Pretrained(nn.Module):
    """A classifier without its last layer: images [N, 1 or 3, H, W] -> features [N, out_dim].

    Batch norm stays torch's own: running statistics in tests, and no inner loops. Without any the
    network can be differentiated twice for many tasks at once, for which layers that torch gets
    wrong there, or slow, or refuses, are replaced by equal ones. `name` is what the user calls it.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, ...], name: str):
        super().__init__()
        channels = image_shape(input_shape, 1, f"backbone.name={name}")[0]
        if channels not in (1, 3):
            raise UserError(f"backbone.name={name} takes images of 1 or 3 channels, not {channels}")
        torch.backends.mha.set_fastpath_enabled(False)  # of tests, which has no derivative at all
        self.network = network
        replace_layers(network)
        self.out_dim = self.features_of(input_shape, name)
        # Channels last is the layout that fast convolutions use; the activations follow suit.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
            return self.network(x.expand(-1, 3, -1, -1))

    def features_of(self, input_shape: tuple[int, ...], name: str) -> int:
        """How many features an image has. Raises UserError if the network cannot take it."""
        self.eval()
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise Unsuited(
                f"backbone.name={name} does not take images of shape {list(input_shape)} "
                f"({first_line(error)})",
                {
                    "data.size": "set data.size to what it was made for, such as 224",
                    NOTHING: "choose another backbone.name",
                },
            ) from None
        self.train()
        return features.flatten(1).shape[1]


class DropExamples(nn.Module):
    """Stochastic depth (Huang et al. 2016), each example by itself, under torch.vmap too."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


def from_torchvision(
    input_shape: tuple[int, ...], name: str, weights: str | None, batch_norm: str = "running"
) -> Pretrained:
    """torchvision's classifier `name`, whose last linear layer is left out.

    `weights` is a file of them, what torchvision calls those that it would fetch ("DEFAULT",
    "IMAGENET1K_V2", …), or None for none. Whichever mode of batch norm the algorithm asks for, the
    model keeps its own. Raises UserError when there is no such model, or no such weights.
    """
    names = models.list_models(module=models)
    if name not in names:
        raise unknown(name, names, "torchvision")
    network = models.get_model(name, weights=None)
    heads = [place for place, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise UserError(f"backbone.name={name}: it ends in no linear layer: choose another")
    network.set_submodule(heads[-1], nn.Identity())
    offered = models.get_model_weights(name).__members__
    if weights is not None:
        known = weights in offered
        state = fetched(offered[weights], name) if known else read(weights, list(offered))
        load(network, state, weights)
    for auxiliary in AUXILIARY:
        if hasattr(network, auxiliary):
            setattr(network, auxiliary, None)
            network.aux_logits = False
    return Pretrained(network, input_shape, name)


def from_timm(
    input_shape: tuple[int, ...], name: str, weights: str | None, batch_norm: str = "running"
) -> Pretrained:
    """timm's model `name` without its classifier.

    `weights` is a file of them, "DEFAULT" for those that timm would fetch, or None for none. Batch
    norm is the model's own, as torchvision's. Raises UserError when timm is not installed, when
    there is no such model, or no such weights.
    """
    try:
        import timm
    except ImportError:
        raise UserError(
            "backbone=timm needs timm, which is not installed: pip install 'metarun[timm]'"
        ) from None
    if not timm.is_model(name):
        raise unknown(name, timm.list_models(), "timm")
    try:
        network = timm.create_model(name, pretrained=weights == "DEFAULT", num_classes=0)
    except Exception as error:  # what is raised depends on where the weights come from
        raise unfetched(name, weights, error) from None
    if weights is not None and weights != "DEFAULT":
        load(network, read(weights, ["DEFAULT"]), weights)
    return Pretrained(network, input_shape, name)


def replace_layers(network: nn.Module) -> None:
    """Put equal layers in the place of those that are wrong, slow or refused in an inner loop."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.LayerNorm) and is_wrong_in_inner_loops(layer):
                dim = 1 if type(layer).__name__.endswith("2d") else -1
                setattr(parent, name, ScaledApart(layer, dim))
            elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
                setattr(parent, name, Mean())
            elif isinstance(layer, StochasticDepth):  # of examples, as in all classifiers
                setattr(parent, name, DropExamples(layer.p))


def fetched(weights: Any, name: str) -> dict[str, Tensor]:
    """The weights that this member of torchvision's list stands for, from its cache or the net."""
    try:
        state = weights.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise unfetched(name, weights.name, error, weights.url) from None
    # DenseNet's were saved when its layers had other names.
    return {re.sub(r"(\.denselayer\d+\.\w+)\.([12])\.", r"\1\2.", k): v for k, v in state.items()}


def read(path: str, offered: list[str]) -> dict[str, Tensor]:
    """The weights in a file, of which nothing is executed."""
    file = Path(path).expanduser()
    if not file.is_file():
        known = f"one of {', '.join(offered)}" if offered else "null"
        raise UserError(f"backbone.weights={path}: there is no such file; it can also be {known}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise UserError(
            f"backbone.weights={path}: it cannot be read ({first_line(error)}): give a file of "
            "torch.save or of safetensors that holds tensors alone"
        ) from None
    for inside in ("state_dict", "model"):
        content = content.get(inside, content) if isinstance(content, dict) else content
    return content


def load(network: nn.Module, state: dict[str, Tensor], spelled: str) -> None:
    """Give the network its weights; what it has no place for, such as a classifier, is left out."""
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"backbone.weights={spelled}: {first_line(error)}") from None
    if missing:
        raise UserError(
            f"backbone.weights={spelled}: these are not this network's: there is no {missing[0]}"
        )


def unknown(name: str, names: Iterable[str], library: str) -> UserError:
    """What to say of a name that the library does not know."""
    near = difflib.get_close_matches(name, list(names), n=5, cutoff=0.4)
    hint = f"; near it are {', '.join(near)}" if near else ""
    return UserError(f"backbone.name={name}: {library} has no such model{hint}")


def unfetched(name: str, weights: str | None, error: Exception, url: str = "") -> UserError:
    """What to say when weights are not at hand."""
    by_hand = f"put {url} into {torch.hub.get_dir()}/checkpoints, or " if url else ""
    return UserError(
        f"backbone.weights={weights}: those of {name} cannot be fetched ({first_line(error)}): "
        f"{by_hand}give a file of them, or null for none"
    )


def first_line(error: Exception) -> str:
    """The error in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
