"""Memory-augmented neural network: a recurrent network binds examples to labels in a memory.

Santoro, Bartunov, Botvinick, Wierstra and Lillicrap, "One-shot Learning with Memory-Augmented
Neural Networks", 2016, arXiv:1605.06065. Equation, section and table numbers are that paper's.
Shapes: T sequences of L examples, D features of an example, U units of the controller, R reads of
a memory of N rows of W numbers, K numbers of a label.

At each step the network sees an example and the label of the one before, predicts the example's
label, and may store the pair that it now has. State is blank at the start of each sequence.

Where the paper leaves a choice:
* Its text gives what was read at one step to the controller at the next (sec. 3.1), the equations
  of its supplement do not. `feedback=False` follows the equations, so that the controller takes the
  whole sequence at once; with feedback a training step took three times as long and taught less.
* Eq. 6 marks every row when usage is equal, as it is at the start. Exactly R rows are marked here;
  among equals it does not matter which.
* All R heads write to all marked rows, as eqs. 6 and 7 say, and only the very least used row is
  erased first, as the text says. A row for each head, all of them erased, learned more slowly.
* The softmax of eq. 3 is over plain cosines, at most e² from row to row, which barely tells 128
  rows apart; `strength` multiplies them, as in Graves et al. 2014. The paper's 1 learns much later.
* An example's features are standardised by their running statistics and shortened to a length that
  suits the label's, 1: features as long as an image has pixels leave the label unheard, and nothing
  is learnt. How a data set happens to be scaled does not matter then.
* Keys are the tanh of a linear map of the controller's output, gates (eq. 7) the sigmoid of one, a
  gate for each head. The blank memory is not quite 0, for the sake of its cosines' gradients.
"""

from collections.abc import Iterable
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.standardise import Standardise
from metarun.episodes import Episodes
from metarun.errors import UserError
from metarun.functional.embedding import embed, embed_task, out_dim
from metarun.functional.orders import fixed_orders
from metarun.samplers.sequences import Sequences

LABELS = ("onehot", "string")
LETTERS, LENGTH = 5, 5  # a string label is LENGTH letters out of LETTERS (sec. 4.2)
PRESENTATIONS = (1, 2, 5, 10)  # those that the log shows
BLANK = 1e-6  # each number of a blank memory
LENGTH_OF_FEATURES = 4.0  # of an example, about, where its label's is 1


class Memory(NamedTuple):
    """What a memory holds after a step, and what its next write goes by."""

    rows: Tensor  # M_t [T, N, W]
    read: Tensor  # r_t [T, R · W]
    read_weights: Tensor  # w^r_t [T, R, N]
    usage: Tensor  # w^u_t [T, N]


class State(NamedTuple):
    """All that the network carries from one step to the next."""

    h: Tensor  # [T, U]
    cell: Tensor  # [T, U]
    memory: Memory


