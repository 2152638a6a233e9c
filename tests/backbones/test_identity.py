import torch

from metarun.backbones.identity import Identity


def test_vectors_are_what_they_were():
    backbone, x = Identity((5,), flatten=True), torch.randn(3, 5)
    assert torch.equal(backbone(x), x)
    assert backbone.out_dim == 5
    assert not hasattr(backbone, "out_shape")


def test_maps_are_kept_or_made_vectors():
    x = torch.randn(2, 3, 4, 5)
    maps, vectors = Identity((3, 4, 5), flatten=False), Identity((3, 4, 5), flatten=True)
    assert torch.equal(maps(x), x)
    assert (maps.out_shape, maps.gives_maps, maps.out_dim) == ((3, 4, 5), True, 60)
    assert torch.equal(vectors(x), x.flatten(1))
    assert not getattr(vectors, "gives_maps", False)


def test_what_algorithms_set_for_networks_is_no_matter():
    assert not list(Identity((4,), flatten=True, batch_norm="batch", pools=2).parameters())
