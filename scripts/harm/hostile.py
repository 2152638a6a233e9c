"""Files from strangers that try to write, fetch or run: nothing of it happens.

A checkpoint, a run's folder and config files name functions that would do it, metarun's own among
them, at the top of a group and nested; pickles would run when they are read.
"""

import json
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import Outcome
from harm.place import GO_ON, SHORT, Place, Tries
from harm.rot import run_of

from metarun.runs import checkpoint
from metarun.runs.folder import write_results

MARK = "PWNED"
PATH = {"_target_": "metarun.data.archives.data_root", "root": MARK}
HUB = "dependencies=[]\nimport pathlib\npathlib.Path('PWNED').touch()\ndef x(): return 1\n"
COMPOSE = "metarun.configs.composing.composed"
TOUCH = f"touch {MARK}"


def payloads(address: str) -> dict[str, Any]:
    """What each would do, by a word for it, as the config of an object."""
    composed = {"_target_": COMPOSE, "config_dir": None}
    return {
        "writes": {"_target_": "metarun.runs.folder.write_text", "path": PATH, "text": "owned"},
        "saves": {"_target_": "metarun.runs.checkpoint.save", "path": PATH, "content": {}},
        "fetches": {
            "_target_": "metarun.data.download.download",
            "url": address,
            "path": PATH,
            "sha256": "0",
        },
        "builds": {
            "_target_": "metarun.parts.instance",
            "key": "x",
            "config": composed | {"overrides": [f'+x={{_target_:os.system,command:"{TOUCH}"}}']},
        },
        "loads": {
            "_target_": "torch.hub.load",
            **{"repo_or_dir": "hub", "model": "x", "source": "local"},
        },
        "runs": {"_target_": "os.system", "command": TOUCH},
        "starts": {"_target_": "subprocess.run", "args": ["touch", MARK]},
        "evaluates": {"_target_": "builtins.eval", "_args_": [f"open('{MARK}', 'w')"]},
        "opens": {"_target_": "io.open", "_args_": [MARK, "w"]},
        "imports": {"_target_": "metarun.cli.main.os.system", "command": TOUCH},
        "gets": {
            "_target_": "hydra.utils.call",
            "config": {"_target_": "os.system", "command": TOUCH},
        },
        "unpickles": {"_target_": "torch.load", "f": "evil.pt", "weights_only": False},
        "partly": {"_target_": "metarun.runs.folder.write_text", "_partial_": True},
        "later": {
            "_target_": "torch.nn.Module",
            "forward": {"_target_": "os.system", "command": TOUCH},
        },
    }


