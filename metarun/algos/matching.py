"""Matching networks: classify a query by attention over the support set.

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning",
2016, arXiv:1606.04080. Equation and section numbers are that paper's. Shapes: T tasks, S support
and Q query examples of a task, D features.

Where the paper is silent: f' and g' are one network, as in its experiments on images; the attention
LSTM starts at h_0 = f'(x), which is its own skip connection with nothing read yet, and c_0 = 0. The
support LSTM reads the examples in the order in which the episode has them, in training and in tests
(class by class, the classes in random order): no label is read, so renaming the classes renames the
scores, and the same episode always gets the same scores.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.embedding import at_least_float32, embed_task, out_dim
from metarun.functional.objective import class_loss, measured
from metarun.functional.prototypes import cosine_distances, memberships, squared_distances


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the angles: [T, N, D], [T, M, D] -> [T, N, M]."""
    return 1 - cosine_distances(a, b)


def nearness(a: Tensor, b: Tensor) -> Tensor:
    """Minus the squared Euclidean distances: [T, N, D], [T, M, D] -> [T, N, M]."""
    return -squared_distances(a, b)


SIMILARITIES = {"cosine": cosines, "euclidean": nearness}


class MatchingNet(nn.Module):
    """Softmax attention by similarity, in the space of `backbone`.

    `distance` is the paper's cosine distance, or the squared Euclidean distance that Snell et al.
    (2017, Table 5) compare it with.

    With `fce`, full context embeddings (sec. 2.1.2): each support example is embedded in the light
    of the others, and each query in that of the support set, in `processing_steps` steps of
    attention. The similarities are divided by `temperature`, which is 1 in the paper.
    """

    features_suffice = True

    def __init__(
        self,
        backbone: nn.Module,
        fce: bool,
        processing_steps: int,
        temperature: float,
        distance: str = "cosine",
    ):
        super().__init__()
        if distance not in SIMILARITIES:
            raise UserError(f"algo.distance={distance}: choose one of {', '.join(SIMILARITIES)}")
        if temperature <= 0:
            raise UserError(f"algo.temperature={temperature}: it must be above 0")
        self.backbone, self.temperature = backbone, temperature
        self.similarities = SIMILARITIES[distance]
        self.context = FullContext(out_dim(backbone), processing_steps) if fce else None

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way]: the logarithm of p(y = k | x, S), eq. 1."""
        support_z, query_z = embed_task(self.backbone, episodes)
        # Attention wants full precision, in whatever precision the backbone computes.
        with torch.autocast(query_z.device.type, enabled=False):
            g, f = (at_least_float32(z).flatten(2) for z in (support_z, query_z))  # maps, too
            if self.context is not None:
                shots = None if episodes.ways is None else episodes.sizes_on_cpu()[:, 0]
                g, f = self.context(g, f, episodes.real_support, shots)
            similarities = self.similarities(f, g) / self.temperature
            attention = unless_padding(similarities, episodes.real_support)
            log_attention = attention.log_softmax(dim=-1)  # [T, Q, S]
            # Eq. 1 sums each class's attention; summing exponentials of logarithms never meets 0.
            others = ~memberships(episodes.support_y, episodes.way)[:, None]  # [T, 1, S, way]
            return log_attention[..., None].masked_fill(others, -torch.inf).logsumexp(dim=2)

    def loss(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean negative log-likelihood of the query labels, in nats (eq. 2)."""
        scores = self.predict(episodes)
        return class_loss(scores, episodes), measured(scores, episodes.query_y)


class FullContext(nn.Module):
    """Support and query embeddings that depend on the whole support set (appendix A)."""

    def __init__(self, features: int, processing_steps: int):
        super().__init__()
        if processing_steps < 1:
            raise UserError(f"algo.processing_steps={processing_steps}: it must be at least 1")
        self.support_lstm = nn.LSTM(features, features, bidirectional=True, batch_first=True)
        # LSTM(f', [h, r], c) of eq. 3 is linear in all three: r may as well stand beside f'.
        self.query_lstm = nn.LSTMCell(2 * features, features)
        self.processing_steps = processing_steps

    def forward(
        self,
        support_z: Tensor,
        query_z: Tensor,
        real: Tensor | None = None,
        shots: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """g(x_i, S) and f(x, S) from g'(x_i) and f'(x): [T, S, D], [T, Q, D] -> the same shapes.

        `real` [T, S] marks the support examples that are no padding, and `shots` [T], on the CPU,
        is how many there are; None: all are real.
        """
        forth, back = self.read(support_z, shots).chunk(2, dim=-1)
        g = forth + back + support_z  # appendix A.2
        h, c = query_z, torch.zeros_like(query_z)
        for _ in range(self.processing_steps):
            r = unless_padding(h @ g.mT, real).softmax(dim=-1) @ g  # eqs. 5 and 6
            states = self.query_lstm(
                torch.cat([query_z, r], dim=-1).flatten(0, 1), (h.flatten(0, 1), c.flatten(0, 1))
            )
            h, c = (state.unflatten(0, query_z.shape[:2]) for state in states)
            h = h + query_z  # eq. 4
        return g, h

    def read(self, support_z: Tensor, shots: Tensor | None) -> Tensor:
        """What the support LSTM says of each example, forth and back: [T, S, 2 D]."""
        if shots is None:
            return self.support_lstm(support_z)[0]
        # Sorted here, since torch would have the host wait for a GPU to get the order.
        shots, order = shots.sort(descending=True)
        place = order.argsort().to(support_z.device, non_blocking=True)
        order = order.to(support_z.device, non_blocking=True)
        packed = pack_padded_sequence(support_z[order], shots, batch_first=True)
        output, _ = self.support_lstm(packed)
        longest = support_z.shape[1]
        return pad_packed_sequence(output, batch_first=True, total_length=longest)[0][place]


def unless_padding(attention: Tensor, real: Tensor | None) -> Tensor:
    """Attention [T, Q, S] before its softmax, none to examples that `real` [T, S] does not mark."""
    return attention if real is None else attention.masked_fill(~real[:, None], -torch.inf)
