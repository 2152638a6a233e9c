"""From a config to what a run is made of: the only place where one is instantiated.

A `_target_` names a class or function, and the keys beside it are its arguments. What may be named
depends on the group (configs/rooms.py), and is looked at once more here, when it has been imported:
a name may stand for something from elsewhere, and a function is no class.
"""

import inspect
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import partial
from secrets import token_hex
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun import device, suitability
from metarun.augment.sequence import Augment
from metarun.backbones.size import network_size
from metarun.configs.rooms import committed_names, is_below, may_stand, refuse_tricks, room_of
from metarun.configs.rules import targets
from metarun.data.kinds import FILLED_UP
from metarun.device import Device
from metarun.errors import IMAGES, NOTHING, Unsuited, UserError
from metarun.functional.metrics import Metric, named, suiting
from metarun.interfaces import Data, Sampler
from metarun.seeds import stream, stream_seed
from metarun.testing.fixed_episodes import FixedEpisodes
from metarun.testing.protocol import Figures, Protocol
from metarun.training.loop import Plan, Progress, Training
from metarun.training.split import training_split

Config = dict[str, Any]

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it also logs what it raises

# What the class is that a group names.
KINDS = {"algo": nn.Module, "backbone": nn.Module, "optim": Optimizer, "schedule": LRScheduler}

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # one kernel for a whole step


class Parts(NamedTuple):
    """What a run is made of."""

    config: Config
    device: Device
    data: Data
    sampler: Sampler
    plan: Plan  # of the training
    protocol: Protocol  # of the test and the validations
    training: Training
    augment: Augment | None  # of the training split's images
    network: dict[str, Any]  # what the backbone is, in numbers

    def training_split(self) -> Any:
        """What is trained on, on the device."""
        return training_split(self.data, self.plan, self.augment, self.device.torch_device)

    def episodes_of(self, split: str, count: int) -> dict[str, FixedEpisodes]:
        """The first `count` fixed episodes of the split, of each source."""
        return self.protocol.episodes_of(self.data, split, count, self.device.torch_device)

    def score(self, episodes: dict[str, FixedEpisodes], measures: bool = False) -> Figures:
        """Each episode's figures by the algorithm as it is now."""
        return self.protocol.score(self.training.algorithm, episodes, self.device, measures)


def build(config: Config) -> Parts:
    """The parts the config names, checked against each other; the weights drawn from its seed."""
    chosen = device.choose(**config["device"])
    keys = ("data", "augment", "sampler", "eval.sampler", "backbone", "algo", "optim", "schedule")
    for key in keys:
        refuse_foreign_targets(config, key)  # before the data is prepared, which may take long
    data, sampler = instance(config, "data"), instance(config, "sampler")
    plan, protocol = Plan(**config["train"]), protocol_of(config, data)
    training_too = config["mode"] == "train"
    suitability.check_data(
        *(data, get_object(config["algo"]["_target_"]), sampler, protocol, plan, training_too),
        there=partial(is_taken, config),
    )
    augment = instance(config, "augment") if config["augment"] and training_too else None
    suitability.refuse_unsuited_augmentation(augment, data)
    training, network = build_training(config, data, chosen)
    suitability.check_training(training.algorithm, sampler, protocol, training_too)
    protocol.rehearse(data, training.algorithm, chosen, "val" if training_too else "test")
    return Parts(config, chosen, data, sampler, plan, protocol, training, augment, network)


def protocol_of(config: Config, data: Data) -> Protocol:
    """How the config tests, and by what: the data's own metric unless another is asked for."""
    asked, metric = dict(config["eval"]), getattr(data, "metric", None)
    if not isinstance(metric, Metric):
        raise UserError(
            f"the metric of {type(data).__name__} is {metric!r}: give it one of "
            "metarun.functional.metrics, such as ACCURACY"
        )
    del asked["sampler"]
    if name := asked.pop("metric"):
        metric = named(name, suiting(metric, asked["way"]))
    return Protocol(instance(config, "eval.sampler"), metric=metric, **asked)


