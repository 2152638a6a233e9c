"""Features of many tasks at once are those of each task alone."""

import pytest
import torch

from metarun.backbones.mlp import MLP
from metarun.functional.embedding import embed


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_a_task_alone_has_the_same_features(mode):
    """In evaluation; with the batch's own statistics, they are the task's own."""
    torch.manual_seed(0)
    backbone = MLP((6,), widths=[5, 4], batch_norm=mode).double().eval()
    x = torch.randn(3, 7, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    together = embed(backbone, x)
    assert together.shape == (3, 7, 4)
    for task in range(3):
        torch.testing.assert_close(together[task], backbone(x[task]))


def test_statistics_of_all_tasks_would_differ():
    """So the test above can fail."""
    torch.manual_seed(0)
    backbone = MLP((6,), widths=[5, 4], batch_norm="batch").double()
    x = torch.randn(3, 7, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    pooled = backbone(x.flatten(0, 1)).unflatten(0, (3, 7))
    assert not torch.allclose(pooled, embed(backbone, x))
