"""mode=embed: a data set through a frozen backbone once, and its features stored as data."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.backbones.batch_norm import BatchNorm
from metarun.configs.committed import matched
from metarun.configs.composing import spelled
from metarun.data import features
from metarun.data.split import Split
from metarun.data.store import SPLITS, DataSet
from metarun.device import Device, choose
from metarun.errors import UserError
from metarun.experiment import is_done
from metarun.files import sha256_of
from metarun.parts import Config, instance, new_backbone, refuse_foreign_targets
from metarun.runs import checkpoint
from metarun.runs import folder as runfolder
from metarun.runs.job import Job
from metarun.runs.provenance import provenance
from metarun.runs.report import understood
from metarun.runs.results import kept
from metarun.seeds import stream_seed
from metarun.signals import StopSignals
from metarun.suitability import doubt_other_pictures
from metarun.testing.doubts import told
from metarun.tracking.console import Console
from metarun.tracking.progress import track

AT_ONCE = 256  # examples


def run(job: Job) -> dict[str, Any]:
    """Store the features that the job's backbone gives of its data; the content of results.json.

    They go to where `to` says, or to features/ in the run's folder, for data=features. The backbone
    has the weights that it had in the checkpoint, whatever algorithm trained it; without one, those
    it is built with. What the user can put right raises UserError before anything is computed.
    """
    started, (config, folder, names, texts) = time.time(), job
    to = Path(str(config["to"])).expanduser() if config["to"] else folder / "features"
    with StopSignals() as stop, runfolder.claimed(folder):
        use = f"use them with data=features {shlex.quote(spelled('data.root', to))}"
        earlier = runfolder.earlier(folder, config["resume"], config["mode"])
        if earlier and is_done(earlier, config):
            Console(0).message(f"done before; {use}")
            return earlier
        if not earlier:
            features.refuse_taken(to)
        content = None
        if config["checkpoint"]:
            content = checkpoint.load(Path(str(config["checkpoint"])).expanduser())
            checkpoint.refuse_another_model(content, config, groups=("backbone",))
        device = choose(**config["device"])
        for key in ("data", "backbone"):
            refuse_foreign_targets(config, key)
        data = instance(config, "data")
        if not isinstance(data, DataSet):
            raise UserError(f"mode=embed: data={data.name} is no one set of examples to store")
        torch.manual_seed(stream_seed(config["seed"], "init"))
        backbone = new_backbone(config, data)
        if content:
            restore(backbone, content, config)
            doubt_other_pictures(data, content["config"], config)
        refuse_shared_statistics(backbone)
        backbone.to(device.torch_device).eval()
        made_from = {
            "data": {"name": data.name, "checksum": data.checksum},
            "backbone": config["backbone"],
            "checkpoint": content and origin(content, str(config["checkpoint"])),
            "seed": None if content else config["seed"],
            "precision": device.precision,
        }
        # Killed when they were there, the run has but to say so.
        stored = features.stored_before(to, made_from) if earlier else None
        if stored is None:
            features.refuse_taken(to)
        results = {
            "status": "running",
            "mode": config["mode"],
            "names": names,
            "data": data.facts(),
            "provenance": provenance(device.torch_device),
            "config": config,
        }
        console = Console(0)
        console.header(
            {
                "data": f"{names['data']}, {data.summary()}",
                **understood(data.facts()),
                "backbone": names["backbone"],
                "checkpoint": str(config["checkpoint"] or "none: weights as the backbone is built"),
                "device": str(device),
                "features": str(to),
            }
        )
        with kept(results, folder, earlier or {}, started) as began:
            for name, text in texts.items():
                runfolder.write_text(folder / name, text)
            if stored is None:
                embedded = embed_all(backbone, data, device)
                stop.heed()
                carried = features.carried(data.name, data.told)
                stored = features.store(to, embedded, made_from, carried)
                own = stored.told.get("doubts", [])[len(carried.get("doubts", [])) :]
                told(own, console.message)
            results |= {
                "status": "finished",
                "features": {**stored.facts(), "shape": list(stored.outlines["test"].input_shape)},
                "folder": str(to),
                "seconds": round(time.time() - began, 1),
            }
        console.message(f"{results['seconds']} s; {use}")
        return results


def restore(backbone: nn.Module, content: dict[str, Any], config: Config) -> None:
    """Give the backbone its weights in a saved state, in which they stand among the algorithm's.

    Nothing runs that the file names: it is told which committed algorithm it is of, or refused.
    """
    theirs = content["config"].get("algo")
    algo = matched("algo", theirs, config, config["plugins"]["allow"])
    # Built as it was trained, the algorithm knows where its backbone's weights are.
    algorithm = instance({**config, "algo": algo}, "algo", backbone=backbone)
    checkpoint.restore_weights(algorithm, content)


def origin(content: dict[str, Any], path: str) -> dict[str, Any]:
    """Which checkpoint this is."""
    return {
        "path": path,
        "sha256": sha256_of(Path(path).expanduser()),
        "algo": content["config"]["algo"],
        "step": content["progress"]["step"],
        "trained_on": content["data_checksum"],
    }


def refuse_shared_statistics(backbone: nn.Module) -> None:
    """Raise UserError when an example's features depend on which others are computed beside it."""
    for layer in backbone.modules():
        mode = getattr(layer, "batch_norm_mode", "running")
        if mode != "running" or (
            hasattr(layer, "batch_norm_mode") and type(layer) is not BatchNorm
        ):
            raise UserError(
                f"mode=embed: this backbone's batch norm (mode {mode}) uses the statistics of a "
                "task or an inner step, so that an example has no features of its own: train one "
                "with backbone.batch_norm=running or none"
            )


def embed_all(backbone: nn.Module, data: DataSet, device: Device) -> dict[str, Split]:
    """Each split with its features for examples; one that has no classes stays without."""
    there = [name for name in SPLITS if data.outlines[name].classes]
    embedded = {
        name: embed(backbone, data.open(name).to(device.torch_device), device, name)
        for name in there
    }
    if not there:
        raise UserError(f"mode=embed: data={data.name} has no examples")
    some = embedded[there[-1]]
    like: dict[str, Any] = {"mean": some.mean, "std": some.std, "kind": some.kind}
    for name in set(SPLITS) - set(there):
        embedded[name] = replace(data.outlines[name], x=some.x[:0], sizes=(), lengths=None, **like)
    return {name: embedded[name] for name in SPLITS}


@torch.no_grad()
def embed(backbone: nn.Module, split: Split, device: Device, name: str) -> Split:
    """The split with its features for examples: float32, in main memory. What several rows show is
    computed and stored once."""
    examples = replace(split, index=None)
    rows = torch.arange(len(split.x)).split(AT_ONCE)
    x: Tensor = torch.empty(0)
    with device.autocast():
        for part in track(rows, f"Embedding {name}", len(rows)):
            z = backbone(examples.take(part)).float().cpu()
            if not len(x):
                x = z.new_empty(len(split.x), *z.shape[1:])
            x[part[0] : part[-1] + 1] = z
    if not x.isfinite().all():
        raise UserError(f"mode=embed: features of the {name} split are not finite")
    return replace(
        split,
        x=x,
        mean=(0.0,),
        std=(1.0,),
        kind="vectors",
        sizes=(),
        lengths=None,
        device=x.device,
    )
