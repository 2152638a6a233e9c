from dataclasses import replace

import pytest
import torch

from metarun.data.split import as_split, normalised, stack_classes
from metarun.functional.graphs import packed

IMAGES = {
    "a/1": torch.full((2, 1, 2, 2), 51, dtype=torch.uint8),
    "b/1": torch.full((1, 1, 2, 2), 102, dtype=torch.uint8),
    "a/2": torch.full((3, 1, 2, 2), 255, dtype=torch.uint8),
}
ALPHABETS = {"a/1": "a", "b/1": "b", "a/2": "a"}


def test_classes_lie_one_after_another():
    """Two, one and three examples: classes start at rows 0, 2 and 3, and end at 6."""
    split = stack_classes("images", IMAGES, ALPHABETS)
    assert split.first_row.tolist() == [0, 2, 3, 6]
    assert split.classes == ("a/1", "b/1", "a/2")
    assert split.superclasses == ("a", "b")
    assert split.superclass.tolist() == [0, 1, 0]
    assert split.x[:, 0, 0, 0].tolist() == [51, 51, 102, 255, 255, 255]
    assert split.input_shape == (1, 2, 2)


def test_without_superclasses():
    split = stack_classes("images", IMAGES)
    assert split.superclass.tolist() == []
    assert split.superclasses == ()


def test_take_scales_normalises_and_keeps_the_shape_of_rows():
    """51 / 255 = 0.2; (0.2 - 0.4) / 0.5 = -0.4; 102 and 255 become 0 and 1.2."""
    split = stack_classes("images", IMAGES, ALPHABETS, mean=(0.4,), std=(0.5,))
    x = split.take(torch.tensor([[0, 2, 5], [3, 1, 2]]))
    assert x.shape == (2, 3, 1, 2, 2)
    assert x.dtype == torch.float32
    wanted = torch.tensor([[-0.4, 0, 1.2], [1.2, -0.4, 0]])
    torch.testing.assert_close(x, wanted[..., None, None, None].expand(2, 3, 1, 2, 2))


def test_joined():
    """The other's examples and classes follow; an alphabet of both is one."""
    other = stack_classes(
        "images",
        {"c/1": torch.full((1, 1, 2, 2), 7).byte(), "b/2": torch.full((2, 1, 2, 2), 9).byte()},
        {"c/1": "c", "b/2": "b"},
        mean=(0.9,),
    )
    both = stack_classes("images", IMAGES, ALPHABETS, mean=(0.4,), std=(0.5,)).joined(other)
    assert both.first_row.tolist() == [0, 2, 3, 6, 7, 9]
    assert both.classes == ("a/1", "b/1", "a/2", "c/1", "b/2")
    named = [both.superclasses[i] for i in both.superclass]
    assert (both.superclasses, named) == (("a", "b", "c"), ["a", "b", "a", "c", "b"])
    assert both.x[:, 0, 0, 0].tolist() == [51, 51, 102, 255, 255, 255, 7, 9, 9]
    assert (both.mean, both.std) == ((0.4,), (0.5,))
    flat = stack_classes("images", IMAGES).joined(other)
    assert (len(flat.classes), flat.superclasses, flat.superclass.tolist()) == (5, (), [])


def test_take_leaves_other_inputs_as_they_are():
    vectors = {"a": torch.tensor([[1.5, -2.0]]), "b": torch.tensor([[7.0, 3.0]])}
    assert stack_classes("vectors", vectors).take(torch.tensor([1])).tolist() == [[7.0, 3.0]]


