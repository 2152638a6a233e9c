"""The tree that class names spell: `animal/dog/poodle` stands below `animal/dog` and `animal`."""

from functools import cache

import torch
from torch import Tensor


@cache
def inner_nodes(classes: tuple[str, ...], least: int, most: int) -> Tensor:
    """Which classes stand below each node with `least` to `most` of them, [nodes, classes].

    The root, above all classes, is a node too; nodes with the same classes count once.
    """
    below: dict[str, set[int]] = {}
    for number, name in enumerate(classes):
        parts = name.split("/")
        for depth in range(len(parts)):
            below.setdefault("/".join(parts[:depth]), set()).add(number)
    nodes = {frozenset(members) for members in below.values() if least <= len(members) <= most}
    marks = torch.zeros(len(nodes), len(classes), dtype=torch.bool)
    for row, members in enumerate(sorted(nodes, key=sorted)):
        marks[row, list(members)] = True
    return marks
