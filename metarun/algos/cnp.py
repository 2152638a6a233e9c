"""Conditional neural processes: a task's examples averaged into one vector, which a network reads.

Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende and Eslami, "Conditional
Neural Processes", 2018, arXiv:1807.01613. Equation and section numbers are that paper's. Shapes:
T tasks, S support (context) and Q query (target) examples of a task, D features, R numbers of the
representation.

Choices. Both h and g see an example through the same `backbone`: in a classification it is the
convolutional part of h, and what g takes for x (the paper does not say); in a regression its
layers stand before those of h and g. The deviation is 0.1 + 0.9 softplus, as in the authors' code;
the paper does not say how it is kept positive.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.standardise import AsTheyAre, if_raw
from metarun.episodes import Episodes, refuse_other_way
from metarun.errors import UserError
from metarun.functional.embedding import embed_task, out_dim, real_examples
from metarun.functional.objective import measured, query_loss
from metarun.functional.prototypes import class_means


class CNP(nn.Module):
    """Encoder h, mean, decoder g (eqs. 1 to 3): a classifier of `way` classes.

    With way = 1 it is a regression instead, of one real value an example. `width` is the number of
    units of each hidden layer, and of the representation in a regression.
    """

    regression = True
    features_suffice = True

    def __init__(self, backbone: nn.Module, way: int, width: int):
        super().__init__()
        if way < 1:
            raise UserError(f"algo.way={way}: give 2 classes or more, or 1 for a regression")
        if width < 1:
            raise UserError(f"algo.width={width}: it must be at least 1")
        self.backbone, self.way = backbone, way
        features = out_dim(backbone)
        self.standardise = AsTheyAre() if way == 1 else if_raw(backbone)
        if way == 1:  # sec. 4.1: h of three layers, g of five
            self.encoder = perceptron(features + 1, width, width, width)
            self.decoder = perceptron(features + width, width, width, width, width, 2)
        else:  # sec. 4.3: h is convolutional, g of three layers
            self.decoder = perceptron(features + way * features, width, width, way)

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way]; in a regression the means [T, Q, 1] of the values."""
        support_z, query_z = self.features(episodes)
        with torch.autocast(query_z.device.type, enabled=False):
            outputs = self.decode(query_z, self.represent(support_z, episodes.support_y))
        return episodes.known(outputs[..., : self.way])

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean negative log-likelihood in nats: of the queries' classes, or of values (eq. 4).

        In a regression the context is the first N support examples, N from 1 to all of them
        equally likely, and the values are those of support and query, observed or not.
        """
        if self.way > 1:
            scores = self.predict(episodes)
            return query_loss(scores, episodes), measured(scores, episodes.query_y)
        support_z, query_z = self.features(episodes)
        with torch.autocast(query_z.device.type, enabled=False):
            support = support_z.shape[1]
            n = int(torch.randint(1, support + 1, ()))
            r = self.represent(support_z[:, :n], episodes.support_y[:, :n])
            outputs = self.decode(torch.cat([support_z, query_z], dim=1), r)
            mean, deviation = outputs[..., :1], 0.1 + 0.9 * F.softplus(outputs[..., 1:])
            values = torch.cat([episodes.support_y, episodes.query_y], dim=1)
            errors = (values - mean) / deviation
            loss = (errors.square() / 2 + deviation.log()).mean() + math.log(2 * math.pi) / 2
        return loss, measured(mean[:, support:], episodes.query_y)

    def features(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Features of support [T, S, D] and query [T, Q, D]."""
        refuse_other_way(episodes, self.way)
        z = torch.cat(embed_task(self.backbone, episodes), dim=1)
        z = self.standardise(z, real_examples(episodes))
        support_z, query_z = z.tensor_split([episodes.support_x.shape[1]], dim=1)
        return support_z, query_z

    def represent(self, z: Tensor, y: Tensor) -> Tensor:
        """The task's representation r [T, R] from its context z [T, S, D] and y (eqs. 1 and 2).

        In a classification it is the classes' means side by side, in the order of their labels
        (sec. 4.3), which is all that is known of the labels.
        """
        if self.way == 1:
            return self.encoder(torch.cat([z, y], dim=-1)).mean(dim=1)
        return class_means(z, y, self.way).flatten(1)

    def decode(self, z: Tensor, r: Tensor) -> Tensor:
        """Scores [T, N, way], or mean and what the deviation is made of [T, N, 2] (eq. 3)."""
        return self.decoder(torch.cat([z, r[:, None].expand(-1, z.shape[1], -1)], dim=-1))


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them: [..., sizes[0]] -> [..., sizes[-1]]."""
    layers: list[nn.Module] = []
    for size, width in pairwise(sizes):
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