class MANN(nn.Module):
    """An LSTM with an external memory of least recently used access (sec. 3), on `backbone`.

    Labels are one-hot vectors of `way` numbers, which then is the most classes that a task can
    have, or strings of five letters, drawn anew for each sequence: five one-hot vectors in a row.
    Batch norm with the task's own statistics sees the whole sequence, later examples too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        way: int,
        labels: str,
        units: int,
        rows: int,
        width: int,
        reads: int,
        decay: float,
        strength: float,
        feedback: bool,
    ):
        super().__init__()
        if labels not in LABELS:
            raise UserError(f"algo.labels={labels}: choose one of {', '.join(LABELS)}")
        for key, value in {"units": units, "width": width, "reads": reads}.items():
            if value < 1:
                raise UserError(f"algo.{key}={value}: it must be at least 1")
        if rows < reads:
            raise UserError(f"algo.rows={rows}: each of the {reads} reads needs a row to write to")
        if not 0 <= decay <= 1:
            raise UserError(f"algo.decay={decay}: it must be from 0 to 1")
        if strength <= 0:
            raise UserError(f"algo.strength={strength}: it must be above 0")
        self.backbone, self.strings, self.feedback = backbone, labels == "string", feedback
        self.groups = (LENGTH, LETTERS) if self.strings else (1, way)
        self.classes = LETTERS**LENGTH if self.strings else way  # that have a label of their own
        self.shape = (rows, width)
        self.reads, self.decay, self.strength = reads, decay, strength
        outputs, features = self.groups[0] * self.groups[1], out_dim(backbone)
        self.standardise = Standardise(features, scale=LENGTH_OF_FEATURES / sqrt(features))
        inputs = features + outputs + (reads * width if feedback else 0)
        self.controller = nn.LSTM(inputs, units, batch_first=True)
        self.heads = nn.Linear(units, reads * (width + 1))
        self.classifier = nn.Linear(units + reads * width, outputs)

    def predict(self, episodes: Episodes) -> Tensor:
        """Scores [T, Q, way]: log p of each class's label, after the support set as a sequence.

        The support set comes in one fixed random order, since the network was not trained on
        classes in turn. Each query then comes alone, as the next example after it.
        """
        self.refuse_more_classes(episodes.way)
        support_z, query_z = map(self.standardise, embed_task(self.backbone, episodes))
        tasks, queries = query_z.shape[:2]
        codes = self.fixed_codes(episodes.way).to(query_z, non_blocking=True)
        real = episodes.real_support
        order = fixed_orders(support_z.shape[1], real, tasks)
        order = order.to(query_z.device, non_blocking=True)
        support_z = support_z.take_along_dim(order[..., None], dim=1)
        labels = codes[episodes.support_y.clamp(min=0).take_along_dim(order, dim=1)]  # [T, S, K]
        if real is not None:
            real = real.take_along_dim(order, dim=1)
        _, state = self.present(support_z, late(labels), self.blank(support_z), real)
        last = labels[:, -1:] if real is None else last_of(labels, real)
        last = last.repeat_interleave(queries, dim=0)  # [T · Q, 1, K]
        log_p, _ = self.present(query_z.flatten(0, 1)[:, None], last, copies(state, queries))
        return episodes.known((log_p * codes).sum(dim=2).unflatten(0, (tasks, queries)))

    def loss(self, sequences: Sequences) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of all steps, in nats; a string's is the sum of its letters'."""
        x, y, way = sequences
        self.refuse_more_classes(way)
        z = self.standardise(embed(self.backbone, x, support=x.shape[1]))
        codes = self.codes(len(x), way).to(z, non_blocking=True)  # [T, way, K]
        labels = codes.gather(1, y[..., None].expand(-1, -1, codes.shape[2]))
        log_p, _ = self.present(z, late(labels), self.blank(z))
        loss = -(log_p * labels).sum(dim=-1).mean()
        by_presentation = in_turn(self.right(log_p, labels), y, way).mean(dim=0)
        return loss, {"accuracy": by_presentation.mean()} | {
            f"accuracy_presentation_{k}": by_presentation[k - 1]
            for k in PRESENTATIONS
            if k <= len(by_presentation)
        }

    def predict_and_measure(self, episodes: Episodes) -> tuple[Tensor, dict[str, Tensor]]:
        """The prediction, and the accuracy at each presentation of a class."""
        return self.predict(episodes), self.by_presentation(episodes)

    def by_presentation(self, episodes: Episodes) -> dict[str, Tensor]:
        """Accuracy at the 1st, 2nd, … 10th presentation of a class, each [T] (tables 1 and 2).

        Each task's examples, at most ten of a class, make one sequence, in an order as good as
        random, which the examples alone decide. Nothing for tasks of unlike sizes, whose classes
        are not presented equally often.
        """
        if episodes.ways is not None:
            return {}
        self.refuse_more_classes(episodes.way)
        x = torch.cat([episodes.support_x, episodes.query_x], dim=1)
        y = torch.cat([episodes.support_y, episodes.query_y], dim=1)
        of_class = y.argsort(dim=1, stable=True).unflatten(1, (episodes.way, -1))
        chosen = of_class[..., : max(PRESENTATIONS)].flatten(1)  # [T, L]
        order = chosen.gather(1, scattered(x).gather(1, chosen).argsort(dim=1))
        x, y = x[torch.arange(len(x), device=x.device)[:, None], order], y.gather(1, order)
        z = self.standardise(embed(self.backbone, x, support=x.shape[1]))
        labels = self.fixed_codes(episodes.way).to(z, non_blocking=True)[y]
        log_p, _ = self.present(z, late(labels), self.blank(z))
        by_presentation = in_turn(self.right(log_p, labels), y, episodes.way)
        return {
            f"accuracy_presentation_{k}": values
            for k, values in enumerate(by_presentation.unbind(dim=1), start=1)
        }

    def present(
        self, z: Tensor, labels: Tensor, state: State, real: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Log p [T, L, K] of each letter at each step, and the state after the last.

        z [T, L, D] are the examples' features, standardised; `labels` [T, L, K] those of the
        examples before. Steps that `real` [T, L] does not mark leave the state as it was.
        """
        with torch.autocast(z.device.type, enabled=False):
            inputs = torch.cat([z, labels.to(state.h.dtype)], dim=2)
            outputs = []
            stepwise = self.feedback or real is not None
            for t, part in enumerate(inputs.split(1 if stepwise else inputs.shape[1], dim=1)):
                output, after = self.steps(part, state)
                state = after if real is None else where(real[:, t], after, state)
                outputs.append(output)
            logits = self.classifier(torch.cat(outputs, dim=1)).unflatten(2, self.groups)
            return logits.log_softmax(dim=-1).flatten(2), state

    def steps(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """o_t = (h_t, r_t) of each step, [T, L, U + R · W], and the state after the last."""
        memory = state.memory
        if self.feedback:  # then L = 1
            inputs = torch.cat([inputs, memory.read[:, None]], dim=2)
        h, (last_h, last_cell) = self.controller(inputs, (state.h[None], state.cell[None]))
        keys, gates = self.heads(h).unflatten(2, (self.reads, -1)).tensor_split([-1], dim=3)
        reads = []
        for key, gate in zip(keys.tanh().unbind(1), gates.sigmoid().unbind(1), strict=True):
            memory = access(memory, key, gate, decay=self.decay, strength=self.strength)
            reads.append(memory.read)
        return torch.cat([h, torch.stack(reads, dim=1)], dim=2), State(
            last_h[0], last_cell[0], memory
        )

    def blank(self, z: Tensor) -> State:
        """The state before the first of the sequences whose features are z [T, L, D]."""
        zeros = z.new_zeros(len(z), 1)
        rows, width = self.shape
        hidden = zeros.expand(-1, self.controller.hidden_size)
        memory = Memory(
            rows=zeros.new_full((len(z), rows, width), BLANK),
            read=zeros.expand(-1, self.reads * width),
            read_weights=zeros[..., None].expand(-1, self.reads, rows),
            usage=zeros.expand(-1, rows),
        )
        return State(hidden, hidden, memory)

    def codes(self, tasks: int, way: int, generator: torch.Generator | None = None) -> Tensor:
        """Labels of the classes 0 .. way - 1, [tasks, way, K] of 0 and 1.

        Strings are drawn at random, different ones within a task.
        """
        if not self.strings:
            return torch.eye(self.classes)[:way].expand(tasks, -1, -1)
        keys = torch.rand(tasks, self.classes, generator=generator)
        numbers = keys.topk(way, dim=1).indices[..., None]
        letters = numbers // LETTERS ** torch.arange(LENGTH) % LETTERS  # [tasks, way, LENGTH]
        return F.one_hot(letters, LETTERS).flatten(2)

    def fixed_codes(self, way: int) -> Tensor:
        """Labels [way, K] that are the same at every call, for tests."""
        return self.codes(1, way, torch.Generator().manual_seed(0))[0]

    def right(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Whether each step's label is the likeliest one, all letters of it: [T, L] of 0 and 1."""
        guess, truth = (t.unflatten(2, self.groups).argmax(dim=3) for t in (log_p, labels))
        return (guess == truth).all(dim=2).float()

    def refuse_more_classes(self, way: int) -> None:
        """Raise UserError when a task has more classes than there are labels."""
        if way > self.classes:
            advice = (
                "" if self.strings else f", set way to {way} in training, or algo.labels=string"
            )
            raise UserError(
                f"a task has way={way}, but the labels are for {self.classes} classes: "
                f"lower eval.way{advice}"
            )


def access(memory: Memory, keys: Tensor, gates: Tensor, *, decay: float, strength: float) -> Memory:
    """The memory after one step of each head: keys k_t [T, R, W] are written, then looked up.

    `gates` [T, R, 1] are the σ(α) of eq. 7: 1 writes where the last read was, 0 to the rows least
    used.
    """
    reads = keys.shape[1]
    with torch.no_grad():  # a row is among the least used or not: there is no slope
        least = memory.usage.topk(reads, dim=1, largest=False).indices  # [T, R], least first
        least_used = torch.zeros_like(memory.usage).scatter(1, least, 1)  # w^lu_{t-1}, eq. 6
        kept = torch.ones_like(memory.usage).scatter(1, least[:, :1], 0)
    write_weights = torch.lerp(least_used[:, None], memory.read_weights, gates)  # eq. 7
    rows = torch.baddbmm(memory.rows * kept[..., None], write_weights.mT, keys)  # eq. 8

    lengths = torch.linalg.vector_norm(keys, dim=2)[..., None] * torch.linalg.vector_norm(
        rows, dim=2
    ).unsqueeze(1)
    cosines = keys @ rows.mT / lengths.clamp(min=torch.finfo(rows.dtype).tiny)  # eq. 2
    read_weights = (strength * cosines).softmax(dim=2)  # eq. 3
    read = (read_weights @ rows).flatten(1)  # eq. 4
    with torch.no_grad():
        usage = decay * memory.usage + (read_weights + write_weights).sum(dim=1)  # eq. 5
    return Memory(rows, read, read_weights, usage)


def late(labels: Tensor) -> Tensor:
    """Labels [T, L, K] one step later, none at the first."""
    return F.pad(labels, (0, 0, 1, -1))


def scattered(x: Tensor) -> Tensor:
    """A number in (-1, 1) for each example of x [T, N, ...], like a random one: [T, N]."""
    flat = x.flatten(2).double()
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(flat.shape[2], generator=generator, dtype=torch.float64)
    return (1e4 * (flat @ weights.to(x.device, non_blocking=True))).frac()


def in_turn(right: Tensor, y: Tensor, way: int) -> Tensor:
    """Mean over classes of `right` [T, L] at each class's first example, its second, and so on.

    [T, L / way]; each of the labels y [T, L] occurs equally often.
    """
    order = y.argsort(dim=1, stable=True)  # class by class, each in the order of time
    return right.gather(1, order).unflatten(1, (way, -1)).mean(dim=1)


def last_of(labels: Tensor, real: Tensor) -> Tensor:
    """Each sequence's last real label: [T, L, K], [T, L] -> [T, 1, K]."""
    return labels.take_along_dim(real.sum(dim=1)[:, None, None] - 1, dim=1)


def copies(state: State, count: int) -> State:
    """The states of `count` copies of each sequence, one after the other: [T · count, ...]."""
    return state_of(t.repeat_interleave(count, dim=0) for t in tensors(state))


def where(chosen: Tensor, a: State, b: State) -> State:
    """The states in a of the sequences chosen [T], those in b of the others."""
    pairs = zip(tensors(a), tensors(b), strict=True)
    return state_of(x.where(chosen.view(-1, *[1] * (x.ndim - 1)), y) for x, y in pairs)


def tensors(state: State) -> tuple[Tensor, ...]:
    """All that a state is made of, side by side."""
    return (state.h, state.cell, *state.memory)


def state_of(parts: Iterable[Tensor]) -> State:
    """The state made of these `tensors`."""
    h, cell, *memory = parts
    return State(h, cell, Memory(*memory))
