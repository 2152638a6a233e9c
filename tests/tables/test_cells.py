"""A run's folder in a sweep, and its state."""

import json

from filelock import FileLock

from metarun.tables import cells

CONFIG = {"seed": 3, "way": 5, "name": "a", "data": {"root": "x", "size": 28}}
CHOICES = {"data": "omniglot", "algo": "maml", "experiment": None}


def test_the_same_config_has_the_same_folder():
    """Whatever is incidental, and for another version of metarun or another value another one."""
    name = cells.run_name(CONFIG, CHOICES, ["name", "data.root"])
    assert name.startswith("omniglot_maml/seed3-")
    other = {**CONFIG, "name": "b", "data": {"root": "y", "size": 28}}
    assert cells.run_name(other, CHOICES, ["name", "data.root"]) == name
    assert cells.run_name(other, CHOICES, ["name"]) != cells.run_name(CONFIG, CHOICES, ["name"])
    wider = {**CONFIG, "way": 20}
    assert cells.run_name(wider, CHOICES, ["name", "data.root"]) != name


def test_another_version_is_another_run(monkeypatch):
    before = cells.run_name(CONFIG, CHOICES, [])
    monkeypatch.setattr("metarun.__version__", "99")
    assert cells.run_name(CONFIG, CHOICES, []) != before


def test_slashes_make_no_folders():
    name = cells.run_name(CONFIG, {**CHOICES, "experiment": "snell2017/a/b"}, [])
    assert name.startswith("snell2017-a-b/seed3-")
    assert name.count("/") == 1


def results(folder, status, **more):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"status": status, **more}))


def test_states(tmp_path):
    assert cells.read(tmp_path / "none").state == "waiting"
    folder = tmp_path / "run"
    results(folder, "running")
    (folder / ".lock").touch()
    assert cells.read(folder).state == "interrupted", "nobody holds it: it was killed"
    with FileLock(folder / ".lock"):
        assert cells.read(folder).state == "running"
    results(folder, "failed", error="no memory")
    assert cells.read(folder)[1::2] == ("failed", "no memory")
    results(folder, "finished", test={"metric": "mse", "mse": 0.5})
    assert cells.read(folder).state == "finished"
    assert cells.read(folder).value == 0.5
    (folder / "error.txt").write_text("way=5: too few classes\nTraceback")
    assert cells.read(folder).state == "failed", "the last attempt, on other data"
    (folder / "results.json").write_text('{"status": "fin')
    assert cells.read(folder).state == "failed"
    assert f"{folder}/results.json cannot be read" in cells.read(folder).error
    (folder / "results.json").unlink()
    assert cells.read(folder)[1::2] == ("failed", "way=5: too few classes")
