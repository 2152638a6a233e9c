"""Features of many tasks at once are those of each task alone."""

import pytest
import torch
from torch import nn

from metarun.backbones.mlp import MLP
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.embedding import embed, embed_apart, embed_task, out_dim


@pytest.mark.parametrize("mode", ["running", "batch", "none"])
def test_a_task_alone_has_the_same_features(mode):
    """In evaluation; with the batch's own statistics, they are the task's own."""
    torch.manual_seed(0)
    backbone = MLP((6,), widths=[5, 4], batch_norm=mode).double().eval()
    x = torch.randn(3, 7, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    together = embed(backbone, x, support=2)
    assert together.shape == (3, 7, 4)
    for task in range(3):
        torch.testing.assert_close(together[task], backbone(x[task]))


def test_support_statistics_are_those_of_the_first_rows():
    """Written out for one layer: the support's mean and deviation, for support and query alike."""
    torch.manual_seed(0)
    backbone = MLP((6,), widths=[5], batch_norm="support").double()
    x = torch.randn(3, 7, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    got = embed(backbone, x, support=4)
    for task in range(3):
        linear = x[task] @ backbone[1].weight.T + backbone[1].bias
        mean, var = linear[:4].mean(dim=0), linear[:4].var(dim=0, unbiased=False)
        torch.testing.assert_close(got[task], ((linear - mean) / (var + 1e-5).sqrt()).relu())
    assert not torch.allclose(got, embed(backbone, x, support=5))


@pytest.mark.parametrize(
    ("mode", "apart"), [("batch", True), ("support", False), ("running", False)]
)
def test_support_and_query_together_or_apart(mode, apart):
    """Only statistics of the batch itself tell whether the query went through with the support."""
    torch.manual_seed(0)
    backbone = MLP((6,), widths=[5, 4], batch_norm=mode).double().eval()
    support_x, query_x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    y = torch.arange(4).expand(3, -1)
    episodes = Episodes(support_x, y, query_x, y, way=4)
    together = embed_task(backbone, episodes)
    alone = embed_apart(backbone, episodes)
    assert [tuple(z.shape) for z in alone] == [(3, 4, 4)] * 2
    for z, other in zip(together, alone, strict=True):
        assert torch.allclose(z, other) != apart
    if apart:
        torch.testing.assert_close(alone[1][2], backbone(query_x[2]))


def test_a_backbone_must_tell_its_size():
    assert out_dim(MLP((6,), widths=[5, 4], batch_norm="none")) == 4
    with pytest.raises(UserError, match="Flatten has no out_dim"):
        out_dim(nn.Flatten())


def test_statistics_of_all_tasks_would_differ():
    """So the test above can fail."""
    torch.manual_seed(0)
    backbone = MLP((6,), widths=[5, 4], batch_norm="batch").double()
    x = torch.randn(3, 7, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    pooled = backbone(x.flatten(0, 1)).unflatten(0, (3, 7))
    assert not torch.allclose(pooled, embed(backbone, x, support=2))
