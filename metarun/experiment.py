"""The one path from a config to a number: parts, training, test, results. Read this first."""

import inspect
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun import ranks
from metarun.augment.sequence import Augment
from metarun.configs.composing import plain
from metarun.configs.differences import differences
from metarun.configs.rules import UNSEEN, is_allowed, targets
from metarun.data import store
from metarun.data.mixture import Mixture
from metarun.device import Device, choose
from metarun.episodes import PADDING, Episodes, NamedTasks
from metarun.errors import Interrupted, UserError
from metarun.interfaces import Algorithm, Data, Sampler, TestSampler
from metarun.runs import checkpoint, report
from metarun.runs import folder as runfolder
from metarun.runs.provenance import provenance
from metarun.samplers.functions import Functions
from metarun.seeds import stream, stream_seed
from metarun.signals import StopSignals
from metarun.tables.shared_training import shared_training
from metarun.testing.confidence import mean_and_ci95, mean_of_means
from metarun.testing.evaluate import (
    FixedEpisodes,
    RowEpisodes,
    answers,
    digest_of,
    fixed_episodes,
    fixed_functions,
)
from metarun.tracking import jsonlines, pictures
from metarun.tracking.console import Console
from metarun.tracking.jsonlines import Record
from metarun.tracking.trackers import Trackers
from metarun.tracking.weights_and_biases import WeightsAndBiases
from metarun.training.loop import Plan, Progress, Training, fit
from metarun.training.step import refuse_chunks, refuse_ranks

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # one kernel for a whole step


class Parts(NamedTuple):
    """What a run is made of."""

    config: DictConfig
    device: Device
    data: Data
    sampler: Sampler
    test_sampler: TestSampler | Functions
    training: Training
    augment: Augment | None  # of the training split's images
    network: dict[str, Any]  # what the backbone is, in numbers


def run(
    config: DictConfig,
    folder: Path,
    names: dict[str, str],
    texts: dict[str, str],
    sweep: Path | None = None,
) -> dict:
    """Train and test as `config` says, in `folder`; returns the content of its results.json.

    `names` are what the command line calls the data, augment, algo, backbone and sweep; `texts` are
    files to keep in the folder; of the runs in `sweep` one may have done the training already. What
    the user can put right raises UserError, before long work starts wherever it can be known by
    then. Of several ranks the first alone uses the folder, and returns something.
    """
    started = time.time()
    with StopSignals() as stop, runfolder.claimed_by_first(folder):
        earlier = ranks.from_first(lambda: runfolder.earlier(folder, config.resume, config.mode))
        if earlier and is_done(earlier, config):
            Console(config.train.steps).finish({**earlier, "folder": str(folder)})
            return earlier

        content = ranks.from_first(
            lambda: saved_state(config, folder, going_on=earlier is not None)
        )
        with ranks.agreed():
            parts = build_parts(config)
            shared = None
            if sweep and not earlier:
                shared = shared_training(sweep, plain(config), parts.data.checksum)
            if shared:
                earlier, content = shared.results, shared.state
            restore(parts, content)
        refuse_other_data(parts.data)
        if ranks.rank():
            assist(parts, folder, stop)
            return {}
        results = first_results(parts, names, earlier, content)
        with kept(results, folder, earlier or {}, started) as began:
            for name, text in texts.items():
                runfolder.write_text(folder / name, text)
            if shared:
                runfolder.write_text(folder / "metrics.jsonl", shared.records)
                save(parts, folder / "checkpoints", best=True)
            trackers = start_trackers(parts, folder, names, results, resumed=earlier is not None)
            try:
                peak_memory = (earlier or {}).get("train", {}).get("peak_memory_mib")
                if config.mode == "train":
                    peak_memory = train(parts, folder, trackers.log, stop) or peak_memory
                conclude(parts, folder, trackers, results, peak_memory, began)
            finally:
                trackers.close()
        return results


