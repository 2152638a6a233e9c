"""Which weights are tested: the best of this very training, or none."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from metarun.runs import checkpoint


@pytest.fixture
def run(metarun):
    """A run whose best validation was before its last step, in outputs/a, and another seed's in
    outputs/b; and a function that goes on with it, for more test episodes."""
    metarun.run("name=a", "optim.lr=0.05", "train.steps=6", "train.val_every=1")
    metarun.run("name=b", "seed=1", "train.steps=2")

    def more(*given: str) -> list[str]:
        common = ["optim.lr=0.05", "train.steps=6", "train.val_every=1", "eval.episodes=8"]
        return [*metarun.data, *QUICK_BUT, *common, "name=a", "resume=auto", OUT, *given]

    return metarun.folder / "outputs/a/checkpoints/best.pt", more


QUICK_BUT = "train.log_every=1 eval.val_episodes=4 backbone.width=8 tracker=none device=cpu".split()
OUT = "hydra.run.dir=outputs/a"


def test_all_of_a_run_say_whose_they_are(metarun, run):
    best, more = run
    own = metarun.results("a")["run_id"]
    files = [torch.load(best.with_name(n), weights_only=True) for n in ("best.pt", "last.pt")]
    assert [file["run"] for file in files] == [own, own]
    assert metarun.results("b")["run_id"] != own
    metarun.main(*more())
    assert metarun.results("a")["run_id"] == own
    assert metarun.results("a")["test"]["episodes"] == 8


def test_the_best_is_missing(metarun, run):
    best, more = run
    step = metarun.results("a")["val"]["step"]
    best.rename(best.with_name("moved.pt"))
    before = (best.parents[1] / "results.json").read_text()
    said = metarun.error(*more())
    assert said.startswith("outputs/a/checkpoints/best.pt is missing")
    assert f"the weights of step {step}: put the run's own back" in said
    assert (best.parents[1] / "results.json").read_text() == before, "what there was is left alone"
    best.with_name("moved.pt").rename(best)
    metarun.main(*more())


def test_the_best_of_another_run(metarun, run):
    best, more = run
    shutil.copy(metarun.folder / "outputs/b/checkpoints/best.pt", best)
    assert "best.pt is of another run: " in metarun.error(*more())


def not_finite(weights: dict) -> dict:
    """The first of the weights, spoilt."""
    name, value = next(iter(weights.items()))
    return {name: torch.full_like(value, float("nan"))}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["progress"].update(step=c["progress"]["step"] - 1), "and the best was step"),
        (lambda c: c.update(data_checksum="abc"), "was trained on other data"),
        (lambda c: c.pop("run"), "is of another run"),
        (lambda c: c["algorithm"].update(not_finite(c["algorithm"])), "is not finite"),
    ],
)
def test_what_this_training_did_not_keep(metarun, run, change, said):
    best, more = run
    content = torch.load(best, weights_only=True)
    change(content)
    checkpoint.save(best, content)
    assert said in metarun.error(*more())


def test_a_weight_that_is_not_finite_is_not_tested(metarun, run):
    best, _ = run
    content = torch.load(best, weights_only=True)
    content["algorithm"] |= not_finite(content["algorithm"])
    checkpoint.save(Path("bad.pt"), content)
    test = ["mode=test", "checkpoint=bad.pt", "backbone.width=8", "hydra.run.dir=outputs/c"]
    assert "a weight is not finite" in metarun.error(*metarun.data, *test, "device=cpu")


def test_the_last_of_another_run(metarun, run):
    """One of the same config, whose state would fit."""
    best, more = run
    path = best.parents[1] / "results.json"
    results = metarun.results("a") | {"run_id": "0123456789abcdef"}
    path.write_text(json.dumps(results))
    assert "last.pt is of another run than results.json" in metarun.error(*more())


def test_killed_between_the_best_and_the_last(metarun, run):
    """The best is then of a later step than the last, and is made once more."""
    best, _ = run
    common = ["name=c", "optim.lr=0.05", "train.val_every=1", "hydra.run.dir=outputs/c"]
    given = [*metarun.data, *QUICK_BUT, *common, "eval.episodes=6"]
    metarun.main(*given, "train.steps=1")
    early = (metarun.folder / "outputs/c/checkpoints/last.pt").read_bytes()
    metarun.main(*given, "train.steps=3", "resume=auto")
    (metarun.folder / "outputs/c/checkpoints/last.pt").write_bytes(early)
    metarun.main(*given, "train.steps=6", "resume=auto")
    ours = torch.load(metarun.folder / "outputs/c/checkpoints/best.pt", weights_only=True)
    wanted = torch.load(best, weights_only=True)
    assert ours["progress"]["step"] == wanted["progress"]["step"]
    for name, value in wanted["algorithm"].items():
        assert torch.equal(value, ours["algorithm"][name])
