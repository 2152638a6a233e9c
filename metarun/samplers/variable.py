"""Tasks of any number of classes, and of any and unequal numbers of examples: Meta-Dataset's.

Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples",
2020, arXiv:1903.03096, sec. 3.2 and appendix A; where the text is silent, their code
(google-research/meta-dataset, `sampling.py`). Shapes: T tasks, C classes of the split.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.episodes import PADDING, Episodes, Examples, Rows, gather
from metarun.errors import NOTHING, Unsuited, UserError
from metarun.samplers.hierarchy import inner_nodes
from metarun.samplers.uniform import (
    in_random_order,
    largest,
    of_drawn_group,
    shuffled,
    without_small_classes,
)
from metarun.samplers.within_superclass import of_drawn_superclass

CLASSES = ("any", "superclass", "hierarchy")
LARGEST_NODE = 392  # classes below a node of a hierarchy that a task may come from


@dataclass(frozen=True)
class Variable:
    """Draws `tasks` tasks at a time, of `least_way` to `way` classes each.

    `shot` and `query` are numbers of examples per class, or 0 to have them drawn: queries are then
    as many for every class of a task, at most `most_query` and half of its smallest class (or what
    `shot` leaves of it); the support set has up to `most_support` examples, `most_of_class` of a
    class at most counting towards it, shared out among the classes by their sizes times a factor
    drawn between `least_weight` and `most_weight`. `classes` says where a task's come from: "any"
    of the split's, one "superclass", or below one node of the "hierarchy" that the class names
    `a/b/c` spell.
    """

    way: int
    least_way: int
    shot: int
    query: int
    most_query: int
    most_support: int
    most_of_class: int
    least_weight: float
    most_weight: float
    classes: str
    tasks: int
    chunk: int = 0  # tasks that the training step computes at once; 0: as suits

    @property
    def within_superclass(self) -> bool:
        """Whether all the classes of a task are of one superclass."""
        return self.classes == "superclass"

    def check(self, split: Examples) -> None:
        """Raise UserError when the keys do not fit together, or the split is too small."""
        if self.classes not in CLASSES:
            raise UserError(f"sampler.classes={self.classes}: choose one of {', '.join(CLASSES)}")
        if not 2 <= self.least_way <= self.way:
            raise UserError(
                f"sampler.least_way={self.least_way}: it must be from 2 to way={self.way}"
            )
        if not 0 < self.least_weight <= self.most_weight:
            raise UserError(
                f"sampler.least_weight={self.least_weight}: it must be above 0, and at most "
                f"sampler.most_weight={self.most_weight}"
            )
        most = self.most_classes(split)
        if most < self.least_way:
            where = {"any": "split", "superclass": "largest superclass", "hierarchy": "split"}
            raise UserError(
                f"least_way={self.least_way}, but the {where[self.classes]} has only {most} "
                "classes to choose among: lower sampler.least_way"
            )
        size = split.first_row.diff()
        smallest = int(size.argmin())
        needed = max(self.shot, 1) + max(self.query, 1)
        if size[smallest] < needed:
            raise Unsuited(
                f"class {split.classes[smallest]!r} has {size[smallest]} examples, but a task "
                f"needs {needed}",
                {NOTHING: "leave it out, or lower sampler.shot and sampler.query"}
                | without_small_classes(size, needed),
            )

    def most_classes(self, split: Examples) -> int:
        """How many classes a task of the split can have at most."""
        if self.classes == "superclass":
            if not len(split.superclass):
                raise UserError("the data has no superclasses: use sampler.classes=any")
            return largest(split.superclass)
        if self.classes == "hierarchy":
            nodes, _ = self.nodes(split)
            return int(nodes.sum(dim=1).max()) if len(nodes) else 0
        return len(split.classes) if split.source is None else largest(split.source)

    def __call__(self, split: Examples, generator: torch.Generator) -> Episodes:
        """The next meta-batch, on the split's device."""
        return gather(split, self.draw(split, generator).of_tasks(slice(None)))

    def draw(self, split: Examples, generator: torch.Generator) -> Rows:
        """Where the examples of the next meta-batch are."""
        chosen, ways = self.draw_classes(split, generator)
        size = split.first_row.diff()[chosen]  # [T, way]
        present = torch.arange(self.way) < ways[:, None]  # [T, way]
        query = self.queries(size, present)
        shots = self.shots(size, present, query, generator)
        each = query[:, None].expand_as(size)
        return labelled_rows(split.first_row[chosen], size, shots, each, present, generator)

    def draw_classes(self, split: Examples, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The classes [T, way] of the tasks, and how many of them each has [T]."""
        among = self.among(split, generator)
        order = in_random_order(self.tasks, len(split.classes), among, generator)
        available = torch.full((self.tasks,), len(split.classes))
        if among is not None:
            available = among.sum(dim=1)
        most = available.clamp(max=self.way)
        if self.classes == "hierarchy":  # all the classes below the node, or `way` of them
            ways = most
        else:
            drawn = torch.rand(self.tasks, generator=generator)
            ways = self.least_way + (drawn * (most - self.least_way + 1)).long()
        chosen = order[:, : self.way]
        room = self.way - chosen.shape[1]
        return torch.nn.functional.pad(chosen, (0, room)), ways

    def among(self, split: Examples, generator: torch.Generator) -> Tensor | None:
        """Whether a task's classes are drawn among these [T, C]; None: among all."""
        least, source = self.least_way, split.source
        if self.classes == "superclass":
            return of_drawn_superclass(split.superclass, source, least, self.tasks, generator)
        if self.classes == "any":
            return None if source is None else of_drawn_group(source, least, self.tasks, generator)
        nodes, of_source = self.nodes(split)
        keys = torch.rand(self.tasks, len(nodes), generator=generator)
        if source is not None:  # those of one that has any
            with_nodes = of_source.unique()
            place = torch.randint(len(with_nodes), (self.tasks, 1), generator=generator)
            keys[of_source != with_nodes[place]] = -1
        return nodes[keys.argmax(dim=1)]

    def nodes(self, split: Examples) -> tuple[Tensor, Tensor]:
        """The nodes that a task may come from [nodes, C], and the source of each [nodes].

        A node above classes of several sources is none of theirs.
        """
        nodes = inner_nodes(split.classes, self.least_way, LARGEST_NODE)
        source = split.source
        if source is None:
            return nodes, torch.zeros(len(nodes), dtype=torch.int64)
        first = source.where(nodes, len(split.classes)).amin(dim=1)
        last = source.where(nodes, -1).amax(dim=1)
        return nodes[first == last], last[first == last]

    def queries(self, size: Tensor, present: Tensor) -> Tensor:
        """Query examples of each class of a task [T], from its classes' sizes [T, way]."""
        if self.query:
            return torch.full((len(size),), self.query)
        smallest = size.where(present, size.max()).min(dim=1).values
        left = smallest - self.shot if self.shot else smallest // 2
        return left.clamp(max=self.most_query)

    def shots(
        self, size: Tensor, present: Tensor, query: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Support examples of each class [T, way], 0 of absent ones."""
        if self.shot:
            return torch.where(present, self.shot, 0)
        left = size - query[:, None]  # [T, way]
        share = torch.rand(self.tasks, 1, generator=generator)
        of_class = (share * left.clamp(max=self.most_of_class) + 1).floor()
        support = of_class.where(present, 0).sum(dim=1).clamp(max=self.most_support)  # [T]
        low, high = torch.tensor([self.least_weight, self.most_weight]).log()
        log_weights = low + (high - low) * torch.rand(size.shape, generator=generator)
        weights = (size * log_weights.exp()).where(present, 0)
        share = weights / weights.sum(dim=1, keepdim=True)
        beyond_one = (support - present.sum(dim=1)).clamp(min=0)[:, None]
        shots = ((share * beyond_one).floor().long() + 1).minimum(left)
        return shots.where(present, 0)


def labelled_rows(
    first_row: Tensor,
    size: Tensor,
    shots: Tensor,
    query: Tensor,
    present: Tensor,
    generator: torch.Generator,
) -> Rows:
    """Support and query rows of classes that start at `first_row` and have `size` examples.

    All are [T, way], as are the numbers of examples `shots` and `query` of the classes `present`.
    """
    way = size.shape[1]
    needed = int((shots + query).max())
    rows = shuffled(first_row, size, int(size.max()), generator)[..., :needed]  # [T, way, needed]
    place, end = torch.arange(needed), (shots + query)[..., None]
    in_support = (place < shots[..., None]) & present[..., None]
    in_query = (place >= shots[..., None]) & (place < end) & present[..., None]
    labels = torch.arange(way)[:, None].expand_as(rows)
    support, support_y = packed(rows, labels, in_support)
    query_rows, query_y = packed(rows, labels, in_query)
    return Rows(support, support_y, query_rows, query_y, way, present.sum(dim=1))


def packed(rows: Tensor, labels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen rows of each task and their labels, [T, way, N] each, side by side: [T, longest].

    Shorter tasks are filled up at the end.
    """
    chosen = chosen.flatten(1)
    longest = int(chosen.sum(dim=1).max())
    first = (~chosen).byte().argsort(dim=1, stable=True)[:, :longest]
    real = chosen.gather(1, first)
    return (
        rows.flatten(1).gather(1, first).where(real, 0),
        labels.flatten(1).gather(1, first).where(real, PADDING),
    )