def first_results(
    parts: Parts,
    names: dict[str, str],
    earlier: dict[str, Any] | None,
    content: dict[str, Any] | None,
) -> dict[str, Any]:
    """What results.json says of a run that begins, or goes on from `content`, a saved state."""
    steps_left = not content or content["progress"]["step"] < parts.config.train.steps
    return {
        "status": "running",
        "mode": parts.config.mode,
        "names": names,
        "wandb_id": earlier["wandb_id"] if earlier else token_hex(4),
        "parameters": report.parameters(parts.training.algorithm),
        "backbone": parts.network,
        "data": parts.data.facts(),
        "trained_on": content["data_checksum"] if content else parts.data.checksum,
        "trained_in": earlier.get("trained_in") if earlier and not steps_left else None,
        "provenance": provenance(parts.device.torch_device),
        "config": plain(parts.config),
    }


def conclude(
    parts: Parts,
    folder: Path,
    trackers: Trackers,
    results: dict[str, Any],
    peak_memory: float | None,
    began: float,
) -> None:
    """Test what was trained; `results` is then complete, and stored. `began`: see `kept`."""
    facts = report.training_facts(parts.training.progress, parts.data.metric, peak_memory)
    results |= runfolder.finite(facts)  # as results.json has them
    results["test"] = runfolder.finite(test(parts, folder, trackers))
    results["seconds"] = round(time.time() - began, 1)
    results["status"] = "finished"
    runfolder.write_json(folder / "results.json", results)
    trackers.finish({**results, "folder": str(folder)})


def prepare(config: DictConfig, name: str) -> str:
    """What the data is, in a few lines, once it is prepared (mode=prepare) or found sound
    (mode=verify); raises UserError when it cannot be had, or is not."""
    refuse_foreign_targets(config, "data")
    before, started = store.task.set(config.mode), time.monotonic()
    try:
        data = build(config, "data")
    finally:
        store.task.reset(before)
    return report.prepared(config.mode, name, data, time.monotonic() - started)


def is_done(earlier: dict[str, Any], config: DictConfig) -> bool:
    """Whether the earlier run has done all that is asked for now.

    Raises DataChanged when it has done so on other data.
    """
    asked, done = plain(config), earlier["config"]
    if earlier["status"] != "finished" or differences(asked, done, except_for=UNSEEN):
        return False
    refuse_foreign_targets(config, "data")
    with ranks.agreed():
        data = build(config, "data")
        checkpoint.refuse_changed_data(earlier["data"]["checksum"], data.checksum)
    return True


def saved_state(config: DictConfig, folder: Path, going_on: bool) -> dict[str, Any] | None:
    """The checkpoint that the run starts from, if any, once it is known to suit the config."""
    last = folder / "checkpoints" / "last.pt"
    if config.mode == "test":
        content = checkpoint.load(Path(str(config.checkpoint)).expanduser())
        checkpoint.refuse_another_model(content, plain(config))
        return content
    if going_on and last.exists():
        instead = "choose another name=, or remove this file to begin anew"
        content = checkpoint.load(last, instead)
        checkpoint.refuse_another_run(content, plain(config))
        return content
    return None


def restore(parts: Parts, content: dict[str, Any] | None) -> None:
    """Put the parts into the saved state, if there is one; each rank has noise of its own."""
    config, training = parts.config, parts.training
    if content and config.mode == "test":
        checkpoint.restore_weights(training.algorithm, content)
        training.progress = Progress(**content["progress"])
    elif content:
        checkpoint.restore(training, content, parts.data.checksum)
    if rank := ranks.rank():
        torch.manual_seed(stream_seed(config.seed, f"noise/{rank}/{training.progress.step}"))


def refuse_other_data(data: Data) -> None:
    """Raise UserError on all ranks unless they have the same data."""
    for rank, checksum in enumerate(ranks.gathered(data.checksum)):
        if checksum != data.checksum:
            raise UserError(f"data={data.name} is not the same for rank {rank} as for others")


