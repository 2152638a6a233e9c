"""A network in numbers."""

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def count_parameters(module: Any) -> int:
    """Number of learnt numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def network_size(
    backbone: nn.Module, input_shape: tuple[int, ...], whole: bool = False
) -> dict[str, Any]:
    """Learnt numbers, floating-point operations for one example in a test, and the features' shape.

    A multiplication and its addition are two operations; only those of convolutions and matrix
    products count. Where the network cannot be run by shapes alone, they are not known: None. With
    `whole` it reads whole numbers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    facts: dict[str, Any] = {
        "parameters": count_parameters(backbone),
        "flops": None,
        "output": None,
    }
    was_training = backbone.training
    backbone.eval()
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    with suppress(Exception):  # a user's own network may do what has no meaning by shapes alone
        # On the meta device, where nothing is computed: a large network takes no longer.
        shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
        dtype = torch.int64 if whole else None
        example = torch.empty(1, *input_shape, dtype=dtype, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = functional_call(backbone, shapes, (example,))
        facts |= {"flops": counter.get_total_flops(), "output": list(features.shape[1:])}
    backbone.train(was_training)
    return facts


def network_line(network: dict[str, Any]) -> str:
    """The numbers of a backbone, in a few words."""
    line = f"{network['parameters']:,} parameters"
    if network["output"] is not None:
        output = "×".join(map(str, network["output"]))
        scale, unit = (1e9, "G") if network["flops"] >= 1e9 else (1e6, "M")
        line += f", {network['flops'] / scale:.3g} {unit}FLOPs an example, output {output}"
    return line
