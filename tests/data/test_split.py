import pytest
import torch

from metarun.data.split import normalised, stack_classes

IMAGES = {
    "a/1": torch.full((2, 1, 2, 2), 51, dtype=torch.uint8),
    "b/1": torch.full((1, 1, 2, 2), 102, dtype=torch.uint8),
    "a/2": torch.full((3, 1, 2, 2), 255, dtype=torch.uint8),
}
ALPHABETS = {"a/1": "a", "b/1": "b", "a/2": "a"}


def test_classes_lie_one_after_another():
    """Two, one and three examples: classes start at rows 0, 2 and 3, and end at 6."""
    split = stack_classes(IMAGES, ALPHABETS)
    assert split.first_row.tolist() == [0, 2, 3, 6]
    assert split.classes == ("a/1", "b/1", "a/2")
    assert split.superclasses == ("a", "b")
    assert split.superclass.tolist() == [0, 1, 0]
    assert split.x[:, 0, 0, 0].tolist() == [51, 51, 102, 255, 255, 255]
    assert split.input_shape == (1, 2, 2)


def test_without_superclasses():
    split = stack_classes(IMAGES)
    assert split.superclass.tolist() == []
    assert split.superclasses == ()


def test_take_scales_normalises_and_keeps_the_shape_of_rows():
    """51 / 255 = 0.2; (0.2 - 0.4) / 0.5 = -0.4; 102 and 255 become 0 and 1.2."""
    split = stack_classes(IMAGES, ALPHABETS, mean=(0.4,), std=(0.5,))
    x = split.take(torch.tensor([[0, 2, 5], [3, 1, 2]]))
    assert x.shape == (2, 3, 1, 2, 2)
    assert x.dtype == torch.float32
    wanted = torch.tensor([[-0.4, 0, 1.2], [1.2, -0.4, 0]])
    torch.testing.assert_close(x, wanted[..., None, None, None].expand(2, 3, 1, 2, 2))


def test_joined():
    """The other's examples and classes follow; an alphabet of both is one."""
    other = stack_classes(
        {"c/1": torch.full((1, 1, 2, 2), 7).byte(), "b/2": torch.full((2, 1, 2, 2), 9).byte()},
        {"c/1": "c", "b/2": "b"},
        mean=(0.9,),
    )
    both = stack_classes(IMAGES, ALPHABETS, mean=(0.4,), std=(0.5,)).joined(other)
    assert both.first_row.tolist() == [0, 2, 3, 6, 7, 9]
    assert both.classes == ("a/1", "b/1", "a/2", "c/1", "b/2")
    named = [both.superclasses[i] for i in both.superclass]
    assert (both.superclasses, named) == (("a", "b", "c"), ["a", "b", "a", "c", "b"])
    assert both.x[:, 0, 0, 0].tolist() == [51, 51, 102, 255, 255, 255, 7, 9, 9]
    assert (both.mean, both.std) == ((0.4,), (0.5,))
    flat = stack_classes(IMAGES).joined(other)
    assert (len(flat.classes), flat.superclasses, flat.superclass.tolist()) == (5, (), [])


def test_take_leaves_other_inputs_as_they_are():
    vectors = {"a": torch.tensor([[1.5, -2.0]]), "b": torch.tensor([[7.0, 3.0]])}
    assert stack_classes(vectors).take(torch.tensor([1])).tolist() == [[7.0, 3.0]]


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
    split = stack_classes(IMAGES, ALPHABETS)
    rows = torch.tensor([[5, 0], [2, 3]])
    there = split.to(torch.device("cuda"))
    assert there.x.is_cuda == (share > 0)
    torch.testing.assert_close(there.take(rows).cpu(), split.take(rows))