def test_each_channel_has_its_own_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (4, 3, 2, 2), generator=generator).to(torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    got = normalised(x, mean, std)
    for n in range(4):
        for c in range(3):
            wanted = (x[n, c].double() / 255 - mean[c]) / std[c]
            assert got[n, c].double().sub(wanted).abs().max() < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("share", [0.5, 0.0])  # of the memory: resident, and read from the host
def test_the_device_gets_the_same_examples(monkeypatch, share):
    monkeypatch.setattr("metarun.data.split.RESIDENT_SHARE", share)
    split = stack_classes("images", IMAGES, ALPHABETS)
    rows = torch.tensor([[5, 0], [2, 3]])
    there = split.to(torch.device("cuda"))
    assert there.x.is_cuda == (share > 0)
    torch.testing.assert_close(there.take(rows).cpu(), split.take(rows))


TOKENS = torch.tensor([[3, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [4, 4, 4, 0]], dtype=torch.uint8)


def some_tokens():
    return stack_classes("tokens", {"a": TOKENS[:2], "b": TOKENS[2:]}, sizes=(5,))


def test_tokens_go_to_the_end_of_the_longest_that_is_taken():
    """Of a batch that has nothing but padding, one place is left for a network to read."""
    split = some_tokens()
    assert split.input_shape == (4,)
    assert split.lengths.tolist() == [2, 1, 0, 3]
    taken = split.take(torch.tensor([[1, 0], [2, 1]]))
    assert taken.dtype == torch.int64
    assert taken.tolist() == [[[2, 0], [3, 1]], [[0, 0], [2, 0]]]
    assert split.take(torch.tensor([2])).tolist() == [[0]]
    assert split.take(torch.tensor([3])).tolist() == [[4, 4, 4]]
    assert split.take(torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 0, 4)


def test_graphs_lose_atoms_and_bonds_that_none_has():
    atoms, bonds = torch.tensor([[6], [8]]), torch.tensor([[0, 2], [2, 0]])
    large, small = packed(atoms, bonds, 5), packed(atoms[:1], bonds[:1, :1], 5)
    split = stack_classes("graphs", {"a": torch.stack([large, small]).byte()}, sizes=(9, 3))
    taken = split.take(torch.tensor([0, 1]))
    assert taken.dtype == torch.int64
    assert torch.equal(taken[0], packed(atoms, bonds, 2))
    assert split.take(torch.tensor([1])).tolist() == [[[1, 6, 0]]]


def test_rows_on_another_device_leave_the_padding_where_it_is():
    """There the longest is not known without waiting, and a recorded step has but one shape."""
    split = some_tokens()
    there = replace(split, x=split.x.to("meta"), device=torch.device("meta"))
    assert there.take(torch.tensor([1])).shape == (1, 1)
    assert there.take(torch.tensor([1], device="meta")).shape == (1, 4)
    shared = replace(there, index=torch.tensor([0, 1, 1, 3]))
    assert shared.take(torch.tensor([2])).shape == (1, 1)
    assert shared.take(torch.tensor([2], device="meta")).shape == (1, 4)


def test_counts_are_taken_as_floats():
    counts = stack_classes("vectors", {"a": torch.tensor([[1, 200]], dtype=torch.uint8)})
    taken = counts.take(torch.tensor([0]))
    assert taken.dtype == torch.float32
    assert taken.tolist() == [[1.0, 200.0]]
    fine = stack_classes("vectors", {"a": torch.ones(1, 2, dtype=torch.float64)})
    assert fine.take(torch.tensor([0])).dtype == torch.float64


def columns(x, index, first_row, tasks):
    """Two classes a task of shared examples."""
    classes = [f"{task}/{label}" for task in tasks for label in (0, 1)]
    superclass_of = {name: name[0] for name in classes}
    first_row, index = torch.tensor(first_row), torch.tensor(index)
    return as_split("vectors", x, first_row, classes, superclass_of, index=index)


def test_rows_that_show_one_stored_example():
    """Two assays of three molecules; joined with one of its own, and with examples of one row."""
    x = torch.tensor([[1.0], [2.0], [3.0]])
    split = columns(x, [0, 2, 1, 1, 0], [0, 1, 3, 4, 5], "st")
    rows = torch.tensor([[0, 1], [4, 3]])
    assert split.stored(rows).tolist() == [[0, 2], [0, 1]]
    assert split.take(rows)[..., 0].tolist() == [[1, 3], [1, 2]]
    both = split.joined(columns(10 * x, [2, 0], [0, 1, 2], "u"))
    assert both.index.tolist() == [0, 2, 1, 1, 0, 5, 3]
    assert both.superclasses == ("s", "t", "u")
    assert both.take(torch.arange(7))[:, 0].tolist() == [1, 3, 2, 2, 1, 30, 10]
    plain = stack_classes("vectors", {"v": 5 * x})
    assert split.joined(plain).take(torch.arange(8))[5:, 0].tolist() == [5, 10, 15]
    assert plain.joined(split).take(torch.arange(8))[:, 0].tolist() == [5, 10, 15, 1, 3, 2, 2, 1]
    assert plain.joined(plain).index is None


def test_joined_sequences_are_as_long_as_the_longest():
    both = some_tokens().joined(stack_classes("tokens", {"c": TOKENS[:1].repeat(1, 2)}, sizes=(5,)))
    assert both.input_shape == (8,)
    assert both.lengths.tolist() == [2, 1, 0, 3, 6]
    assert (both.kind, both.sizes) == ("tokens", (5,))
    assert both.take(torch.tensor([0])).tolist() == [[3, 1]]
