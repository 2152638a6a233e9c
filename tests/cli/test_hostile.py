"""Files from strangers: a checkpoint, a run's folder and a config file that try to write or run.

Each names functions of metarun's own that would do it. All end in one line, and no file is made.
"""

import json
import shutil
from copy import deepcopy

import pytest
import torch

from metarun.runs import checkpoint
from tests.conftest import QUICK

WRITES = {
    "_target_": "metarun.algos.protonet.ProtoNet",
    "distance": {
        "_target_": "metarun.runs.folder.write_text",
        "path": {"_target_": "metarun.data.archives.data_root", "root": "PWNED"},
        "text": "owned",
    },
}
# A second instantiation, of text that no guard of names sees.
BUILDS = {
    "_target_": "metarun.algos.protonet.ProtoNet",
    "distance": {
        "_target_": "metarun.parts.instance",
        "_convert_": "none",
        "key": "x",
        "config": {
            "_target_": "metarun.configs.composing.composed",
            "overrides": ['+x={_target_:os.system,command:"touch PWNED"}'],
            "config_dir": None,
        },
    },
}
SAVES = {
    "_target_": "metarun.algos.protonet.ProtoNet",
    "temperature": {
        "_target_": "metarun.runs.checkpoint.save",
        "path": {"_target_": "pathlib.Path", "_args_": ["PWNED"]},
        "content": {},
    },
}
ITSELF = {
    "_target_": "metarun.runs.folder.write_text",
    "path": {"_target_": "metarun.data.archives.data_root", "root": "PWNED"},
    "text": "owned",
}
LATER = {
    "_target_": "metarun.algos.protonet.ProtoNet",
    "distance": {"_target_": "metarun.runs.folder.write_text", "_partial_": True},
}
ENVIRONMENT = {"_target_": "metarun.algos.protonet.ProtoNet", "distance": "${oc.env:SECRET}"}
EVIL = {"writes": WRITES, "builds": BUILDS, "saves": SAVES, "itself": ITSELF, "later": LATER}


@pytest.fixture
def run(metarun):
    """A finished run, in outputs/a, and a look at whether anything was written elsewhere."""
    metarun.monkeypatch.setenv("SECRET", "planted")
    metarun.run("name=a", "train.steps=2")
    before = sorted(path.name for path in metarun.folder.iterdir())

    def refused(*arguments: str) -> str:
        said = metarun.error(*arguments)
        left = {path.name for path in metarun.folder.iterdir()} - {"bad.pt", "conf"}
        assert sorted(left) == before
        assert not list(metarun.folder.rglob("PWNED*"))
        assert "planted" not in said
        return said

    return refused


def test_a_checkpoint_runs_nothing(metarun, run):
    content = torch.load(metarun.folder / "outputs/a/checkpoints/best.pt", weights_only=True)
    for number, algo in enumerate([*EVIL.values(), ENVIRONMENT, None, "x", {}, []]):
        content["config"]["algo"] = algo
        checkpoint.save(metarun.folder / "bad.pt", content)
        embed = ["mode=embed", "checkpoint=bad.pt", "backbone.width=8", "to=features"]
        folder = f"hydra.run.dir=outputs/embed{number}"
        assert "algo" in run(*metarun.data, *embed, "device=cpu", folder)
        test = ["mode=test", "checkpoint=bad.pt", f"hydra.run.dir=outputs/test{number}"]
        run(*metarun.data, *QUICK, *test)


@pytest.mark.parametrize("group", ["algo", "data", "backbone", "optim", "augment", "eval.sampler"])
def test_a_runs_folder_runs_nothing(metarun, run, group):
    shutil.copytree(metarun.folder / "outputs/a", metarun.folder / "outputs/evil")
    path = metarun.folder / "outputs/evil/results.json"
    for evil in EVIL.values():
        results = metarun.results("a")
        part, _, inside = group.partition(".")
        if inside:
            results["config"][part][inside] = evil
        else:
            results["config"][group] = evil
        results["config"]["plugins"]["allow"] = ["metarun", "os", "pathlib"]
        path.write_text(json.dumps(results))
        assert run("rerun=outputs/evil").startswith(group)


def test_a_runs_folder_reads_no_environment(metarun, run):
    path = metarun.folder / "outputs/a/results.json"
    results = metarun.results("a")
    for group, key in (("tracker", "tags"), ("data", "root"), ("algo", "distance")):
        changed = deepcopy(results)
        changed["config"][group][key] = ["${oc.env:SECRET}"]
        path.write_text(json.dumps(changed))
        assert f"{group}.{key}" in run("rerun=outputs/a")


@pytest.mark.parametrize("group", ["algo", "data", "backbone"])
def test_a_config_file_runs_nothing(metarun, run, group):
    path = metarun.folder / "conf" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    given = [w for w in [*metarun.data, *QUICK] if not w.startswith((f"{group}.", f"{group}="))]
    for evil in EVIL.values():
        path.write_text(json.dumps(evil))
        said = run("--config-dir", "conf", *given, f"{group}=mine", "name=b")
        assert said.startswith(f"{group}.")
