"""Layer normalisation that can be differentiated twice for many tasks at once (Ba et al. 2016).

torch's own is silently wrong there: when autograd differentiates through vmap of a gradient, and
each task has a scale of its own.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """As torch's, but scale and shift are an operation for themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, eps=self.eps) * self.weight + self.bias


class ScaledApart(nn.Module):
    """Another's layer norm, which gives up its scale and shift to operations for themselves.

    `dim` is the dimension that it normalises: 1 or the last, -1.
    """

    def __init__(self, norm: nn.LayerNorm, dim: int):
        super().__init__()
        self.norm, self.weight, self.bias = norm, norm.weight, norm.bias
        norm.weight = norm.bias = None  # type: ignore[assignment]
        self.shape = (-1, 1, 1) if dim == 1 else (-1,)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.weight.view(self.shape) + self.bias.view(self.shape)


def is_wrong_in_inner_loops(module: nn.Module) -> bool:
    """Whether it is a layer norm that scales by itself."""
    return (
        isinstance(module, nn.LayerNorm)
        and not isinstance(module, LayerNorm)
        and module.weight is not None
    )
