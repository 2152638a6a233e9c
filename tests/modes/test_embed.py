"""Features stored once, and what is the same with them as without."""

import shutil

import pytest
import torch

from metarun.backbones.conv4 import Conv4
from metarun.data.features import load
from metarun.data.images import image_folder
from metarun.runs.folder import write_results
from tests.conftest import QUICK

BEST = "checkpoint=outputs/a/checkpoints/best.pt"


@pytest.fixture
def embed(metarun):
    """mode=embed on the pictures, to the folder `features`."""

    def run(*overrides):
        metarun.main(
            *metarun.data,
            *("mode=embed", "to=features", "backbone.width=8", "device=cpu", *overrides),
            *("hydra.run.dir=outputs/embed",),
        )
        return metarun.results("embed")

    return run


def on_features(metarun, *overrides):
    """The results of a run on the stored features; it has the place of an earlier one."""
    shutil.rmtree(metarun.folder / "outputs/head", ignore_errors=True)
    metarun.main(
        *("data=features", "data.root=features", "way=3", "query=5"),
        *(o for o in QUICK if not o.startswith("backbone")),
        *(*overrides, "hydra.run.dir=outputs/head"),
    )
    return metarun.results("head")


def test_the_same_test_as_end_to_end(metarun, embed):
    """The same episodes and answers, one by one; and the results tell where features come from."""
    end_to_end = metarun.run("name=a", "eval.episodes=40")
    made = embed(BEST)
    assert made["status"] == "finished"
    assert made["features"]["classes"] == made["data"]["classes"]
    head = on_features(metarun, "train.steps=0", "eval.episodes=40")
    for key in ("episodes_sha256", "accuracy", "ci95"):
        assert head["test"][key] == end_to_end["test"][key]
    rows = [(metarun.folder / f"outputs/{n}/episodes.csv").read_text() for n in ("a", "head")]
    assert rows[0] == rows[1]

    assert head["data"] | {"shape": [8]} == made["features"]
    origin = head["data"]["made_from"]
    assert origin["data"]["checksum"] == end_to_end["data"]["checksum"] == made["data"]["checksum"]
    assert origin["backbone"] == end_to_end["config"]["backbone"]
    assert origin["checkpoint"]["step"] == end_to_end["val"]["step"]
    assert len(origin["checkpoint"]["sha256"]) == 64
    assert head["data"]["checksum"] != origin["data"]["checksum"]

    said = metarun.error(*metarun.data, "mode=embed", BEST, "backbone.width=16", "device=cpu")
    assert said == "the checkpoint was trained with backbone.width=8: say the same"


def test_the_backbone_of_another_algorithm(metarun, embed):
    """Its weights stand elsewhere among the algorithm's, beside a head's for as many classes."""
    metarun.run("algo=anil", "name=a", "backbone.batch_norm=none", "sampler.tasks=2")
    embed(BEST, "backbone.batch_norm=none", "way=5")
    state = torch.load(metarun.folder / "outputs/a/checkpoints/best.pt", weights_only=True)
    backbone = Conv4((1, 16, 16), width=8, batch_norm="none")
    prefix = "learner.body."
    backbone.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state["algorithm"].items() if k.startswith(prefix)}
    )
    pictures = image_folder.load(
        metarun.data[1].removeprefix("data.root="),
        16,
        True,
        None,
        None,
        0,
        None,
        [0.64, 0.16, 0.2],
        0,
    ).open("val")
    with torch.no_grad():
        wanted = backbone(pictures.take(torch.arange(7)))
    torch.testing.assert_close(load("features").open("val").x[:7], wanted)


HEADS = [
    ["algo=siamese", "sampler.tasks=4"],
    ["algo=anil", "sampler.tasks=2"],
    ["algo=protonet", "backbone=mlp", "backbone.widths=[6]"],
]


def test_heads_train(metarun, embed):
    """On features of a backbone as it was built, without a checkpoint."""
    made = embed()
    assert made["features"]["made_from"]["checkpoint"] is None
    assert made["features"]["made_from"]["seed"] == 0
    for head in HEADS:
        results = on_features(metarun, *head)
        assert results["status"] == "finished"
        assert results["train"]["steps"] == 4
        assert results["parameters"] > 0
    for algo in ("protonet", "proto_maml"):
        given = ["data=features", "data.root=features", f"algo={algo}", "query=5", "device=cpu"]
        assert "nothing to learn: train.steps=0 only tests" in metarun.error(*given)


