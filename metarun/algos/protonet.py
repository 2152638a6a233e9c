"""Prototypical networks: classify a query by its nearest class mean.

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017, arXiv:1703.05175.
Equation and section numbers are that paper's. Shapes: T tasks, S support and Q query examples
of a task, D features.
"""

import torch
from torch import Tensor, nn

from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.embedding import at_least_float32, embed_task
from metarun.functional.objective import measured, query_loss
from metarun.functional.prototypes import class_means, cosine_distances, squared_distances

DISTANCES = {"euclidean": squared_distances, "cosine": cosine_distances}


class ProtoNet(nn.Module):
    """Nearest class mean in the space of `backbone`.

    `distance` is the paper's squared Euclidean distance or the cosine distance it compares with.
    The distances are divided by `temperature`, 1 in the paper; a learnt one, which cosine
    distances need to get past their narrow range, came later (Gidaris and Komodakis 2018).
    """

    features_suffice = True

    def __init__(
        self,
        backbone: nn.Module,
        distance: str = "euclidean",
        temperature: float = 1.0,
        learn_temperature: bool = False,
    ):
        super().__init__()
        if distance not in DISTANCES:
            raise UserError(f"algo.distance={distance}: choose one of {', '.join(DISTANCES)}")
        if temperature <= 0:
            raise UserError(f"algo.temperature={temperature}: it must be above 0")
        self.backbone = backbone
        self.distances = DISTANCES[distance]
        # Its logarithm is what is learnt, so that the temperature stays positive.
        self.log_temperature = nn.Parameter(
            torch.tensor(temperature).log(), requires_grad=learn_temperature
        )

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way]; softmax gives p(y = k | x), eq. 2 with the distance of sec. 2.4."""
        # Support and query go through together, as in the authors' code: batch norm sees both.
        support_z, query_z = embed_task(self.backbone, episodes)
        # Means and distances want full precision, in whatever precision the backbone computes.
        with torch.autocast(query_z.device.type, enabled=False):
            support_z, query_z = (at_least_float32(z).flatten(2) for z in (support_z, query_z))
            prototypes = class_means(support_z, episodes.support_y, episodes.way)
            distances = self.distances(query_z, prototypes)
            return episodes.known(-distances / self.log_temperature.exp())

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean negative log-likelihood of the query labels, in nats (Algorithm 1)."""
        scores = self.predict(episodes)
        return query_loss(scores, episodes), measured(scores, episodes.query_y)
