"""What a config may name, group by group: a `_target_` is called, so what may stand there depends
on what it is for, and not on where it lives.

Works on names alone, so that an error is told before torch is loaded; parts.py looks at what they
stand for.
"""

import re
from functools import cache
from typing import Any, NamedTuple

from metarun.configs.rules import conf_folder, targets
from metarun.errors import UserError


class Room(NamedTuple):
    """What may stand in a group, and in the groups inside it: classes of these packages, and what
    the committed choices of `loaders` name, functions too."""

    classes: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    loaders: str | None = None

    def words(self, nested: bool) -> str:
        """What may stand here, to be read."""
        packages = [f"classes of {name}" for name in (self.nested if nested else self.classes)]
        if self.loaders and not nested:
            packages.append(f"what conf/{self.loaders}/ names")
        return " or ".join(packages) or "nothing"


NETWORKS = ("torch.nn", "metarun.algos", "metarun.backbones", "torchvision.ops")
CHANGES = ("metarun.augment", "torchvision.transforms")
ROOMS = {
    "data": Room(loaders="data"),
    "augment": Room(CHANGES, CHANGES),
    "sampler": Room(("metarun.samplers",)),
    "eval.sampler": Room(("metarun.samplers",)),
    "backbone": Room(("metarun.backbones",), NETWORKS, loaders="backbone"),
    "algo": Room(("metarun.algos",), NETWORKS),
    "optim": Room(("torch.optim",)),
    "schedule": Room(("torch.optim.lr_scheduler",)),
}
PARTIAL = ("optim", "schedule")  # what still needs an argument when it is made


def room_of(place: str) -> tuple[Room, bool]:
    """The room of a dotted key that ends in `_target_`, and whether it is one inside the room; a
    source of a mixture is a data set itself."""
    group = place.removesuffix("_target_").removesuffix(".")
    if re.fullmatch(r"data\.sources\.[^.]+", group):
        return ROOMS["data"], False
    for name, room in ROOMS.items():
        if f"{group}.".startswith(f"{name}."):
            return room, group != name
    return Room(), False


def may_stand(place: str, name: str, allow: list[str]) -> bool:
    """Whether the class or function of this name may be called at the dotted key `place`."""
    room, nested = room_of(place)
    return (
        is_below(name, allow)
        or is_below(name, room.nested if nested else room.classes)
        or (not nested and name in committed_names(room.loaders))
    )


def is_below(name: str, packages: Any) -> bool:
    """Whether the dotted name is of something in one of the packages."""
    return name.startswith(tuple(f"{package}." for package in packages))


@cache
def committed_names(group: str | None) -> frozenset[str]:
    """What the committed choices of the group name at their top."""
    if group is None:
        return frozenset()
    texts = [path.read_text(encoding="utf-8") for path in (conf_folder() / group).glob("*.yaml")]
    return frozenset(
        name for text in texts for name in re.findall(r"^ *_target_: *(\S+)", text, re.M)
    )


def refuse_foreign_names(config: dict[str, Any], allow: list[str]) -> None:
    """Raise UserError for a `_target_` that may not stand where it does, for a key by which Hydra
    would call it otherwise, and for text that is still to be resolved."""
    for key, target in targets(config):
        if not may_stand(key, target, allow):
            raise UserError(refusal(key, target))
    refuse_tricks(config, allow)


def refusal(key: str, target: str) -> str:
    """Why this may not be called here, and what would help."""
    package = target.split(".")[0]
    if package in ("metarun", "torch", "torchvision", "hydra"):
        room, nested = room_of(key)
        return f"{key}={target}: not allowed to run: what can stand here: {room.words(nested)}"
    trust = f"plugins.allow=[{package}]"
    return f"{key}={target}: not allowed to run; if you trust it, add {trust}"


def refuse_tricks(config: Any, allow: list[str], place: str = "") -> None:
    """Raise UserError for keys that are instructions to Hydra, but for a class that is `allow`ed or
    `_partial_` where a group needs it; and for `${` in a text, which Hydra would resolve."""
    if isinstance(config, str) and "${" in config:
        raise UserError(f"{place}={config}: a value cannot hold ${{ once it is read")
    if isinstance(config, list):
        for i, value in enumerate(config):
            refuse_tricks(value, allow, f"{place}.{i}")
    if not isinstance(config, dict):
        return
    own = is_below(str(config.get("_target_", "")), allow)
    for key, value in config.items():
        inside = f"{place}.{key}" if place else str(key)
        instruction = re.fullmatch(r"_\w+_", str(key)) and key != "_target_"
        if instruction and not own and not (key == "_partial_" and place in PARTIAL):
            raise UserError(f"{inside}: it cannot be set in metarun")
        refuse_tricks(value, allow, inside)
