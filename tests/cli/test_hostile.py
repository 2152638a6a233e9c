"""Files from strangers: a checkpoint, a run's folder and a config file that try to write or run.

Each names functions of metarun's own that would do it. All end in one line, and no file is made.
"""

import json
import shutil

import pytest
import torch

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


@pytest.mark.parametrize("algo", [*EVIL.values(), ENVIRONMENT, None, "x", {}, []])
def test_a_checkpoint_runs_nothing(metarun, run, algo):
    content = torch.load(metarun.folder / "outputs/a/checkpoints/best.pt", weights_only=True)
    content["config"]["algo"] = algo
    torch.save(content, metarun.folder / "bad.pt")
    embed = ["mode=embed", "checkpoint=bad.pt", "backbone.width=8", "device=cpu", "to=features"]
    assert "algo" in run(*metarun.data, *embed, "hydra.run.dir=outputs/a-embed")
    test = ["mode=test", "checkpoint=bad.pt"]
    run(*metarun.data, *QUICK, *test, "hydra.run.dir=outputs/a-test")


@pytest.mark.parametrize("group", ["algo", "data", "backbone", "optim", "augment", "eval.sampler"])
@pytest.mark.parametrize("evil", EVIL)
def test_a_runs_folder_runs_nothing(metarun, run, group, evil):
    shutil.copytree(metarun.folder / "outputs/a", metarun.folder / "outputs/evil")
    path = metarun.folder / "outputs/evil/results.json"
    results = json.loads(path.read_text())
    part, _, inside = group.partition(".")
    if inside:
        results["config"][part][inside] = EVIL[evil]
    else:
        results["config"][group] = EVIL[evil]
    results["config"]["plugins"]["allow"] = ["metarun", "os", "pathlib"]
    path.write_text(json.dumps(results))
    assert run("rerun=outputs/evil").startswith(group)


def test_a_runs_folder_reads_no_environment(metarun, run):
    path = metarun.folder / "outputs/a/results.json"
    results = json.loads(path.read_text())
    for keys in (("tracker", "tags"), ("data", "root"), ("algo", "distance")):
        changed = json.loads(json.dumps(results))
        changed["config"][keys[0]][keys[1]] = ["${oc.env:SECRET}"]
        path.write_text(json.dumps(changed))
        assert f"{keys[0]}.{keys[1]}" in run("rerun=outputs/a")


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("group", ["algo", "data", "backbone"])
def test_a_config_file_runs_nothing(metarun, run, group, evil):
    path = metarun.folder / "conf" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(EVIL[evil]))
    given = [w for w in [*metarun.data, *QUICK] if not w.startswith((f"{group}.", f"{group}="))]
    said = run("--config-dir", "conf", *given, f"{group}=mine", "name=b")
    assert said.startswith(f"{group}.")
