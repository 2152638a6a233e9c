"""SNAIL: a task read as a sequence, by temporal convolutions and attention to its past.

Mishra, Rohaninejad, Chen and Abbeel, "A Simple Neural Attentive Meta-Learner", 2018,
arXiv:1707.03141. Section numbers are that paper's. Shapes: T tasks, S support and Q query
examples of a task, D features, C channels.

A sequence is the support set in random order, each example with its label, and then one query
without; what the last step says is the answer (sec. 5.1). Each step sees its past alone, so the
support's part of the sequence is the same for all queries of a task: it is computed once, and
each query is a step of its own that follows it, [T, S + Q, C] instead of Q times [T, S + 1, C].

Choices. Dilations are 1, 2, 4, ..., with which a TC block sees every earlier step of the sequence;
the pseudocode of sec. 3.1 counts from 2, which skips the odd ones and ends looking past the
beginning. A test reads the support in one fixed random order, so that it gives the same answer
every time.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.standardise import if_raw
from metarun.episodes import Episodes, refuse_other_way
from metarun.errors import UserError
from metarun.functional.embedding import embed_task, out_dim, real_examples
from metarun.functional.objective import measured, query_loss
from metarun.functional.orders import fixed_orders
from metarun.functional.prototypes import memberships


class SNAIL(nn.Module):
    """The few-shot network of appendix A, on the features of `backbone`.

    `shot` is the largest number of support examples per class that it trains with, and decides how
    far its convolutions look back. Tests may have any shot: attention looks back without end.
    """

    features_suffice = True

    def __init__(self, backbone: nn.Module, way: int, shot: int):
        super().__init__()
        if way < 2:
            raise UserError(f"algo.way={way}: SNAIL tells classes apart, 2 or more")
        if shot < 1:
            raise UserError(f"algo.shot={shot}: it must be at least 1")
        self.backbone, self.way = backbone, way
        self.standardise = if_raw(backbone)
        length = way * shot + 1
        channels = out_dim(backbone) + way
        blocks = [
            attention := AttentionBlock(channels, key_size=64, value_size=32),
            convolution := TCBlock(attention.out_channels, length, filters=128),
            attention := AttentionBlock(convolution.out_channels, key_size=256, value_size=128),
            convolution := TCBlock(attention.out_channels, length, filters=128),
            attention := AttentionBlock(convolution.out_channels, key_size=512, value_size=256),
        ]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(attention.out_channels, way)

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way] of the queries, each the last step of its own sequence."""
        tasks, support = episodes.support_y.shape
        order = fixed_orders(support, episodes.real_support, tasks)
        return self.scores(in_order(episodes, order))

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of the last step, in nats (sec. 5.1).

        The support set is shuffled, and has 1 to all of the drawn examples of each class, equally
        likely: the paper trains one network for 1 to 5 shots. Tasks of unlike sizes, which vary
        enough, keep them all.
        """
        fewer = shot = episodes.support_y.shape[1] // episodes.way
        if episodes.ways is None:
            fewer = int(torch.randint(1, shot + 1, ()))
        scores = self.scores(in_order(episodes, shuffled(episodes, fewer)))
        return query_loss(scores, episodes), measured(scores, episodes.query_y)

    def scores(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way], the support set being read as it stands."""
        refuse_other_way(episodes, self.way)
        z = torch.cat(embed_task(self.backbone, episodes), dim=1)
        z = self.standardise(z, real_examples(episodes))
        support_z, query_z = z.tensor_split([episodes.support_x.shape[1]], dim=1)
        with torch.autocast(query_z.device.type, enabled=False):
            labels = memberships(episodes.support_y, self.way).to(support_z.dtype)
            unknown = query_z.new_zeros(*query_z.shape[:2], self.way)
            support = torch.cat([support_z, labels], dim=-1)  # [T, S, D + way]
            query = torch.cat([query_z, unknown], dim=-1)  # [T, Q, D + way]
            x = torch.cat([support, query], dim=1)
            step = steps_of(episodes)
            for block in self.blocks:
                x = block(x, step)
            return episodes.known(self.head(x[:, support.shape[1] :]))


