"""Graphs as one tensor of small whole numbers, so that a batch of them is a batch of anything.

A graph of A atoms, each with F features and a bond to any other, is [A, 1 + F + A]. Of each atom
there is first a 1, which marks it as there, then its features, then the type of its bond to each
atom: 0 for none. Further zeros after the last atom and the last bond mean nothing.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def packed(atoms: Tensor, bonds: Tensor, room: int) -> Tensor:
    """A graph of features [A, F] and types of bonds [A, A], with room for more: [room, 1 + F +
    room]."""
    free = room - len(atoms)
    there = torch.ones_like(atoms[:, :1])
    rows = torch.cat([there, atoms, F.pad(bonds, (0, free))], dim=1)
    return F.pad(rows, (0, 0, 0, free))


def unpacked(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which atoms are there [..., A], a bool, their features [..., A, F] and the types of their
    bonds [..., A, A], of graphs [..., A, 1 + F + A]."""
    atoms = x.shape[-2]
    return x[..., 0] != 0, x[..., 1:-atoms], x[..., -atoms:]