def assist(parts: Parts, folder: Path, stop: StopSignals) -> None:
    """Do this rank's share of the training and of the test, which the first rank tells about."""
    if parts.config.mode == "train":
        train(parts, folder, lambda record: None, stop)
    score(parts, episodes_of(parts, "test", parts.config.eval.episodes), measures=True)


def build_parts(config: DictConfig) -> Parts:
    """The parts the config names, checked against each other; the weights drawn from its seed."""
    device = choose(**config.device)
    keys = ("data", "augment", "sampler", "eval.sampler", "backbone", "algo", "optim", "schedule")
    for key in keys:
        refuse_foreign_targets(config, key)  # before the data is prepared, which may take long
    data = build(config, "data")
    sampler = build(config, "sampler")
    test_sampler = build(config, "eval.sampler")
    refuse_another_kind(config, data, sampler, test_sampler)
    refuse_unsuited_split(config, data)
    refuse_impossible_tasks(config, data, sampler, test_sampler)
    augment = build(config, "augment") if config.augment and config.mode == "train" else None
    refuse_unsuited_augmentation(augment, data)
    training, network = build_training(config, data, device)
    chunk = getattr(sampler, "chunk", 0)
    if config.mode == "train" and 0 < chunk < sampler.tasks:
        refuse_chunks(training.algorithm, chunk)
    if ranks.size() > 1:
        refuse_too_many_ranks(config, training.algorithm, sampler)
    parts = Parts(config, device, data, sampler, test_sampler, training, augment, network)
    rehearse(parts)
    return parts


def build_training(
    config: DictConfig, data: Data, device: Device
) -> tuple[Training, dict[str, Any]]:
    """A training at its beginning, the weights drawn from the config's seed; and what the backbone
    is, in numbers."""
    torch.manual_seed(stream_seed(config.seed, "init"))
    input_shape = data.outlines["test"].input_shape
    backbone = build(config, "backbone", input_shape=input_shape)
    network = report.network(backbone, input_shape)
    algorithm = build(config, "algo", backbone=backbone).to(device.torch_device)
    torch.manual_seed(stream_seed(config.seed, "noise"))  # of dropout and the like
    optimizer, schedule = build_optimizer(config, algorithm.parameters())
    generator = stream(config.seed, "train")
    return Training(algorithm, optimizer, schedule, generator, Progress()), network


def refuse_too_many_ranks(config: DictConfig, algorithm: Algorithm, sampler: Sampler) -> None:
    """Raise UserError when there is not some work for every rank, which does not need the rest."""
    if config.mode == "train":
        refuse_ranks(algorithm, sampler, ranks.size())
    for key in ("episodes", "val_episodes") if config.mode == "train" else ("episodes",):
        if config.eval[key] < ranks.size():
            raise UserError(
                f"eval.{key}={config.eval[key]}: give each of the {ranks.size()} ranks at least one"
            )


def refuse_another_kind(
    config: DictConfig, data: Data, sampler: Sampler, test_sampler: Sampler
) -> None:
    """Raise UserError when the algorithm is not for the data, or trains on another kind of batch
    than the sampler draws."""
    algorithm = get_object(config.algo._target_)
    if data.metric == "mse" and not getattr(algorithm, "regression", False):
        raise UserError(
            f"{algorithm.__name__} tells classes apart, but this data is a regression: "
            "use algo=maml, anil, reptile, cnp or another that predicts values "
            "(see metarun/algos/README.md)"
        )
    for key, drawn_by in {"sampler": sampler, "eval": test_sampler}.items():
        if data.metric == "mse" and not isinstance(drawn_by, Functions):
            raise UserError(f"data={data.name} has functions and no classes: use {key}=functions")
    loss, draw = algorithm.loss, type(sampler).__call__
    wanted = next((kind for k, kind in get_type_hints(loss).items() if k != "return"), None)
    drawn = get_type_hints(draw).get("return")
    if config.mode == "train" and wanted and drawn and wanted is not drawn:
        home = "uniform" if wanted is Episodes else wanted.__module__.rpartition(".")[2]
        raise UserError(
            f"the algorithm trains on {wanted.__name__.lower()}, but the sampler draws "
            f"{drawn.__name__.lower()}: use sampler={home}"
        )