def test_maps_are_features_too(metarun, embed):
    """As relation networks compare them, and they train on them."""
    made = embed("algo=relation")
    assert made["features"]["shape"] == [8, 4, 4]
    results = on_features(metarun, "algo=relation", "algo.width=4")
    assert results["status"] == "finished"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["backbone.batch_norm=batch"], "(mode batch) uses the statistics of a task"),
        (["backbone.batch_norm=support"], "(mode support) uses the statistics of a task"),
        (["data=sinusoid", "algo=maml"], "data=sinusoid is no one set of examples"),
        (["mode=train"], "to= goes with mode=embed"),
        (["checkpoint=none.pt"], "checkpoint=none.pt: there is no such file"),
        (["to=full"], "full holds other files: choose another to=FOLDER"),
    ],
)
def test_refused(metarun, typed, said):
    (metarun.folder / "full").mkdir()
    (metarun.folder / "full/thesis.tex").write_text("precious")
    data = [] if "sinusoid" in typed[0] else metarun.data
    mode = [] if "mode=train" in typed else ["mode=embed"]
    to = [] if "to=full" in typed else ["to=features"]
    assert said in metarun.error(*data, *mode, *to, *typed, "device=cpu", "hydra.run.dir=outputs/e")
    assert not (metarun.folder / "features").exists()
    assert [path.name for path in (metarun.folder / "full").iterdir()] == ["thesis.tex"]


def test_each_inner_step_its_own_statistics(metarun):
    """MAML++ leaves its backbone none that one could use without its inner loop."""
    metarun.run("algo=mamlpp", "name=a", "sampler.tasks=2")
    given = ["mode=embed", BEST, "backbone.width=8", "backbone.batch_norm=batch", "device=cpu"]
    assert "batch norm" in metarun.error(*metarun.data, *given)


def test_into_the_folder_of_the_run(metarun, capsys):
    """Without to=; a second time it is only told, ready to be typed."""
    given = [*metarun.data, "mode=embed", "backbone.width=8", "device=cpu", "resume=auto"]
    metarun.main(*given, "hydra.run.dir=outputs/e e")
    path = metarun.folder / "outputs/e e/features/test.safetensors"
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    metarun.main(*given, "hydra.run.dir=outputs/e e")
    assert "data=features 'data.root=outputs/e e/features'\n" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    assert "already holds a run" in metarun.error(*given[:-1], "hydra.run.dir=outputs/e e")


def test_doubts_are_said_again_of_features(metarun):
    """Of the data that was embedded, and of what a network made of it that does not look."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 12, 4, generator=draw)
    rows[2, 3, 1] = 1e6
    lines = [f"{c},{','.join(map(str, r))}" for c in range(9) for r in rows[c].tolist()]
    (metarun.folder / "t.csv").write_text("\n".join(["label,a,b,c,d", *lines]))
    table = ("mode=embed", "data=csv", "data.file=t.csv", "data.fractions=[0.34,0.33,0.33]")
    metarun.main(*table, "backbone=mlp", "to=f", "device=cpu", "hydra.run.dir=outputs/embed")
    (of_data,) = metarun.results("embed")["data"]["doubts"]
    assert of_data.startswith("b is 1e+06 in one example")
    first, *_ = metarun.results("embed")["features"]["doubts"]
    assert first == f"of the embedded data=csv: {of_data}"
    metarun.capsys.readouterr()
    head = on_features(
        metarun, "data.root=f", "train.steps=0", "eval.episodes=4", "backbone=identity"
    )
    assert head["data"]["doubts"] == metarun.results("embed")["features"]["doubts"]
    assert head["data"]["split"] == "at random by data.split_seed=0 (data=csv)"
    assert f"doubts      {first}" in metarun.capsys.readouterr().out


def test_killed_when_the_features_were_there(metarun, embed):
    """It has but to say so; the features of anything else are in the way, as ever."""
    made = embed()
    folder = metarun.folder / "outputs/embed"
    written = (metarun.folder / "features/train.safetensors").stat().st_ino
    write_results(folder / "results.json", made | {"status": "running"})
    again = embed("resume=auto")
    assert (again["status"], again["features"]) == ("finished", made["features"])
    assert (metarun.folder / "features/train.safetensors").stat().st_ino == written
    write_results(folder / "results.json", made | {"status": "running"})
    with pytest.raises(SystemExit):
        embed("resume=auto", "seed=1")
    assert metarun.results("embed")["status"] == "running"