def placed(payload: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The payload at the top of each group, and within what could stand there."""
    for group, name in {
        "algo": "metarun.algos.protonet.ProtoNet",
        "backbone": "metarun.backbones.conv4.Conv4",
        "data": "metarun.data.images.glyphs.load",
        "augment": "metarun.augment.sequence.Sequence",
        "sampler": "metarun.samplers.uniform.Uniform",
        "optim": "torch.optim.Adam",
        "schedule": "torch.optim.lr_scheduler.ConstantLR",
    }.items():
        yield group, payload
        yield group, {"_target_": name, "distance": payload, "way": payload, "lr": payload}
        yield group, {"_target_": name, "sources": {"a": payload}, "steps": [[payload]]}


def drawn(place: Place, address: str) -> list[tuple[str, str, Any]]:
    """As many as there are tries: a word, a group, and what stands there."""
    every = [
        (word, group, content)
        for word, payload in payloads(address).items()
        for group, content in placed(payload)
    ]
    return place.chance.sample(every, min(place.tries, len(every)))


def configs(place: Place) -> Tries:
    """Config files of a folder that one was given."""
    with listening() as (address, asked):
        for word, group, content in drawn(place, address):
            folder = laid_out(place)
            path = folder / "conf" / group / "mine.yaml"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(content), encoding="utf-8")
            words = ["--config-dir", "conf", *SHORT, f"{group}=mine"]
            words = [w for w in words if not w.startswith(f"{group}.")]
            yield judged(place.run(words, folder), folder, asked, f"{group}: {word}")


def run_folders(place: Place) -> Tries:
    """A run's folder, for rerun=."""
    begun = place.new()
    place.finished(SHORT, begun)
    with listening() as (address, asked):
        for word, group, content in drawn(place, address):
            folder = laid_out(place)
            shutil.copytree(begun, folder, dirs_exist_ok=True)
            path = run_of(folder) / "results.json"
            results = json.loads(path.read_bytes())
            del results["sha256"]
            results["config"][group] = content
            results["config"]["plugins"]["allow"] = ["os", "metarun", "torch", "subprocess"]
            write_results(path, results)
            outcome = place.run([f"rerun={os.path.relpath(run_of(folder), folder)}"], folder)
            yield judged(outcome, folder, asked, f"{group}: {word}")


def checkpoints(place: Place) -> Tries:
    """A checkpoint: embedded with, tested, gone on from; and one that is a pickle."""
    begun = place.new()
    place.finished(SHORT, begun)
    embed = ["mode=embed", "checkpoint=evil.pt", "backbone.width=16", "to=features", "device=cpu"]
    test = [*(w for w in SHORT if w != "name=a"), "mode=test", "checkpoint=evil.pt"]
    readers = ([*embed, "tracker=none"], test, [*SHORT, "train.steps=9", GO_ON])
    with listening() as (address, asked):
        for word, group, content in drawn(place, address):
            words = place.chance.choice(readers)
            folder = laid_out(place)
            shutil.copytree(begun, folder, dirs_exist_ok=True)
            for path in (folder / "evil.pt", run_of(folder) / "checkpoints" / "last.pt"):
                state = checkpoint.load(run_of(begun) / "checkpoints" / "best.pt")
                state["config"][group] = content
                checkpoint.save(path, state)
                if place.chance.random() < 0.1:
                    word = "pickled"
                    torch.save({**state, "algorithm": Pickled()}, path)
            outcome = place.run(words, folder)
            # Embedding does not look at the optimiser, say.
            yield judged(outcome, folder, asked, f"{group}: {word}, {words[0]}", all_read=False)


def pickles(place: Place) -> Tries:
    """Data that holds pickles."""
    every = [
        (name, kind)
        for name in ("arrays.npz", "arrays.npy", "data.pkl", "table.csv")
        for kind in ("npz", "csv", "safetensors")
    ]
    for name, kind in every[: place.tries]:
        folder = laid_out(place)
        path = folder / name
        if path.suffix in (".npz", ".npy"):
            evil = np.array([Pickled()], dtype=object)
            with open(path, "wb") as file:
                np.savez(file, x=evil, y=evil) if path.suffix == ".npz" else np.save(file, evil)
        else:
            path.write_bytes(pickle.dumps(Pickled()))
        words = [*(w for w in SHORT if "backbone" not in w), f"data={kind}", f"data.file={name}"]
        outcome = place.run([*words, "backbone=mlp"], folder)
        yield judged(outcome, folder, [], f"{name} as {kind}")


class Pickled:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, (TOUCH,)


def laid_out(place: Place) -> Path:
    """A folder with what some payloads load."""
    folder = place.new()
    (folder / "hub").mkdir()
    (folder / "hub" / "hubconf.py").write_text(HUB, encoding="utf-8")
    (folder / "evil.pt").write_bytes(pickle.dumps(Pickled()))
    return folder


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what it has been asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x", asked
    finally:
        server.shutdown()
        server.server_close()


def judged(
    outcome: Outcome, folder: Path, asked: list[str], told: str, all_read: bool = True
) -> str | None:
    """What is wrong with how a try ended; None for one line, or the end of a command that does not
    read all of the file."""
    written = [*folder.rglob(f"{MARK}*")]
    known = {"outputs", "conf", "hub", "evil.pt", "features", "arrays.npz", "arrays.npy"}
    beside = {path.name for path in folder.iterdir()} - known - {"data.pkl", "table.csv"}
    shutil.rmtree(folder)
    if written or asked:
        return f"{told}: {'asked for ' + asked[0] if asked else written[0].name}"
    if beside:
        return f"{told}: {sorted(beside)} was made"
    if outcome.refused is None and not (outcome.code == 0 and not all_read):
        return f"{told}: {outcome.told()}"
    return None


FAMILIES = {
    "hostile-configs": configs,
    "hostile-folders": run_folders,
    "hostile-checkpoints": checkpoints,
    "hostile-pickles": pickles,
}