def build_training(config: Config, data: Data, device: Device) -> tuple[Training, dict[str, Any]]:
    """A training at its beginning, the weights drawn from the config's seed; and what the backbone
    is, in numbers."""
    torch.manual_seed(stream_seed(config["seed"], "init"))
    examples = data.outlines["test"]
    backbone = new_backbone(config, data)
    whole = getattr(examples, "kind", None) in FILLED_UP
    network = network_size(backbone, examples.input_shape, whole)
    with only_what_suits(examples):
        algorithm = instance(config, "algo", backbone=backbone).to(device.torch_device)
    torch.manual_seed(stream_seed(config["seed"], "noise"))  # of dropout and the like
    optimizer, schedule = build_optimizer(config, algorithm.parameters())
    generator = stream(config["seed"], "train")
    begun = Training(algorithm, optimizer, schedule, generator, Progress(), run=token_hex(8))
    return begun, network


def new_backbone(config: Config, data: Data) -> nn.Module:
    """The backbone for the data's examples; it is told their sizes too (see Split), if it asks.

    Raises UserError if it does not read examples of their kind.
    """
    examples, target = data.outlines["test"], get_object(config["backbone"]["_target_"])
    suitability.refuse_unreadable(data, target, config)
    arguments = {"input_shape": examples.input_shape}
    with suppress(TypeError, ValueError):  # `instance` says of what has no signature
        if "sizes" in inspect.signature(target).parameters:
            arguments["sizes"] = examples.sizes
    with only_what_suits(examples):
        backbone: nn.Module = instance(config, "backbone", **arguments)
    return backbone


@contextmanager
def only_what_suits(examples: Any) -> Iterator[None]:
    """Within this block, a way out that is for images is told of such examples alone."""
    images = len(getattr(examples, "input_shape", ())) == 3
    try:
        yield
    except Unsuited as error:
        raise error.among(lambda need: images or need not in (IMAGES, "data.size")) from None


def build_optimizer(
    config: Config, parameters: Iterable[torch.Tensor]
) -> tuple[Optimizer, LRScheduler]:
    """The optimiser of those parameters that are learnt, and the schedule of its learning rate."""
    learnt = [p for p in parameters if p.requires_grad]
    nothing = not any(p.numel() for p in learnt)
    if nothing and config["mode"] == "train" and config["train"]["steps"]:
        raise UserError(
            "the algorithm and the backbone have nothing to learn: train.steps=0 only tests them"
        )
    learnt = learnt or [nn.Parameter(torch.empty(0))]  # an optimiser wants something
    new_optimizer, new_schedule = instance(config, "optim"), instance(config, "schedule")
    on_gpu = learnt and learnt[0].is_cuda
    can_fuse = get_object(config["optim"]["_target_"]) in FUSED
    fused = on_gpu and can_fuse and not config["device"]["deterministic"]
    try:
        optimizer = new_optimizer(learnt, **({"fused": True} if fused else {}))
    except (TypeError, ValueError, IndexError) as error:
        raise unsuited(config, "optim", error) from error
    try:
        return optimizer, new_schedule(optimizer)
    except (TypeError, ValueError) as error:
        raise unsuited(config, "schedule", error) from error


def refuse_foreign_targets(config: Config, key: str) -> None:
    """Raise UserError unless each `_target_` at `key` can be imported and is one that may run."""
    node, allow = at(config, key) or {}, config["plugins"]["allow"]
    refuse_tricks(node, allow, key)
    for place, target in targets(node, f"{key}."):
        if not may_stand(place, target, allow):
            raise UserError(f"{place}={target}: this is not allowed to run")
        try:
            found = get_object(target)
        except (ImportError, AttributeError, ValueError) as error:
            reason = f"it cannot be imported: {' '.join(str(error).split())}"
            if target.startswith("metarun."):
                reason = "it cannot be imported: this metarun has nothing of that name"
            raise UserError(f"{place}={target}: {reason}") from None
        # Where it really comes from: metarun.cli.main.os.system is not ours.
        home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if not (is_below(home, allow) or suits(place, target, home, found)):
            raise UserError(f"{place}={target}: this is {home}, which is not allowed to run")


