import pytest
import torch

from metarun.data.kinds import cut, filled_up, lengths
from metarun.functional.graphs import packed

TOKENS = torch.tensor([[3, 1, 0, 0], [0, 0, 0, 0], [5, 0, 2, 0], [1, 1, 1, 1]])
ATOMS, BONDS = torch.tensor([[6, 1], [8, 2]]), torch.tensor([[0, 2], [2, 0]])
GRAPHS = torch.stack([packed(ATOMS, BONDS, 4), packed(ATOMS[:1], BONDS[:1, :1], 4)])


def test_lengths():
    """A 0 within is part of a sequence, and an atom whose features are all 0 part of its graph."""
    assert lengths("tokens", TOKENS.byte()).tolist() == [2, 0, 3, 4]
    assert lengths("graphs", GRAPHS).tolist() == [2, 1]
    assert lengths("graphs", packed(0 * ATOMS, 0 * BONDS, 3)[None]).tolist() == [2]
    assert lengths("tokens", TOKENS[:0]).tolist() == []
    assert lengths("images", torch.zeros(2, 1, 4, 4)) is None
    assert lengths("vectors", torch.zeros(2, 4)) is None


@pytest.mark.parametrize(("kind", "x"), [("tokens", TOKENS), ("graphs", GRAPHS)])
def test_cut_is_undone_by_filling_up(kind, x):
    longest = 3 if kind == "tokens" else 2
    short = cut(kind, x[:3], longest)
    assert short.shape[1] == longest
    assert torch.equal(filled_up(short, x.shape[1:]), x[:3])
    assert filled_up(x, x.shape[1:]) is x


def test_a_graph_that_is_cut_is_the_graph_packed_into_less_room():
    assert torch.equal(cut("graphs", GRAPHS[:1], 2), packed(ATOMS, BONDS, 2)[None])
