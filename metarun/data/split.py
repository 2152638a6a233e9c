"""One split of a data set: every example as one tensor, stored class by class."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from metarun.data.kinds import FILLED_UP, KINDS, cut, filled_up, lengths

CPU = torch.device("cpu")
RESIDENT_SHARE = 0.5  # of the free device memory; the network needs the rest


@dataclass(frozen=True)
class Split:
    """All examples of one split. Class c's examples are rows first_row[c] to first_row[c + 1].

    x           [N, *input], of a type that is small: `take` makes of it what a network reads
    first_row   int64 [classes + 1], always on the CPU, where tasks are drawn
    classes     name of each class
    superclass  int64 [classes], the index in `superclasses` of each class's alphabet or domain;
                empty when the data has none
    mean, std   of the training split's images scaled to [0, 1], one number a channel
    kind        images, vectors, tokens or graphs: what an example is (data/kinds.py)
    sizes       how many values a number may have: of tokens (vocabulary,), of graphs one for each
                feature of an atom and one for the bonds; others have none
    lengths     int64 [N], always on the CPU: how many tokens or atoms an example goes to
    index       int64 [rows], always on the CPU: the place in x of each row's example, where several
                classes share them, as assays do molecules; None: row r has x[r]
    source      None: all classes are of one data set (Mixture has several)
    augment     changes images [n, C, H, W], scaled to [0, 1], at random; None: as they are
    """

    x: Tensor
    first_row: Tensor
    classes: tuple[str, ...]
    superclass: Tensor
    superclasses: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str
    sizes: tuple[int, ...] = ()
    lengths: Tensor | None = None
    index: Tensor | None = None
    device: torch.device = CPU
    source: Tensor | None = None
    augment: Callable[[Tensor], Tensor] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example as the backbone gets it, or of one that goes to the end."""
        return tuple(self.x.shape[1:])

    @cached_property
    def index_on_device(self) -> Tensor:
        """The index, if there is one, where examples are taken to."""
        assert self.index is not None
        return self.index.to(self.device)

    def augmented(self, augment: Callable[[Tensor], Tensor]) -> "Split":
        """This split with its images changed by `augment` whenever they are taken."""
        return replace(self, augment=augment)

    def joined(self, other: "Split") -> "Split":
        """The classes of both, the examples copied into one tensor and normalised as this one's."""
        longest = max(self.input_shape, other.input_shape)
        parts = [self.x, other.x]
        if self.kind in FILLED_UP:
            parts = [filled_up(x, longest) for x in parts]
        x = torch.cat(parts)
        first_row = torch.cat([self.first_row, self.first_row[-1] + other.first_row[1:]])
        classes, both = self.classes + other.classes, (self, other)
        named = [split.superclasses[i] for split in both for i in split.superclass.tolist()]
        # If but one of them has superclasses, they are of no use.
        all_named = len(named) == len(classes)
        superclass_of = dict(zip(classes, named, strict=True)) if all_named else None
        index = None
        if self.index is not None or other.index is not None:
            own, others = (split.stored(torch.arange(int(split.first_row[-1]))) for split in both)
            index = torch.cat([own, others + len(self.x)])
        return as_split(
            *(self.kind, x, first_row, classes, superclass_of, self.mean, self.std),
            sizes=self.sizes,
            index=index,
        )

    def to(self, device: torch.device) -> "Split":
        """This split for use on `device`: moved there if it fits, else read from where it is."""
        x = self.x
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if x.nbytes < RESIDENT_SHARE * free:
                x = x.to(device)
                device = x.device
        return replace(self, x=x, device=device)

    def stored(self, rows: Tensor) -> Tensor:
        """The place in x of each row's example, for rows (any shape, int64) on the CPU."""
        return rows if self.index is None else self.index[rows]

    def take(self, rows: Tensor) -> Tensor:
        """Examples at `rows` (any shape, int64) on the device: rows.shape + input.

        Images come scaled to [0, 1], augmented and normalised, vectors as floats, tokens and graphs
        as int64. The latter go to the end of the longest of them where that can be known without
        waiting for the device: when the rows are on the CPU. Otherwise, and so in a recorded step,
        whose shapes do not change, they have all their padding.
        """
        flat, x = rows.flatten(), self.x
        if self.index is not None:
            flat = self.index[flat] if flat.is_cpu else self.index_on_device[flat]
        if self.lengths is not None and flat.is_cpu and len(flat):
            x = cut(self.kind, x, max(1, int(self.lengths[flat].max())))
        if x.device == self.device:
            x = x.index_select(0, flat.to(self.device, non_blocking=True))
        else:  # the split did not fit: a pinned copy overlaps with what the device is computing
            x = x.index_select(0, flat).pin_memory().to(self.device, non_blocking=True)
        if self.kind == "images":
            if self.augment is not None:
                x = 255 * self.augment(x.float() / 255)
            x = normalised(x, self.mean, self.std)
        elif self.kind != "vectors":
            x = x.long()
        elif not x.is_floating_point():
            x = x.float()
        return x.unflatten(0, rows.shape)


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std for images [N, C, H, W] of 0 to 255, in one pass, as float32."""
    scale, shift = scale_and_shift(mean, std, x.device)
    return torch.addcmul(shift, x.float(), scale)


@cache  # a copy to the GPU would wait for all that it has been asked to do
def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What bytes are multiplied with and then added to normalise them, [C, 1, 1] each."""
    scale = torch.tensor([1 / (255 * s) for s in std])
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
    scale, shift = torch.stack([scale, shift])[..., None, None].to(device, non_blocking=True)
    return scale, shift


def stack_classes(
    kind: str,
    classes: dict[str, Tensor],
    superclass_of: dict[str, str] | None = None,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    *,
    sizes: tuple[int, ...] = (),
) -> Split:
    """A Split of named classes, each a tensor [examples, *input], kept in the order given."""
    first_row = torch.tensor([0, *(len(x) for x in classes.values())]).cumsum(0)
    x = torch.cat(list(classes.values()))
    return as_split(kind, x, first_row, classes, superclass_of, mean, std, sizes=sizes)


def as_split(
    kind: str,
    x: Tensor,
    first_row: Tensor,
    classes: Iterable[str],
    superclass_of: Mapping[str, str] | None = None,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    *,
    sizes: tuple[int, ...] = (),
    index: Tensor | None = None,
) -> Split:
    """A Split of examples [N, *input] that stand class by class, or whose places do in `index`."""
    assert kind in KINDS, kind
    names = tuple(classes)
    superclasses = tuple(dict.fromkeys(superclass_of[n] for n in names)) if superclass_of else ()
    place = {name: i for i, name in enumerate(superclasses)}
    superclass = [place[superclass_of[name]] for name in names] if superclass_of else []
    return Split(
        x=x,
        first_row=first_row,
        classes=names,
        superclass=torch.tensor(superclass, dtype=torch.int64),
        superclasses=superclasses,
        mean=mean,
        std=std,
        kind=kind,
        sizes=sizes,
        lengths=lengths(kind, x),
        index=index,
    )
