"""Relation networks: a learnt comparison of a query with each class.

Sung, Yang, Zhang, Xiang, Torr and Hospedales, "Learning to Compare: Relation Network for Few-Shot
Learning", 2018, arXiv:1711.06025. Equation and section numbers are that paper's. Shapes: T tasks,
S support and Q query examples of a task, maps of features [C, H, W].

Eq. 2 sums the squared errors; here, as in the authors' code, their mean is taken, which is what
their gradient clipping goes with. Their code never leaves training mode, so its tests are
transductive: that is backbone.batch_norm=batch here, and not the default. The first two
convolutions of their encoder have no padding (maps of 5×5 from images of 28×28), conv4's have
(7×7). The relation module starts as in their code, the encoder as the backbone does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.batch_norm import MODES, normalisation
from metarun.backbones.conv4 import Block
from metarun.episodes import PADDING, Episodes
from metarun.errors import IMAGES, NOTHING, Unsuited, UserError
from metarun.functional.embedding import at_least_float32, embed, embed_apart, real_examples
from metarun.functional.objective import measured
from metarun.functional.prototypes import memberships


class RelationNet(nn.Module):
    """A relation module on top of `backbone`, whose maps of class and query it compares.

    Two blocks of `width` filters, each pooling, then layers of `hidden` units and of one (fig. 2).
    `batch_norm` is the module's mode. Its rows are pairs of query and class; in mode "support" the
    statistics are those of the support examples, each paired with every class.
    """

    features_suffice = True
    scores_are_log_p = False  # relation scores in [0, 1], each by itself

    def __init__(self, backbone: nn.Module, width: int, hidden: int, batch_norm: str):
        super().__init__()
        if batch_norm not in MODES:
            raise UserError(f"algo.batch_norm={batch_norm}: choose one of {', '.join(MODES)}")
        if min(width, hidden) < 1:
            raise UserError(f"algo.width={width}, algo.hidden={hidden}: both must be at least 1")
        self.backbone, self.mode = backbone, batch_norm
        self.map_shape = map_shape(backbone)
        channels, high, wide = self.map_shape
        # The first convolution of the concatenated maps is the sum of one of each. So both are
        # computed once an example, and not once a pair, which is most of the module's work.
        self.of_class = nn.Conv2d(channels, width, 3, padding=1)
        self.of_query = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.relation = nn.Sequential(
            normalisation(width, batch_norm),
            nn.MaxPool2d(2),
            nn.ReLU(),
            Block(width, width, batch_norm, pool=True, strides=False),
            nn.Flatten(),
            nn.Linear(width * (high // 4) * (wide // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
            nn.Sigmoid(),
        )
        for layer in (self.of_class, self.of_query, self.relation):
            layer.apply(initialise)

    def predict(self, episodes: Episodes) -> Tensor:
        """Relation scores [T, Q, way], from 0 to 1 (eq. 1)."""
        # Apart, as in the authors' code: with mode "batch" each has its own statistics.
        support_z, query_z = embed_apart(self.backbone, episodes)
        # Comparing wants full precision, in whatever precision the backbone computes.
        with torch.autocast(query_z.device.type, enabled=False):
            support, query = (
                at_least_float32(z).reshape(*z.shape[:2], *self.map_shape)
                for z in (support_z, query_z)
            )
            members = memberships(episodes.support_y, episodes.way).to(support.dtype)
            classes = torch.einsum("tsk,tschw->tkchw", members, support)  # sums of maps (sec. 3.2)
            x = torch.cat([support, query], dim=1) if self.mode == "support" else query
            of_query, of_class = embed(self.of_query, x, 0), embed(self.of_class, classes, 0)
            pairs = of_query[:, :, None] + of_class[:, None]  # [T, Q, way, width, H, W]
            support_pairs = support.shape[1] * episodes.way
            real, count = self.real_pairs(episodes)
            scores = embed(self.relation, pairs.flatten(1, 2), support_pairs, real, count)
            return episodes.known(scores.view(pairs.shape[:3])[:, -query.shape[1] :])

    def real_pairs(self, episodes: Episodes) -> tuple[Tensor | None, int | None]:
        """Which pairs of an example and a class are of real ones, in the order of the relation
        module's rows, and how many; None: all."""
        real = real_examples(episodes) if self.mode == "support" else episodes.real_query
        if episodes.ways is None or real is None:
            return None, None
        support, query, ways = episodes.sizes_on_cpu().unbind(1)
        examples = support + query if self.mode == "support" else query
        present = (
            torch.arange(episodes.way, device=real.device) < episodes.ways[:, None]
        )  # [T, way]
        return (real[:, :, None] & present[:, None]).flatten(1), int((examples * ways).sum())

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of scores, 1 for the query's own class and 0 for others (eq. 2)."""
        scores = self.predict(episodes)
        wanted = memberships(episodes.query_y, episodes.way).to(scores.dtype)
        if episodes.ways is None:
            return F.mse_loss(scores, wanted), measured(scores, episodes.query_y)
        real = (episodes.query_y != PADDING)[..., None] & scores.isfinite()  # and a class it has
        errors = (scores.where(real, 0) - wanted).square().sum(dim=(1, 2))
        return (errors / real.sum(dim=(1, 2))).mean(), measured(scores, episodes.query_y)


def initialise(layer: nn.Module) -> None:
    """Draws weights as the authors' code; with biases of 1 no hidden unit is dead at the start."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.ones_(layer.bias)


def map_shape(backbone: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the backbone's maps, which can be pooled twice."""
    shape = getattr(backbone, "out_shape", None)
    another = {NOTHING: "use another algo"}
    if shape is None or len(shape) != 3:
        raise Unsuited(
            "algo=relation compares maps of features, and this backbone gives none",
            {IMAGES: "use backbone=conv4"} | another,
        )
    channels, high, wide = shape
    if min(high, wide) < 4:
        raise Unsuited(
            f"algo=relation pools the backbone's maps twice, so {high}×{wide} is too small",
            {
                "backbone.pools": "lower backbone.pools",
                "backbone.strides": "set backbone.strides=false",
                "backbone.pool": "set backbone.pool=false",
                "data.size": "raise data.size",
            }
            | another,
        )
    return channels, high, wide