def refuse_unsuited_split(config: DictConfig, data: Data) -> None:
    """Raise UserError when training on the validation classes too cannot be, or makes no sense."""
    if config.train.split == "train":
        return
    if not hasattr(data.outlines["train"], "joined"):
        raise UserError(f"data={data.name} has no validation classes: use train.split=train")
    if config.train.patience:
        raise UserError(
            f"train.patience={config.train.patience} waits for a better validation, on classes "
            "that train.split=trainval trains on: set train.patience=0"
        )


def refuse_unsuited_augmentation(augment: Augment | None, data: Data) -> None:
    """Raise UserError when the data has no images to change, or other ones than `augment` takes."""
    examples = data.outlines["train"]
    if augment is None:
        return
    if not getattr(examples, "holds_images", False):
        raise UserError(f"augment changes images, and data={data.name} has none: use augment=none")
    image = torch.rand(1, *examples.input_shape)
    changed = augment(image)
    if changed.shape != image.shape or changed.dtype != image.dtype:
        raise UserError(
            f"augment turns an image {list(image.shape[1:])} of {image.dtype} into "
            f"{list(changed.shape[1:])} of {changed.dtype}: it must keep both"
        )


def rehearse(parts: Parts) -> None:
    """Answer one episode, so that what does not fit together is known before training starts."""
    if parts.config.mode == "test":
        own_figures(parts, episodes_of(parts, "test", 1))
    else:
        with parts.data.sealed("test"):
            own_figures(parts, episodes_of(parts, "val", 1))


def build_optimizer(
    config: DictConfig, parameters: Iterable[torch.Tensor]
) -> tuple[Optimizer, LRScheduler]:
    """The optimiser of those parameters that are learnt, and the schedule of its learning rate."""
    learnt = [p for p in parameters if p.requires_grad]
    nothing = not any(p.numel() for p in learnt)
    if nothing and config.mode == "train" and config.train.steps:
        raise UserError(
            "the algorithm and the backbone have nothing to learn: train.steps=0 only tests them"
        )
    learnt = learnt or [nn.Parameter(torch.empty(0))]  # an optimiser wants something
    new_optimizer, new_schedule = build(config, "optim"), build(config, "schedule")
    on_gpu = learnt and learnt[0].is_cuda
    fused = (
        on_gpu and get_object(config.optim._target_) in FUSED and not config.device.deterministic
    )
    try:
        optimizer = new_optimizer(learnt, **({"fused": True} if fused else {}))
    except (TypeError, ValueError, IndexError) as error:
        raise unsuited(config, "optim", error) from error
    try:
        return optimizer, new_schedule(optimizer)
    except (TypeError, ValueError) as error:
        raise unsuited(config, "schedule", error) from error