class AttentionBlock(nn.Module):
    """Causal attention beside its input: [T, S + Q, C] -> [T, S + Q, C + value_size] (sec. 3.1)."""

    def __init__(self, channels: int, key_size: int, value_size: int):
        super().__init__()
        self.query = nn.Linear(channels, key_size)
        self.key = nn.Linear(channels, key_size)
        self.value = nn.Linear(channels, value_size)
        self.out_channels = channels + value_size

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        # A row sees the steps before its own, and itself; no query sees another.
        itself = torch.eye(step.shape[1], dtype=torch.bool, device=x.device)
        hidden = ~((step[:, :, None] > step[:, None]) | itself)
        query, key, value = self.query(x), self.key(x), self.value(x)
        logits = query @ key.mT / math.sqrt(key.shape[-1])
        return torch.cat([x, logits.masked_fill(hidden, -math.inf).softmax(dim=-1) @ value], dim=-1)


class TCBlock(nn.Module):
    """Dense blocks whose dilations double until they reach back over `length` steps (sec. 3.1)."""

    def __init__(self, channels: int, length: int, filters: int):
        super().__init__()
        count = math.ceil(math.log2(length))
        self.dense_blocks = nn.ModuleList(
            DenseBlock(channels + i * filters, dilation=2**i, filters=filters) for i in range(count)
        )
        self.out_channels = channels + count * filters

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        for block in self.dense_blocks:
            x = block(x, step)
        return x


class DenseBlock(nn.Module):
    """A gated causal convolution beside its input: [T, S + Q, C] -> [T, S + Q, C + filters]."""

    def __init__(self, channels: int, dilation: int, filters: int):
        super().__init__()
        self.dilation = dilation
        # Kernel 2 is a linear map of two steps side by side; both convolutions of the gate in one.
        self.convolution = nn.Linear(2 * channels, 2 * filters)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        # Row t of the padded sequence is step t - dilation; before the first step are zeros.
        earlier = F.pad(x, (0, 0, self.dilation, 0)).take_along_dim(step[..., None], dim=1)
        signal, gate = self.convolution(torch.cat([x, earlier], dim=-1)).chunk(2, dim=-1)
        return torch.cat([x, signal.tanh() * gate.sigmoid()], dim=-1)


def steps_of(episodes: Episodes) -> Tensor:
    """Each row's place in its sequence [T, S + Q]: 0, 1, ..., and then the same for every query.

    Padding comes at the queries' place or later, where nobody sees it.
    """
    tasks, support = episodes.support_y.shape
    place = torch.arange(support, device=episodes.support_y.device).expand(tasks, -1)
    last = place.new_full((tasks, 1), support)
    if episodes.real_support is not None:
        last = episodes.real_support.sum(dim=1, keepdim=True)
    return torch.cat([place, last.expand(-1, episodes.query_y.shape[1])], dim=1)


def shuffled(episodes: Episodes, shot: int) -> Tensor:
    """A random order of `shot` support examples of each class: their places [T, way · shot].

    In tasks of unlike sizes that of all of them, [T, S], padding last.
    """
    y = episodes.support_y
    if episodes.real_support is not None:
        return (torch.rand(y.shape, device=y.device) + ~episodes.real_support).argsort(dim=1)
    members = F.one_hot(y, episodes.way)
    nth = (members.cumsum(dim=1) * members).sum(dim=-1)  # the how-manieth of its class, from 1
    # The examples that stay out sort last.
    keys = torch.rand(y.shape, device=y.device) + (nth > shot)
    return keys.argsort(dim=1)[:, : episodes.way * shot]


def in_order(episodes: Episodes, order: Tensor) -> Episodes:
    """The episodes with their support set in this order [T, S], which may leave some out."""
    order = order.to(episodes.support_y.device, non_blocking=True)
    tasks = torch.arange(len(order), device=order.device)[:, None]
    return episodes._replace(
        support_x=episodes.support_x[tasks, order], support_y=episodes.support_y[tasks, order]
    )
