"""What does not go together, told before long work starts: each function raises UserError."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, get_type_hints

import torch

from metarun import ranks
from metarun.augment.sequence import Augment
from metarun.configs.composing import content_of
from metarun.configs.differences import committed_choices, unlike
from metarun.configs.rules import conf_folder, shown
from metarun.data.kinds import KINDS
from metarun.data.mixture import Mixture
from metarun.episodes import Episodes
from metarun.errors import Unsuited, UserError
from metarun.functional.metrics import VALUES
from metarun.interfaces import Algorithm, Data, Sampler
from metarun.samplers.functions import Functions
from metarun.testing.answers import scores_are_log_p
from metarun.testing.fixed_episodes import own_tasks
from metarun.testing.protocol import Protocol
from metarun.training.loop import Plan
from metarun.training.split import classes_to_train_on
from metarun.training.step import refuse_chunks, refuse_ranks


def check_data(
    data: Data,
    algorithm: Any,
    sampler: Sampler,
    protocol: Protocol,
    plan: Plan,
    training: bool,
    there: Callable[[str], bool],
) -> None:
    """Refuse data that the class `algorithm`, the samplers or the plan cannot use; keys that are
    not `there` are no way out."""
    refuse_another_kind(data, algorithm, sampler, protocol)
    if training:
        refuse_another_batch(algorithm, sampler)
    refuse_unsuited_plan(data, plan)
    try:
        refuse_impossible_tasks(data, sampler, protocol, plan, training)
    except Unsuited as error:
        by_chance = getattr(data, "told", {}).get("split", "").startswith("at random")
        fractions = by_chance and enough_classes(data, sampler, protocol)
        ways = {"data.fractions": fractions and there("data.fractions")}
        raise error.among(lambda need: ways.get(need, not need or there(need))) from None


def check_training(
    algorithm: Algorithm, sampler: Sampler, protocol: Protocol, training: bool
) -> None:
    """Refuse chunks and ranks that the algorithm cannot be shared out to, and a metric that its
    scores do not tell."""
    metric = protocol.metric
    if metric.needs_log_p and not scores_are_log_p(algorithm):
        raise UserError(
            f"eval.metric={metric.name}: {type(algorithm).__name__}'s scores are no logarithms of "
            "probabilities: choose another metric"
        )
    chunk = getattr(sampler, "chunk", 0)
    if training and 0 < chunk < sampler.tasks:
        refuse_chunks(algorithm, chunk)
    if ranks.size() == 1:
        return
    if training:
        refuse_ranks(algorithm, sampler, ranks.size())
    for key in ("episodes", "val_episodes") if training else ("episodes",):
        if getattr(protocol, key) < ranks.size():
            raise UserError(
                f"eval.{key}={getattr(protocol, key)}: give each of the {ranks.size()} ranks at "
                "least one"
            )


def refuse_another_kind(data: Data, algorithm: Any, sampler: Sampler, protocol: Protocol) -> None:
    """Refuse an algorithm or a sampler that is not for functions, if the data has functions."""
    if data.metric.of != VALUES:
        return
    if not getattr(algorithm, "regression", False):
        raise UserError(
            f"{algorithm.__name__} tells classes apart, but this data is a regression: "
            "use algo=maml, anil, reptile, cnp or another that predicts values "
            "(see metarun/algos/README.md)"
        )
    for key, drawn_by in {"sampler": sampler, "eval": protocol.sampler}.items():
        if not isinstance(drawn_by, Functions):
            raise UserError(f"data={data.name} has functions and no classes: use {key}=functions")


def refuse_another_batch(algorithm: Any, sampler: Sampler) -> None:
    """Refuse a sampler that draws another kind of batch than the algorithm trains on."""
    hints = get_type_hints(algorithm.loss)
    wanted = next((kind for name, kind in hints.items() if name != "return"), None)
    drawn = get_type_hints(type(sampler).__call__).get("return")
    if wanted and drawn and wanted is not drawn:
        home = "uniform" if wanted is Episodes else wanted.__module__.rpartition(".")[2]
        raise UserError(
            f"the algorithm trains on {wanted.__name__.lower()}, but the sampler draws "
            f"{drawn.__name__.lower()}: use sampler={home}"
        )


def refuse_unsuited_plan(data: Data, plan: Plan) -> None:
    """Refuse training on the validation classes too where that cannot be, or makes no sense."""
    if plan.split == "train":
        return
    if not hasattr(data.outlines["train"], "joined"):
        raise UserError(f"data={data.name} has no validation classes: use train.split=train")
    if plan.patience:
        raise UserError(
            f"train.patience={plan.patience} waits for a better validation, on classes "
            "that train.split=trainval trains on: set train.patience=0"
        )


def refuse_impossible_tasks(
    data: Data, sampler: Sampler, protocol: Protocol, plan: Plan, training: bool
) -> None:
    """Refuse a split that is too small for the tasks that will be drawn from it."""
    if training and data.metric.of != VALUES and not data.outlines["train"].classes:
        raise UserError(
            f"data={data.name} has no classes to train on, all are for testing: train on other "
            "data, then mode=test checkpoint=RUN_FOLDER/checkpoints/best.pt"
        )
    splits: Sequence[str] = ("train", "val", "test") if training else ("test",)
    for split in splits:
        outline: Any = data.outlines[split]
        try:
            if split == "train":
                sampler.check(classes_to_train_on(plan, data.outlines.__getitem__))
                continue
            several: Any = outline.each() if isinstance(outline, Mixture) else {"": outline}
            for source in several.values():
                protocol.sampler.check(source)
        except Unsuited as error:
            put = str if split == "train" else in_test
            ways = {need: put(way) for need, way in error.ways.items()}
            raise Unsuited(f"{split} split: {put(error.what)}", ways) from None
        except UserError as error:
            told = str(error) if split == "train" else in_test(str(error))
            raise UserError(f"{split} split: {told}") from None
    refuse_other_than_own(data, protocol)


def enough_classes(data: Data, sampler: Sampler, protocol: Protocol) -> bool:
    """Whether the splits together have as many classes as a task of each needs."""
    count = sum(len(getattr(outline, "classes", ())) for outline in data.outlines.values())
    return count >= getattr(sampler, "way", protocol.way) + 2 * protocol.way


def in_test(advice: str) -> str:
    """What a sampler advises, with the names that its keys have where it draws test tasks."""
    advice = re.sub(r"\bsampler\.(way|shot|query|tasks)\b", r"eval.\1", advice)
    return re.sub(r"\bsampler(?=\.)", "eval.sampler", advice).replace("sampler=", "eval=")


def refuse_other_than_own(data: Data, protocol: Protocol) -> None:
    """Refuse another test than the one that the data brings with it, if any."""
    own = own_tasks(data, "test")
    if own is None:
        return
    tasks, way = len(own.names), own.rows.way
    shot, query = (rows.shape[1] // way for rows in (own.rows.support, own.rows.query))
    for key, count in {"way": way, "shot": shot, "query": query, "episodes": tasks}.items():
        if getattr(protocol, key) != count:
            raise UserError(
                f"eval.{key}={getattr(protocol, key)}: data={data.name} has test tasks of its own, "
                f"{tasks} of {way}-way {shot}-shot, query={query}: set eval.{key}={count}"
            )


def refuse_unsuited_augmentation(augment: Augment | None, data: Data) -> None:
    """Refuse to augment what is no image, or what `augment` does not give back alike."""
    examples = data.outlines["train"]
    if augment is None:
        return
    if getattr(examples, "kind", None) != "images":
        raise UserError(f"augment changes images, and data={data.name} has none: use augment=none")
    image = torch.rand(1, *examples.input_shape)
    changed = augment(image)
    if changed.shape != image.shape or changed.dtype != image.dtype:
        raise UserError(
            f"augment turns an image {list(image.shape[1:])} of {image.dtype} into "
            f"{list(changed.shape[1:])} of {changed.dtype}: it must keep both"
        )


def refuse_unreadable(data: Data, backbone: Any, config: dict[str, Any]) -> None:
    """Refuse the class or function `backbone`, which the config names, if it does not read such
    examples as the data has.

    READS of the file that it stands in says which kinds it reads; a person's own need not say so.
    Vectors in the shape of images, such as maps of features, are read as images are.
    """
    examples, reads = data.outlines["test"], kinds_read(backbone)
    kind = getattr(examples, "kind", None)
    if reads is None or kind is None or kind in reads:
        return
    if kind == "vectors" and "images" in reads and len(examples.input_shape) == 3:
        return
    chosen = config["backbone"]
    named = committed_choices(config, "backbone", chosen, all_keys=False)
    near = min(named, key=lambda name: len(unlike(named[name]["backbone"], chosen)), default=None)
    able = [name for name, reads in backbones() if kind in reads]
    raise UserError(
        f"backbone={near or backbone.__name__} reads {' and '.join(KINDS[k] for k in reads)}, "
        f"data={data.name} has {KINDS[kind]}: "
        + (f"use backbone={', '.join(able)}" if able else "no backbone here reads those")
    )


def kinds_read(backbone: Any) -> tuple[str, ...] | None:
    """The kinds of example that a class or function of a file with READS reads; None: not known."""
    return getattr(sys.modules.get(backbone.__module__), "READS", None)


def backbones() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The committed choices of a backbone, and the kinds of example that each reads."""
    for path in sorted((conf_folder() / "backbone").glob("*.yaml")):
        module, _, _ = content_of(path)["_target_"].rpartition(".")
        yield path.stem, import_module(module).READS


def doubt_other_pictures(data: Any, trained: dict[str, Any], now: dict[str, Any]) -> None:
    """Have the data tell that its pictures are read otherwise than those of the config that the
    model was `trained` by, if they are."""
    then, keys = trained.get("data", {}), now["data"]
    doubts = [
        f"the model was trained on pictures of data.{key}={shown(then[key])}, and this is "
        f"data.{key}={shown(keys[key])}"
        for key in ("size", "grey")
        if key in then and key in keys and then[key] != keys[key]
    ]
    if doubts and hasattr(data, "told"):
        data.told["doubts"] = [*data.told.get("doubts", []), *doubts]


def refuse_other_data(data: Data) -> None:
    """Refuse, on all ranks, data that is not the same for each."""
    for rank, checksum in enumerate(ranks.gathered(data.checksum)):
        if checksum != data.checksum:
            raise UserError(f"data={data.name} is not the same for rank {rank} as for others")
