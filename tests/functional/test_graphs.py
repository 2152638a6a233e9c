import torch

from metarun.functional.graphs import packed, unpacked

ATOMS = torch.tensor([[6, 0, 1], [8, 1, 0]])  # two atoms of three features
BONDS = torch.tensor([[0, 2], [2, 0]])


def test_the_layout_of_a_graph():
    """By hand: there, three features, bonds to the two atoms and to the room for a third."""
    assert packed(ATOMS, BONDS, 3).tolist() == [
        [1, 6, 0, 1, 0, 2, 0],
        [1, 8, 1, 0, 2, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_what_is_packed_comes_back():
    """From a batch of any shape, with no more and with much more room than there are atoms."""
    for room in (2, 7):
        x = packed(ATOMS, BONDS, room).expand(4, 5, -1, -1)
        mask, atoms, bonds = unpacked(x)
        assert (mask.shape, atoms.shape) == ((4, 5, room), (4, 5, room, 3))
        assert bonds.shape == (4, 5, room, room)
        assert mask.dtype == torch.bool
        assert mask[1, 2].tolist() == [True, True] + [False] * (room - 2)
        assert torch.equal(atoms[3, 4, :2], ATOMS)
        assert torch.equal(bonds[3, 4, :2, :2], BONDS)
        assert (int(atoms.sum()), int(bonds.sum())) == (20 * 16, 20 * 4)


def test_a_type_that_is_small_stays():
    assert packed(ATOMS.byte(), BONDS.byte(), 4).dtype == torch.uint8
