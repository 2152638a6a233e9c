"""What a run says of itself: the header on the console, and the content of results.json."""

from typing import Any

from metarun import ranks
from metarun.backbones.batch_norm import modes_of
from metarun.backbones.size import count_parameters, network_line
from metarun.data.mixture import MixtureData
from metarun.data.store import DataSet
from metarun.functional.metrics import VALUES, Metric
from metarun.interfaces import Algorithm, Data
from metarun.parts import Parts
from metarun.runs.job import Job
from metarun.tracking.console import aligned
from metarun.training.loop import Progress

IN_FULL = 8  # features that the header names one by one


def header(parts: Parts, job: Job) -> dict[str, str]:
    """What will run, in a few rows."""
    config, names, data = parts.config, job.names, parts.data
    algorithm = parts.training.algorithm
    test, training = config["eval"], config["sampler"]
    rows = {
        "data": f"{names['data']}, {data.summary()}",
        **understood(data.facts()),
        "test task": f"{task_kind(test, data.metric)}, {test['episodes']} episodes",
        "algorithm": f"{names['algo']}, {count_parameters(algorithm):,} parameters",
        "backbone": f"{names['backbone']}, {network_line(parts.network)}",
        "device": str(parts.device) + (f", {ranks.size()} ranks" if ranks.size() > 1 else ""),
        "seed": str(config["seed"]),
    }
    drawn_by = {"train": parts.sampler, "test": parts.protocol.sampler}
    for split, sampler in drawn_by.items():
        if hasattr(sampler, "left_out") and (few := sampler.left_out(data.outlines[split])):
            rows[f"left out, {split}"] = few
    if config["mode"] == "train":
        task = ", ".join(
            f"{key} {value}"
            for key, value in training.items()
            if key != "_target_" and (key, value) != ("chunk", 0)
        )
        on = {"train": "", "trainval": " on training and validation classes"}
        rows["training"] = f"{config['train']['steps']} steps{on[config['train']['split']]}; {task}"
        if config.get("augment"):
            rows["augmentation"] = names["augment"]
    else:
        rows["checkpoint"] = config["checkpoint"]
    return rows


def understood(facts: dict[str, Any], source: str = "") -> dict[str, str]:
    """What was understood of the data, and what looks odd about it, in rows, if anything is told of
    that."""
    rows: dict[str, str] = {}
    for name, of_source in facts.get("sources", {}).items():
        rows |= understood(of_source, f" of {name}")
    features, left_out = facts.get("features", []), facts.get("left_out", {})
    columns = [f"{len(features)} feature{'s' * (len(features) != 1)}: {ends(features)}"]
    columns = columns if features else []
    if left_out:
        columns.append(
            "left out: " + ", ".join(f"{name!r} ({why})" for name, why in left_out.items())
        )
    rows[f"columns{source}"] = "; ".join(columns)
    rows[f"read as{source}"] = facts.get("read_as", "")
    rows[f"class folders{source}"] = facts.get("class_folders", "")
    rows[f"deep pictures{source}"] = facts.get("deep_pictures", "")
    rows[f"doubts{source}"] = "\n".join(facts.get("doubts", []))
    return {key: row for key, row in rows.items() if row}


def ends(names: list[str]) -> str:
    """The names, or of many the first and the last."""
    return ", ".join(names) if len(names) <= IN_FULL else f"{names[0]} … {names[-1]}"


def prepared(mode: str, name: str, data: Data, seconds: float) -> str:
    """What mode=prepare or mode=verify says of data that is as it should be."""
    if isinstance(data, MixtureData):
        each = data.sources.items()
        return "\n\n".join(prepared(mode, source, of_source, seconds) for source, of_source in each)
    if not isinstance(data, DataSet):
        return f"data={name} has no files, it is drawn when it is needed: nothing to {mode}"
    facts, some = data.facts(), data.outlines["test"].input_shape
    rows = {
        "data": name if mode == "prepare" else f"{name}, ok: the source and the prepared files",
        **({"split": facts["split"]} if "split" in facts else {}),
        **understood(facts),
        **{part: by_split(facts[part]) for part in ("classes", "examples")},
        "kind": facts["kind"],
        "example": "×".join(map(str, some)),
        "checksum": data.checksum,
        "folder": str(next(iter(data.files.values())).parent),
        "bytes": f"{data.bytes():,}",
        "seconds": f"{seconds:.1f}",
    }
    return aligned(rows)


def by_split(counts: dict[str, int]) -> str:
    """As 64 / 16 / 20 (train / val / test)."""
    return f"{' / '.join(map(str, counts.values()))} ({' / '.join(counts)})"


def task_kind(task: dict[str, Any], metric: Metric) -> str:
    """What a task is, in a few words."""
    if metric.of == VALUES:
        return f"regression from {task['shot']} points, {task['query']} query points"
    least = task["sampler"].get("least_way", task["way"])
    way = f"{task['way']}" if least == task["way"] else f"{least}- to {task['way']}"
    shot = f"{task['shot']}-shot" if task["shot"] else "any shots"
    if support := task["sampler"].get("support"):
        shot = f"{support} support examples"
    query = f"{task['query']}" if task["query"] else "any number of"
    return f"{way}-way {shot}, {query} queries a class"


def batch_norm(algorithm: Algorithm) -> str:
    """Whose statistics batch norm uses in a test: "running" and "support" are inductive, "batch" is
    transductive; an algorithm that sees to it itself has a `batch_norm_mode` of its own."""
    if own := getattr(algorithm, "batch_norm_mode", None):
        return str(own)
    modes = {getattr(module, "batch_norm_mode", None) for module in algorithm.modules()} - {None}
    return ", ".join(sorted({*map(str, modes), *modes_of(algorithm.modules())})) or "none"


def training_facts(progress: Progress, metric: Metric, peak_memory: float | None) -> dict[str, Any]:
    """How the tested model was trained and chosen: the `train` and `val` parts of the results.

    `peak_memory`, in MiB, is that of the training just done, if any was.
    """
    seconds = progress.seconds
    return {
        "train": {
            "steps": progress.step,
            "episodes": progress.episodes,
            "seconds": round(seconds, 2),
            "episodes_per_second": progress.episodes / seconds if seconds else None,
            "peak_memory_mib": peak_memory and round(peak_memory, 1),
        },
        "val": {
            progress.metric or metric.name: progress.best,
            "ci95": progress.best_ci95,
            "step": progress.best_step,
        }
        if progress.best_step
        else None,
    }
