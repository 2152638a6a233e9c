"""What looks odd about examples once they are read: told, or refused if no result can be right."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from metarun.data.split import Split
from metarun.data.told import doubt, told_so_far
from metarun.errors import UserError

DWARFS = 1000  # times as far from the middle as nine of ten values, or as the other columns are
ENOUGH = 20  # examples from which it makes sense to speak of nine of ten
NAMED = 3  # columns or pairs of classes in one message
FAINT = 8  # grey levels of 255
LOOKED_AT = 10**8  # numbers at most


def refuse_one_colour(splits: Mapping[str, Split]) -> None:
    """Raise UserError when all pictures of all splits are one plain colour."""
    pictures = [s.x for s in splits.values() if s.kind == "images" and len(s.x)]
    count = sum(map(len, pictures))
    if count < 2 or not all(map(one_colour, pictures)):
        return
    colours = {tuple(x[0, :, 0, 0].tolist()) for x in pictures}
    if len(colours) == 1:
        raise UserError(
            f"all {count} pictures are one colour, {list(colours.pop())} of 255: look at the "
            "files, and how they were made"
        )


def look(splits: Mapping[str, Split]) -> None:
    """Tell of a split whose examples are all alike, of pictures without contrast, and of numbers
    that dwarf the others; UserError when one is not finite."""
    for name, split in splits.items():
        if len(split.x) > 1 and all_alike(split.x):
            doubt(f"all {len(split.x)} examples of the {name} split are alike")
        elif split.kind == "images" and name == "train" and 0 < contrast(split.x) < FAINT:
            doubt(
                f"the training pictures go from {int(split.x.min())} to {int(split.x.max())} of "
                "255: they have hardly any contrast"
            )
    numbers = [s.x for s in splits.values() if s.kind == "vectors" and len(s.x)]
    if numbers:
        look_at_numbers(torch.cat(numbers).float())


def look_at_names(classes: Iterable[str]) -> None:
    """Tell of classes whose names are but two spellings of one."""
    first: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(classes):
        # Letters are classes of their own, small and capital.
        if len(name.rpartition("/")[2]) > 1:
            other = first.setdefault("".join(name.casefold().split()), name)
            pairs += [(other, name)] if other != name else []
    if not pairs:
        return
    signs = {
        "capitals": any("".join(a.split()) != "".join(b.split()) for a, b in pairs),
        "blanks": any(a.casefold() != b.casefold() for a, b in pairs),
    }
    named = ", ".join(f"{a!r} and {b!r}" for a, b in pairs[:NAMED])
    more = f" and {len(pairs) - NAMED} more pairs" if len(pairs) > NAMED else ""
    as_what = "two classes" if len(pairs) == 1 else "two classes each"
    differing = " or ".join(sign for sign, there in signs.items() if there)
    doubt(f"{named}{more} differ in {differing} alone: they are read as {as_what}")


def one_colour(x: Tensor) -> bool:
    """Whether images [N, C, H, W] are all one plain colour."""
    return all_alike(x) and bool((x[0] == x[0, :, :1, :1]).all())


def all_alike(x: Tensor) -> bool:
    """Whether all the examples [N, ...] are the same."""
    # A look at three of them is nearly always enough.
    return all(bool((x[i] == x[0]).all()) for i in (-1, len(x) // 2)) and bool((x == x[:1]).all())


def contrast(x: Tensor) -> int:
    """How far the values of images [N, C, H, W] are apart, or the first if that is much."""
    apart = 0
    for some in (x[:10], x):
        if len(some) and apart < FAINT:
            apart = int(some.max()) - int(some.min())
    return apart


def look_at_numbers(x: Tensor) -> None:
    """The same for numbers [N, *input]: of vectors each column by itself, which may have a name."""
    if not x.isfinite().all():
        row = int((~x.flatten(1).isfinite()).any(dim=1).nonzero()[0])
        raise UserError(f"example {row} has a number that is not finite: leave it out")
    names = told_so_far().get("features") or [f"number {i}" for i in range(x.shape[1])]
    if x.ndim > 2:
        x, names = x.reshape(-1, 1), ["a value"]
    x = x[:: 1 + x.numel() // LOOKED_AT]
    if len(x) < ENOUGH:
        return
    away = (x - x.median(dim=0).values).abs()
    usual = away.kthvalue(9 * len(x) // 10, dim=0).values
    most, place = away.max(dim=0)
    odd = ((usual > 0) & (most > DWARFS * usual)).nonzero()[:, 0].tolist()
    for i in odd[:NAMED]:
        doubt(
            f"{names[i]} is {x[place[i], i]:g} in one example, but within {usual[i]:.3g} of the "
            "middle in nine of ten"
        )
    spread = usual[usual > 0]
    others = spread.median() if len(spread) else torch.tensor(torch.inf)
    for i in (usual > DWARFS * others).nonzero()[:NAMED, 0].tolist():
        doubt(
            f"{names[i]} dwarfs the other numbers: it spreads over {usual[i]:.3g}, they over "
            f"{others:.3g}, and a distance sees it alone: standardise them, or backbone=mlp does"
        )
