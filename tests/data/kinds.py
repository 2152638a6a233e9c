"""A made-up data set of each kind of example, and a small network that reads it."""

from math import prod

import torch
from torch import Tensor, nn

from metarun.data.kinds import FILLED_UP, KINDS, filled_up
from metarun.data.split import Split, as_split
from metarun.data.store import SPLITS, DataSet, prepare
from metarun.functional.graphs import packed, unpacked

SIZES = {"images": (), "vectors": (), "tokens": (11,), "graphs": (5, 3, 3)}
CLASSES, EACH = 6, 8
OUT = 4  # features


def load(
    kind: str, length: int = 6, seed: int = 0, shared: bool = False, root: str | None = None
) -> DataSet:
    """Six classes of eight examples of side or length `length` in each split; or `shared`: three
    assays of twelve stored examples, each of which shows most of them."""
    assert kind in KINDS

    def build() -> dict[str, Split]:
        generator = torch.Generator().manual_seed(seed)
        made = assays if shared else plain
        return {split: made(kind, split, length, generator) for split in SPLITS}

    return prepare(f"made_{kind}", f"{length}, {seed}, {shared}", build)


def plain(kind: str, split: str, length: int, generator: torch.Generator) -> Split:
    """Classes with examples of their own."""
    x = examples(kind, CLASSES * EACH, length, generator)
    names = [f"{split}/{c}" for c in range(CLASSES)]
    return as_split(kind, x, torch.arange(CLASSES + 1) * EACH, names, sizes=SIZES[kind])


def assays(kind: str, split: str, length: int, generator: torch.Generator) -> Split:
    """Three assays of two classes, of 5 and 6 of the same twelve examples."""
    x = examples(kind, 12, length, generator)
    index = torch.cat([torch.randperm(12, generator=generator)[:11] for _ in range(3)])
    superclass_of = {f"{split}/{t}/{label}": f"{split}/{t}" for t in range(3) for label in (0, 1)}
    first_row = torch.tensor([0, *(5, 6) * 3]).cumsum(0)
    return as_split(
        kind, x, first_row, superclass_of, superclass_of, sizes=SIZES[kind], index=index
    )


def examples(kind: str, count: int, length: int, generator: torch.Generator) -> Tensor:
    """So many random examples [count, *input], of unequal lengths where the kind has them."""
    if kind == "images":
        return torch.randint(256, (count, 1, length, length), generator=generator).byte()
    if kind == "vectors":
        return torch.randint(9, (count, length), generator=generator).byte()
    ends = torch.randint(1, length + 1, (count,), generator=generator)
    if kind == "tokens":
        ids = torch.randint(1, *SIZES[kind], (count, length), generator=generator)
        return ids.where(torch.arange(length) < ends[:, None], 0).short()
    return torch.stack([graph(end, length, generator) for end in ends.tolist()]).byte()


def graph(count: int, room: int, generator: torch.Generator) -> Tensor:
    """A random graph of so many atoms."""
    *features, bonds = SIZES["graphs"]
    atoms = [torch.randint(n, (count, 1), generator=generator) for n in features]
    between = torch.randint(bonds, (count, count), generator=generator).triu(1)
    return packed(torch.cat(atoms, dim=1), between + between.T, room)


class Flat(nn.Sequential):
    """Images and vectors through one linear layer."""

    def __init__(self, input_shape: tuple[int, ...]):
        super().__init__(nn.Flatten(), nn.Linear(prod(input_shape), OUT))
        self.out_dim = OUT


class TokenMean(nn.Module):
    """The mean of the tokens' embeddings."""

    def __init__(self, input_shape: tuple[int, ...], sizes: tuple[int, ...]):
        super().__init__()
        assert len(input_shape) == 1
        self.embedding = nn.Embedding(*sizes, OUT)
        self.out_dim = OUT

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.int64
        return masked_mean(self.embedding(x), x != 0)


class GraphMean(nn.Module):
    """The mean of the atoms' embeddings, each with those of its neighbours added to it."""

    def __init__(self, input_shape: tuple[int, ...], sizes: tuple[int, ...]):
        super().__init__()
        atoms, width = input_shape
        *features, bonds = sizes
        assert width == 1 + len(features) + atoms
        self.atoms = nn.ModuleList(nn.Embedding(n, OUT) for n in features)
        self.bonds = nn.Embedding(bonds, 1)
        self.out = nn.Linear(OUT, OUT)
        self.out_dim = OUT

    def forward(self, x: Tensor) -> Tensor:
        mask, atoms, bonds = unpacked(x)
        h = sum(embed(atoms[..., i]) for i, embed in enumerate(self.atoms))
        h = h + (self.bonds(bonds)[..., 0] * (bonds != 0)) @ h
        return masked_mean(self.out(h).tanh(), mask)


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over those that are there: [N, L, D], [N, L] -> [N, D]."""
    weights = mask[..., None].to(h.dtype)
    return (h * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


BACKBONES = {"images": Flat, "vectors": Flat, "tokens": TokenMean, "graphs": GraphMean}


def longer(kind: str, x: Tensor, more: int) -> Tensor:
    """The examples [N, *input] with so much more padding, of a kind that is filled up."""
    return filled_up(x, tuple(n + more for n in x.shape[1:])) if kind in FILLED_UP else x
