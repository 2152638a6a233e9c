"""Several data sets as one: each task comes from one of them, and a test has a result for each."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, combinations
from typing import Any

import torch
from torch import Tensor

from metarun.data.kinds import FILLED_UP, KINDS, cut, filled_up
from metarun.data.split import Split
from metarun.data.store import SPLITS, DataSet, sha256
from metarun.errors import NOTHING, Unsuited, UserError
from metarun.functional.metrics import ACCURACY


@dataclass(frozen=True)
class Mixture:
    """The same split of several data sets, one after the other in rows and classes.

    `input_shape` is that of every example as the backbone gets it: a grey image is repeated to have
    as many channels, and tokens and graphs are filled up. See Split for the rest.
    """

    parts: Mapping[str, Split]
    input_shape: tuple[int, ...]
    kind: str
    sizes: tuple[int, ...] = ()

    def each(self) -> "dict[str, Mixture]":
        """Each source by itself, its examples of the shape that they have here."""
        return {name: replace(self, parts={name: part}) for name, part in self.parts.items()}

    @property
    def device(self) -> torch.device:
        """Where examples are taken to."""
        return next(iter(self.parts.values())).device

    @cached_property
    def first_row(self) -> Tensor:
        """As of Split."""
        sizes = [part.first_row.diff() for part in self.parts.values()]
        return torch.cat([torch.zeros(1, dtype=torch.int64), *sizes]).cumsum(0)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, after their sources'."""
        return tuple(f"{name}/{c}" for name, part in self.parts.items() for c in part.classes)

    @cached_property
    def source(self) -> Tensor | None:
        """The number of each class's source [classes]; None when there is but one."""
        if len(self.parts) == 1:
            return None
        counts = torch.tensor([len(p.classes) for p in self.parts.values()], dtype=torch.int64)
        return torch.arange(len(counts)).repeat_interleave(counts)

    @cached_property
    def superclass(self) -> Tensor:
        """As of Split; a source without superclasses is one itself."""
        place = {name: i for i, name in enumerate(self.superclasses)}
        return torch.tensor([place[name] for name in self._superclass_of()], dtype=torch.int64)

    @cached_property
    def superclasses(self) -> tuple[str, ...]:
        """As of Split."""
        return tuple(dict.fromkeys(self._superclass_of()))

    def _superclass_of(self) -> Iterator[str]:
        for name, part in self.parts.items():
            if len(part.superclass):
                yield from (f"{name}/{part.superclasses[i]}" for i in part.superclass.tolist())
            else:
                yield from [name] * len(part.classes)

    def augmented(self, augment: Callable[[Tensor], Tensor]) -> "Mixture":
        """As of Split: the images of every source, before a grey one is repeated."""
        parts = {name: part.augmented(augment) for name, part in self.parts.items()}
        return replace(self, parts=parts)

    def joined(self, other: "Mixture") -> "Mixture":
        """As of Split, source by source."""
        parts = dict(self.parts)
        for name, part in other.parts.items():
            parts[name] = parts[name].joined(part) if name in parts else part
        return replace(self, parts=parts)

    def to(self, device: torch.device) -> "Mixture":
        """This split for use on `device`."""
        return replace(self, parts={name: part.to(device) for name, part in self.parts.items()})

    def of_parts(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each source that has some of the rows [N], by name: their places among them, and which
        rows of its own they are."""
        start = 0
        for name, part in self.parts.items():
            end = start + int(part.first_row[-1])
            places = ((flat >= start) & (flat < end)).nonzero()[:, 0]
            if len(places):
                yield name, places, flat[places] - start
            start = end

    def stored(self, rows: Tensor) -> Tensor:
        """As of Split, had it the examples of all the sources."""
        flat = rows.flatten()
        stored = torch.empty_like(flat)
        before = accumulate((len(part.x) for part in self.parts.values()), initial=0)
        first = dict(zip(self.parts, before, strict=False))
        for name, places, own in self.of_parts(flat):
            stored[places] = first[name] + self.parts[name].stored(own)
        return stored.view_as(rows)

    def take(self, rows: Tensor) -> Tensor:
        """Examples at `rows` (any shape, int64), each normalised as its source's are."""
        flat, fills_up, longest = rows.flatten(), self.kind in FILLED_UP, 1
        dtype = torch.int64 if fills_up else None
        x = torch.empty(len(flat), *self.input_shape, dtype=dtype, device=self.device)
        for name, places, own in self.of_parts(flat):
            taken = self.parts[name].take(own)
            if fills_up:
                longest = max(longest, taken.shape[1])
                taken = filled_up(taken, self.input_shape)
            x[places.to(self.device, non_blocking=True)] = taken.expand(-1, *self.input_shape)
        if fills_up:
            x = cut(self.kind, x, longest)
        return x.unflatten(0, rows.shape)


class MixtureData:
    """Several data sets, the "sources", by name; a split lacks those that have no classes there."""

    name, metric = "mixture", ACCURACY

    def __init__(self, sources: Mapping[str, DataSet]):
        self.sources = dict(sources)
        self.checksum = sha256(*(s.checksum.encode() for s in self.sources.values()))
        outlines = [source.outlines["test"] for source in self.sources.values()]
        self.input_shape = max(outline.input_shape for outline in outlines)
        self.kind, self.sizes = outlines[0].kind, outlines[0].sizes
        self.outlines = {
            split: self._joined({name: s.outlines[split] for name, s in self.sources.items()})
            for split in SPLITS
        }

    def _joined(self, parts: Mapping[str, Split]) -> Mixture:
        with_classes = {name: part for name, part in parts.items() if part.classes}
        return Mixture(with_classes, self.input_shape, self.kind, self.sizes)

    def open(self, split: str) -> Mixture:
        """The split with its examples."""
        return self._joined({name: source.open(split) for name, source in self.sources.items()})

    @contextmanager
    def sealed(self, split: str) -> Iterator[None]:
        """Within this block the split of no source can be opened."""
        with ExitStack() as stack:
            for source in self.sources.values():
                stack.enter_context(source.sealed(split))
            yield

    def facts(self) -> dict[str, Any]:
        """Which data this was, exactly."""
        facts = {name: source.facts() for name, source in self.sources.items()}
        return {"name": self.name, "checksum": self.checksum, "sources": facts}

    def summary(self) -> str:
        """One line for the console."""
        return "; ".join(f"{name}: {s.summary()}" for name, s in self.sources.items())


def load(sources: Mapping[str, DataSet], size: int) -> MixtureData:
    """The mixture of these data sets; `size`, of images, is what each of them was told.

    Raises UserError when there are none, or their examples differ in kind or in shape.
    """
    if not sources:
        raise UserError("data=mixture: say of what, as in data=[omniglot,glyphs]")
    outlines: dict[str, Split] = {}
    for name, source in sources.items():
        if not isinstance(source, DataSet):
            raise UserError(f"data.sources.{name}: it has no classes to mix with those of others")
        outlines[name] = source.outlines["test"]
    for first, name in combinations(outlines, 2):
        refuse_unlike(first, outlines[first], name, outlines[name], size)
    return MixtureData(sources)


def refuse_unlike(first: str, a: Split, name: str, b: Split, size: int) -> None:
    """Raise UserError unless one network can take the examples of both sources."""
    one = "one network cannot take both"
    if a.kind != b.kind:
        raise UserError(f"data: {first} has {KINDS[a.kind]}, {name} {KINDS[b.kind]}: {one}")
    if a.sizes != b.sizes:  # the same number would stand for another word in each
        raise UserError(
            f"data: numbers have {list(a.sizes)} values in the {KINDS[a.kind]} of {first}, but "
            f"{list(b.sizes)} in those of {name}: {one}, unless both have one vocabulary"
        )
    if a.kind not in FILLED_UP and not same_but_for_grey(b.input_shape, a.input_shape):
        keys = [f"data.sources.{source}.size" for source in (name, first)]
        sized = (
            len(a.input_shape) == len(b.input_shape) == 3 and a.input_shape[0] == b.input_shape[0]
        )
        raise Unsuited(
            f"data.size={size}: {first} has examples of shape {list(a.input_shape)}, {name} of "
            f"{list(b.input_shape)}: {one}",
            {key: f"set {key}" for key in keys if sized} | {NOTHING: "leave one out"},
        )


def same_but_for_grey(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether examples of these shapes go together: alike, but for images of which one is grey."""
    return a == b or (len(a) == len(b) == 3 and a[1:] == b[1:] and min(a[0], b[0]) == 1)