def suits(place: str, target: str, home: str, found: Any) -> bool:
    """Whether what a `_target_` stands for may be called there: a class of the kind that the group
    is for, or what a committed choice names."""
    room, nested = room_of(place)
    if not nested and target in committed_names(room.loaders):
        return True
    if not isinstance(found, type) or not may_stand(place, home, []):
        return False
    group = place.removesuffix("._target_")
    if nested:
        return issubclass(found, nn.Module) or group.startswith("augment.")
    if group in ("sampler", "eval.sampler"):
        return is_dataclass(found)
    return issubclass(found, KINDS.get(group, object))


def instance(config: Config, key: str, **arguments: Any) -> Any:
    """The object that the `_target_` at `key` names, called with the keys beside it."""
    refuse_foreign_targets(config, key)
    node = at(config, key)
    refuse_odd_names(node, key)
    for place, _ in targets(node, f"{key}."):
        inside = place.removesuffix("._target_")
        refuse_unsuited(config, inside, arguments if inside == key else {})
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, Unsuited):  # what has no key here is no way out
            cause = cause.among(lambda need: need in (IMAGES, NOTHING) or is_taken(config, need))
        raise cause from None


def refuse_odd_names(node: Any, key: str) -> None:
    """Raise UserError for a name that no dotted key can have, in a group with a `_target_` in it,
    however deep."""
    if isinstance(node, list):
        for i, inside in enumerate(node):
            refuse_odd_names(inside, f"{key}.{i}")
    elif any(targets(node)):
        for name, inside in node.items():
            if not isinstance(name, str):
                raise UserError(f"{key}: {name} is no name of a key: put it in quotes")
            if "." in name:
                raise UserError(f"{key}: {name} is no name of a key: write it without a dot")
            refuse_odd_names(inside, f"{key}.{name}")


def refuse_unsuited(config: Config, key: str, arguments: dict[str, Any]) -> None:
    """Raise UserError if what the `_target_` at `key` names does not take the keys beside it, and
    the `arguments`."""
    node = at(config, key)
    given = [name for name in node if not name.startswith("_")]
    try:
        known = inspect.signature(get_object(node["_target_"]))
        more = node.get("_partial_") or "_args_" in node  # arguments that are not named here
        bind = known.bind_partial if more else known.bind
        bind(**dict.fromkeys([*given, *arguments]))
    except TypeError as error:
        raise unsuited(config, key, error) from None


def is_taken(config: Config, key: str) -> bool:
    """Whether there is such a dotted key, and the class that it is for takes it by its name."""
    group, _, name = key.rpartition(".")
    try:
        return name in inspect.signature(get_object(at(config, group)["_target_"])).parameters
    except (KeyError, TypeError, ValueError):
        return False


def at(config: Config, key: str) -> Any:
    """What stands at a dotted key; of a list, at a number."""
    found: Any = config
    for name in key.split("."):
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


def unsuited(config: Config, key: str, error: Exception) -> UserError:
    """What to say when the class that `key` names does not take the values beside it."""
    reason = " ".join(str(error).split())
    if found := re.fullmatch(r"got an unexpected keyword argument '(\w+)'", reason):
        return UserError(
            f"{at(config, key)['_target_']} has no {found[1]}, but {key}.{found[1]} is set, by "
            f"algo= or data= if not by you: choose another {key}= or algo="
        )
    return UserError(f"{key}: its values do not suit {at(config, key)['_target_']}: {reason}")
