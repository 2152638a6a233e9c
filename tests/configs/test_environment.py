"""Environment variables stay out of what a run writes, whatever somebody's file says."""

import pytest


def refused_file(metarun, text: str, folder: str = "hydra.run.dir=outputs/a") -> str:
    """What is said of an experiment file with this content; a planted secret is nowhere then."""
    metarun.monkeypatch.setenv("SECRET", "planted-secret")
    path = metarun.folder / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"# @package _global_\n{text}")
    asked = [word for word in metarun.data if not word.startswith("data.root")]
    said = metarun.error("--config-dir", "conf", "experiment=mine", *asked, "train.steps=1", folder)
    files = [path for path in metarun.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if b"planted-secret" in path.read_bytes()]
    assert "planted-secret" not in said
    return said


@pytest.mark.parametrize(
    "text",
    [
        "tracker: {tags: ['${oc.env:SECRET}']}\n",
        "tracker: {group: 'a ${oc.env:SECRET}'}\n",
        "name: ${oc.env:SECRET,x}\n",
        "name: ${oc.decode:${oc.env:SECRET}}\n",
        "data: {root: '${oc.env:SECRET}'}\n",
    ],
)
def test_a_file_reads_no_environment(metarun, text):
    assert "a file cannot read the environment" in refused_file(metarun, text)


def test_nor_for_the_runs_folder(metarun):
    text = "hydra: {run: {dir: '${oc.env:SECRET}/x'}}\n"
    assert "a file cannot read the environment" in refused_file(metarun, text, "name=a")


def test_text_that_would_be_resolved_later(metarun):
    text = "data: {split_file: '\\${oc.env:SECRET}'}\n"
    assert "cannot hold ${" in refused_file(metarun, text)


def test_the_person_may_type_it(metarun):
    metarun.monkeypatch.setenv("GROUP", "mine")
    results = metarun.run("tracker.group=${oc.env:GROUP}", "name=a")
    assert results["config"]["tracker"]["group"] == "mine"