def refuse_foreign_targets(config: DictConfig, key: str) -> None:
    """Raise UserError unless each `_target_` at `key` can be imported and is one that may run."""
    for place, target in targets(plain(at(config, key) or OmegaConf.create())):
        try:
            found = get_object(target)
        except (ImportError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{key}.{place}={target}: it cannot be imported: {reason}") from None
        # Where it really comes from: metarun.cli.main.os.system is not ours.
        home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if not is_allowed(home, list(config.plugins.allow)):
            raise UserError(f"{key}.{place}={target}: this is {home}, which is not allowed to run")


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """The object that the `_target_` at `key` names, called with the keys beside it."""
    node = at(config, key)
    target, given = node._target_, {str(k) for k in node if not str(k).startswith("_")}
    try:
        inspect.signature(get_object(target)).bind_partial(**dict.fromkeys(given | {*arguments}))
    except TypeError as error:
        raise unsuited(config, key, error) from None
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


def at(config: DictConfig, key: str) -> DictConfig:
    """What stands at a dotted key."""
    return OmegaConf.select(config, key)


def unsuited(config: DictConfig, key: str, error: Exception) -> UserError:
    """What to say when the class that `key` names does not take the values beside it."""
    reason = " ".join(str(error).split())
    if found := re.fullmatch(r"got an unexpected keyword argument '(\w+)'", reason):
        return UserError(
            f"{at(config, key)._target_} has no {found[1]}, but {key}.{found[1]} is set, by algo= "
            f"or data= if not by you: choose another {key}="
        )
    return UserError(f"{key}: its values do not suit {at(config, key)._target_}: {reason}")


def refuse_impossible_tasks(
    config: DictConfig, data: Data, sampler: Sampler, test_sampler: Sampler
) -> None:
    """Raise UserError when a split is too small for the tasks that will be drawn from it."""
    if config.mode == "train" and data.metric != "mse" and not data.outlines["train"].classes:
        raise UserError(
            f"data={data.name} has no classes to train on, all are for testing: train on other "
            "data, then mode=test checkpoint=RUN_FOLDER/checkpoints/best.pt"
        )
    for split in ["test"] if config.mode == "test" else ["train", "val", "test"]:
        outline = data.outlines[split]
        try:
            if split == "train":
                sampler.check(classes_to_train_on(config, data.outlines.__getitem__))
                continue
            for source in outline.each().values() if isinstance(outline, Mixture) else [outline]:
                test_sampler.check(source)
        except UserError as error:
            raise UserError(f"{split} split: {error}") from None
    refuse_other_than_own(config, data)


def refuse_other_than_own(config: DictConfig, data: Data) -> None:
    """Raise UserError unless the config's test is the one that the data brings with it, if any."""
    own = own_tasks(data, "test")
    if own is None:
        return
    tasks, way = len(own.names), own.rows.way
    shot, query = (rows.shape[1] // way for rows in (own.rows.support, own.rows.query))
    for key, count in {"way": way, "shot": shot, "query": query, "episodes": tasks}.items():
        if config.eval[key] != count:
            raise UserError(
                f"eval.{key}={config.eval[key]}: data={data.name} has test tasks of its own, "
                f"{tasks} of {way}-way {shot}-shot, query={query}: set eval.{key}={count}"
            )


def own_tasks(data: Data, split: str) -> NamedTasks | None:
    """The tasks that the data brings with it for this split; None: they are to be drawn."""
    own: NamedTasks | None = data.own_tasks(split) if hasattr(data, "own_tasks") else None
    return own


def train(
    parts: Parts, folder: Path, log: Callable[[Record], None], stop: StopSignals
) -> float | None:
    """Meta-train to the end of the plan; the test split stays closed meanwhile.

    Returns the most memory that was in use, in MiB (`Device.peak_memory`); None if no step was left
    to be taken.
    """
    config, training = parts.config, parts.training
    first_step = training.progress.step
    parts.device.watch_memory()
    with parts.data.sealed("test"):
        val_episodes = episodes_of(parts, "val", config.eval.val_episodes)

        def validate() -> tuple[float, float]:
            return overall(score(parts, val_episodes), parts.data.metric)

        stop.wait = True
        for record in fit(
            training,
            Plan(**config.train),
            parts.sampler,
            training_split(parts),
            parts.device,
            metric=parts.data.metric,
            validate=validate,
            save=partial(save, parts, folder / "checkpoints"),
            stop=lambda: ranks.on_any(stop()),
        ):
            log(record)
        stop.wait = False
    peak_memory = parts.device.peak_memory() / 2**20
    take_best(parts, folder / "checkpoints")
    return peak_memory if training.progress.step > first_step else None


def save(parts: Parts, folder: Path, best: bool) -> None:
    """Keep the state of the training in `folder`/last.pt, and if it is the best one in best.pt."""
    if ranks.rank():
        return
    content = checkpoint.state(parts.training, plain(parts.config), parts.data.checksum)
    # The best first: last.pt never speaks of a best.pt that is not there yet.
    for name in ["best", "last"] if best else ["last"]:
        checkpoint.save(folder / f"{name}.pt", content)


def take_best(parts: Parts, folder: Path) -> None:
    """Give the algorithm the best weights kept in `folder`, if any: none after train.steps=0."""
    if best := ranks.from_first(lambda: weights(folder / "best.pt")):
        parts.training.algorithm.load_state_dict(best)


def weights(path: Path) -> dict[str, Any] | None:
    """The algorithm's saved state, if there is one: none after train.steps=0."""
    return checkpoint.load(path)["algorithm"] if path.exists() else None


def training_split(parts: Parts) -> Any:
    """The training split on the device, its images augmented whenever they are taken."""
    split = classes_to_train_on(parts.config, parts.data.open).to(parts.device.torch_device)
    return split.augmented(parts.augment) if parts.augment else split


def classes_to_train_on(config: DictConfig, of_split: Callable[[str], Any]) -> Any:
    """The split to train on, of what `of_split` gives for a split's name."""
    train = of_split("train")
    return train.joined(of_split("val")) if config.train.split == "trainval" else train


def test(parts: Parts, folder: Path, trackers: Trackers) -> dict[str, Any]:
    """The figures of the fixed test episodes; leaves a file of each one's, and the pictures."""
    progress, metric = parts.training.progress, parts.data.metric
    episodes = episodes_of(parts, "test", parts.config.eval.episodes)
    count = sum(map(len, episodes.values()))
    trackers.console.message(f"testing on {count} episodes")
    figures = score(parts, episodes, measures=True)
    value, ci95 = overall(figures, metric)
    names = [name for name in next(iter(figures.values())) if name != metric]
    measures = {
        name: dict(zip(("mean", "ci95"), overall(figures, name), strict=True)) for name in names
    }
    if not math.isfinite(value):
        trackers.console.message(f"the test {metric} is {value}: try a smaller algo.inner_lr")
    record = {f"test/{metric}": value, "test/ci95": ci95, "test/episodes": count}
    record |= {f"test/{name}": measure["mean"] for name, measure in measures.items()}
    sources = of_sources(episodes, figures, metric)
    record |= {f"test/{name}/{metric}": of_source[metric] for name, of_source in sources.items()}
    trackers.log({"step": progress.step, "episodes": progress.episodes, **record})
    own = own_tasks(parts.data, "test")
    named = {"task": list(own.names)} if own else {}
    runfolder.write_csv(folder / "episodes.csv", named | columns(figures))
    draw(parts, next(iter(episodes.values())), folder, trackers)
    return {
        "metric": metric,
        metric: value,
        "ci95": ci95,
        "measures": measures,
        **(errors(own, next(iter(figures.values()))[metric]) if own else {}),
        **({"sources": sources} if sources else {}),
        **plain(parts.config)["eval"],
        "batch_norm": report.batch_norm(parts.training.algorithm),
        "disjoint_episodes": sum(of_source.disjoint for of_source in episodes.values()),
        "episodes_sha256": digest_of(episodes.values()),
    }


def overall(figures: dict[str, dict[str, torch.Tensor]], name: str) -> tuple[float, float]:
    """A figure's mean and half-width: over episodes, and then over sources if there are several."""
    return mean_of_means([mean_and_ci95(of_source[name]) for of_source in figures.values()])


def errors(own: NamedTasks, accuracies: torch.Tensor) -> dict[str, Any]:
    """The error rate of each of the data's own tasks, whose accuracies are [T], and their mean."""
    each = (1 - accuracies).tolist()
    return {"error": sum(each) / len(each), "errors": dict(zip(own.names, each, strict=True))}


def of_sources(
    episodes: dict[str, FixedEpisodes], figures: dict[str, dict[str, torch.Tensor]], metric: str
) -> dict[str, dict[str, Any]]:
    """Each source's result, if there are several."""
    if len(episodes) == 1:
        return {}
    results = {}
    for name, of_source in figures.items():
        value, ci95 = mean_and_ci95(of_source[metric])
        sha256 = episodes[name].sha256
        results[name] = {metric: value, "ci95": ci95, "episodes_sha256": sha256}
    return results


def columns(figures: dict[str, dict[str, torch.Tensor]]) -> dict[str, list]:
    """Every episode's figures, as columns of one table; with their source, if there are several."""
    table: dict[str, list] = {}
    for source, of_source in figures.items():
        count = len(next(iter(of_source.values())))
        begin = {"source": [source] * count} if len(figures) > 1 else {}
        values = {name: tensor.tolist() for name, tensor in of_source.items()}
        for name, column in (begin | {"episode": list(range(count))} | values).items():
            table.setdefault(name, []).extend(column)
    return table


def episodes_of(parts: Parts, split: str, count: int) -> dict[str, FixedEpisodes]:
    """The first `count` fixed episodes of the split, its examples on the device; of each source."""
    examples = parts.data.open(split).to(parts.device.torch_device)
    if own := own_tasks(parts.data, split):
        return {parts.data.name: RowEpisodes(examples, own.rows.of_tasks(slice(count)))}
    drawn = {"name": split, "seed": parts.config.eval.seed, "episodes": count}
    sampler = parts.test_sampler
    if isinstance(sampler, Functions):
        return {parts.data.name: fixed_functions(examples, sampler, **drawn)}
    several = examples.each() if isinstance(examples, Mixture) else {parts.data.name: examples}
    return {name: fixed_episodes(split, sampler, **drawn) for name, split in several.items()}


def score(
    parts: Parts, episodes: dict[str, FixedEpisodes], measures: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """Each episode's figures [E], by source and name: accuracy or mse, and the algorithm's own
    `measures`. Every rank computes its share of them."""
    with ranks.agreed():
        own = {
            source: of_source.part(ranks.share(len(of_source)))
            for source, of_source in episodes.items()
        }
        figures = own_figures(parts, own, measures)
    all_figures = ranks.gathered(figures)
    return {
        source: {
            name: torch.cat([figures[source][name] for figures in all_figures])
            for name in of_source
        }
        for source, of_source in figures.items()
    }


def own_figures(
    parts: Parts, episodes: dict[str, FixedEpisodes], measures: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """As `score`, of all the episodes by this process alone."""
    return {
        source: answers(
            parts.training.algorithm,
            of_source,
            tasks=parts.config.eval.tasks,
            device=parts.device,
            measures=measures,
        )
        for source, of_source in episodes.items()
    }


def draw(parts: Parts, episodes: FixedEpisodes, folder: Path, trackers: Trackers) -> None:
    """The curves of training, and the first test episodes with the model's predictions."""
    curves, episode = folder / "curves.png", folder / "episode.png"
    parts.training.algorithm.eval()
    try:
        pictures.curves(jsonlines.read(folder / "metrics.jsonl"), curves, parts.data.metric)
        with torch.no_grad(), parts.device.autocast():
            if isinstance(episodes, RowEpisodes):
                draw_first(parts, episodes, episode)
            else:
                draw_functions(parts, episodes, episode)
    except Exception as error:  # the number is worth more than its picture
        trackers.console.message(f"a picture could not be drawn: {error!r}")
    trackers.pictures({path.stem: path for path in (curves, episode) if path.exists()})


def draw_first(parts: Parts, episodes: RowEpisodes, path: Path) -> None:
    """A picture of the first episode with the model's predictions."""
    split, batch = episodes.split, episodes.batch(slice(1))
    scores = parts.training.algorithm.predict(batch)[0].float().cpu()
    rows, labels = episodes.rows.support[0], episodes.rows.support_y[0]
    firsts = torch.stack([rows[labels == k][0] for k in labels[labels != PADDING].unique()])
    classes = torch.searchsorted(split.first_row, firsts, right=True) - 1
    support_x, support_y, query_x, query_y = (tensor[0].cpu() for tensor in batch[:4])
    names = [split.classes[c] for c in classes]
    pictures.episode(support_x, support_y, query_x, query_y, scores, names, path)


def draw_functions(parts: Parts, episodes: FixedEpisodes, path: Path) -> None:
    """A picture of the first functions and the model's curves, after some of its inner steps."""
    algorithm, batch = parts.training.algorithm, episodes.batch(slice(4))
    if hasattr(algorithm, "stages"):
        curves = {f"after {n} steps": y for n, y in algorithm.stages(batch).items()}
    else:
        curves = {"prediction": algorithm.predict(batch)}
    support_x, support_y, query_x, query_y = (tensor.cpu() for tensor in batch[:4])
    on_cpu = {name: y.float().cpu() for name, y in curves.items()}
    pictures.functions((support_x, support_y), (query_x, query_y), on_cpu, path)


def start_trackers(
    parts: Parts, folder: Path, names: dict[str, str], results: dict[str, Any], resumed: bool
) -> Trackers:
    """The console, with what will run told there, the run's metrics.jsonl, and W&B to come."""
    config = plain(parts.config)
    progress = parts.training.progress
    console = Console(config["train"]["steps"], progress.step)
    console.header(
        report.header(
            config, names, parts.data, parts.training.algorithm, parts.network, parts.device
        )
        | {"run folder": str(folder)}
    )
    if trained_in := results["trained_in"]:
        console.message(f"trained in {trained_in['folder']}, which differs in its test alone")
    elif resumed:
        console.message(f"going on after step {progress.step}")
    if results["trained_on"] != parts.data.checksum:
        console.message("the model was trained on other data; it is tested on what data= says")
    lines = jsonlines.JsonLines(folder / "metrics.jsonl", progress.step if resumed else None)
    history = jsonlines.read(folder / "metrics.jsonl") if resumed else []
    return Trackers(console, lines, weights_and_biases(parts, folder, names, results, history))


def weights_and_biases(
    parts: Parts,
    folder: Path,
    names: dict[str, str],
    results: dict[str, Any],
    history: list[dict],
) -> Callable[[], WeightsAndBiases]:
    """What starts the run's mirror in W&B, with the `history` that it does not have yet."""
    config = plain(parts.config)
    tracker = config["tracker"]
    return partial(
        WeightsAndBiases,
        folder,
        {**config, "data_checksum": parts.data.checksum, "names": names},
        mode=tracker["mode"],
        project=str(tracker["project"]),
        group=str(tracker["group"] or names["sweep"]) or None,
        tags=[str(tag) for tag in tracker["tags"]],
        name="/".join(folder.parts[-2:]) if names["sweep"] else folder.name,
        run_id=results["wandb_id"],
        history=history,
        artifact=tracker["artifact"],
    )


@contextmanager
def kept(
    results: dict[str, Any], folder: Path, earlier: dict[str, Any], started: float, runs: int = 1
) -> Iterator[float]:
    """Keeps the folder's results.json telling how the run stands, however it ends, and what time it
    took, that of its `earlier` part too, unless it was killed; of the CPU's its share, as one of so
    many `runs` of this process.

    If the earlier part had finished, its results are put by.
    Gives the time at which the run, whose last part was `started`, would have begun in one piece.
    """
    if earlier.get("status") == "finished":
        runfolder.put_by(folder)
    results["seconds"] = earlier.get("seconds", 0.0)
    began, cpu_began = started - results["seconds"], time.process_time()
    runfolder.write_json(folder / "results.json", results)
    try:
        yield began
    except BaseException as error:
        if results["status"] == "running":
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            results |= {"status": "interrupted" if stopped else "failed", "error": str(error)}
        raise
    finally:
        if results["status"] != "finished":
            results["seconds"] = round(time.time() - began, 1)
        share = (time.process_time() - cpu_began) / runs
        results["cpu_seconds"] = round(earlier.get("cpu_seconds", 0.0) + share, 1)
        runfolder.write_json(folder / "results.json", results)
