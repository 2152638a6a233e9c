"""The kinds of example that a split may hold, and how far an example goes.

images   bytes [C, H, W]: taken as floats, scaled, augmented and normalised
vectors  numbers [...], measured or counted: taken as floats
tokens   numbers of words, letters or the like [L], filled up at the end with 0: taken as int64
graphs   atoms and their bonds [A, 1 + F + A], filled up at the end with 0 (functional/graphs.py
         has the layout): taken as int64

What fills an example up has no meaning: a network gives the same features however much there is.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = {  # each as a message has it
    "images": "images",
    "vectors": "vectors",
    "tokens": "token sequences",
    "graphs": "graphs",
}
FILLED_UP = ("tokens", "graphs")


def lengths(kind: str, x: Tensor) -> Tensor | None:
    """How many tokens or atoms each of the examples [N, *input] goes to, int64 [N]; None: all of
    the kind are as long as each other."""
    if kind not in FILLED_UP:
        return None
    there = (x if kind == "tokens" else x[..., 0]) != 0
    return (there * torch.arange(1, x.shape[1] + 1)).amax(dim=1)


def cut(kind: str, x: Tensor, length: int) -> Tensor:
    """The first `length` tokens or atoms of each of the examples [N, *input]."""
    beyond = x.shape[1] - length
    return x[:, :length] if kind == "tokens" else x[:, :length, : x.shape[2] - beyond]


def filled_up(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The examples [N, *input] as [N, *shape], which is as long or longer: zeros at the end."""
    missing = [target - size for size, target in zip(x.shape[1:], shape, strict=True)]
    return F.pad(x, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else x
