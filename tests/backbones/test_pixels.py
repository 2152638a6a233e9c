import torch

from metarun.backbones.pixels import Pixels


def test_an_example_is_its_own_features():
    """In the order of the rows, with nothing to be learnt."""
    backbone = Pixels((2, 2, 3))
    x = torch.arange(48.0).view(4, 2, 2, 3)
    assert backbone(x).tolist() == [list(range(12 * i, 12 * i + 12)) for i in range(4)]
    assert backbone.out_dim == 12
    assert not list(backbone.parameters())


def test_of_many_tasks_under_vmap():
    x = torch.arange(24.0).view(2, 3, 1, 2, 2)
    assert torch.equal(torch.vmap(Pixels((1, 2, 2)))(x), x.view(2, 3, 4))
