"""Siamese networks: learn whether two examples show the same class, classify by the most similar.

Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", ICML Deep
Learning Workshop 2015. Section numbers are that paper's. Shapes: T pairs or tasks, S support and
Q query examples of a task, D features.

Where the paper is silent, or else than in it:
- the weighted distance has a bias: without it two equal images would be "the same" with
  probability one half, whatever is learnt;
- several support examples of a class: the mean of their similarities, taken before the sigmoid,
  which orders single examples alike and does not saturate;
- distortions are drawn anew for every image of every batch, where the paper adds eight distorted
  copies of each training pair to it; each of the map's seven numbers is used half of the time;
- verification has the threshold 1/2, where the paper takes the best one on validation pairs;
- one learning rate, momentum and L2 penalty for all layers, where the paper searches for them layer
  by layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.augment.affine import Affine
from metarun.episodes import PADDING, Episodes
from metarun.functional.embedding import at_least_float32, embed_task, out_dim
from metarun.functional.prototypes import class_means
from metarun.samplers.pairs import Pairs

# Sec. 3.2; the paper shifts by up to 2 pixels of 105.
distorted = Affine(degrees=10, shear=0.3, scale=0.2, shift=2 / 105, probability=0.5)


class Siamese(nn.Module):
    """A weighted L1 distance, through a sigmoid, between the features that `backbone` gives twins.

    With `distortions`, images are trained on under random affine maps; other inputs stay as they
    are.
    """

    features_suffice = True
    scores_are_log_p = False  # how similar the classes are, each by itself

    def __init__(self, backbone: nn.Module, distortions: bool):
        super().__init__()
        self.backbone, self.distortions = backbone, distortions
        self.alpha = nn.Linear(out_dim(backbone), 1)
        nn.init.normal_(self.alpha.weight, 0.0, 0.2)  # as the paper's dense layers
        nn.init.normal_(self.alpha.bias, 0.5, 0.01)

    def loss(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy, in nats, of p = sigmoid(sum_j alpha_j |a_j - b_j|) (sec. 3.2, 3.1).

        The verification accuracy is the share of pairs told right at the threshold p = 1/2.
        """
        x = torch.cat([pairs.a, pairs.b])
        if self.distortions and self.training and x.ndim == 4:
            x = distorted(x)
        z = self.backbone(x)
        # Distances want full precision, in whatever precision the backbone computes.
        with torch.autocast(z.device.type, enabled=False):
            a, b = at_least_float32(z).chunk(2)
            similarity = self.alpha((a - b).abs())[:, 0]
            loss = F.binary_cross_entropy_with_logits(similarity, pairs.same.to(similarity.dtype))
        return loss, {"verification_accuracy": ((similarity > 0) == pairs.same).float().mean()}

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way]: the mean similarity, before its sigmoid, to the support examples of
        the class. With one example a class it is the paper's rule, the largest p (sec. 4.3)."""
        return self.predict_and_measure(episodes)[0]

    def predict_and_measure(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, and the verification accuracy [T] at the threshold p = 1/2, over all pairs of a
        query and a support example: the mean of the shares of pairs of the same class and of pairs
        of different classes that are told right, so that both kinds weigh the same."""
        similarities = self.similarities(episodes)
        with torch.autocast(similarities.device.type, enabled=False):
            means = class_means(similarities.mT, episodes.support_y, episodes.way).mT
        said_same = similarities > 0
        query_y, support_y = episodes.query_y[:, :, None], episodes.support_y[:, None]
        real = (query_y != PADDING) & (support_y != PADDING)
        same, other = real & (query_y == support_y), real & (query_y != support_y)  # [T, Q, S]
        positives = (said_same & same).sum(dim=(1, 2)) / same.sum(dim=(1, 2))
        negatives = (~said_same & other).sum(dim=(1, 2)) / other.sum(dim=(1, 2))
        return episodes.known(means), {"verification_accuracy": (positives + negatives) / 2}

    def similarities(self, episodes: Episodes) -> Tensor:
        """Of each query with each support example, before the sigmoid: [T, Q, S]."""
        support_z, query_z = embed_task(self.backbone, episodes)
        with torch.autocast(query_z.device.type, enabled=False):
            distances = weighted_l1(
                at_least_float32(query_z), at_least_float32(support_z), self.alpha.weight[0]
            )
            return distances + self.alpha.bias


def weighted_l1(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """sum_j alpha_j |a_j - b_j| of every two rows: [T, N, D], [T, M, D], [D] -> [T, N, M]."""
    # |alpha_j| goes into the rows, so that the N × M differences need not be kept.
    positive, negative = alpha.clamp(min=0), (-alpha).clamp(min=0)
    return torch.cdist(a * positive, b * positive, p=1) - torch.cdist(
        a * negative, b * negative, p=1
    )
