"""What nobody should type, and what a machine does not have: one line each, at once."""

import errno
import os

import pytest

PATHS = (
    "2024",
    "true",
    "1e5",
    "a b",
    "My pictures (1)",
    "我的图片 [2]",
    "{x}",
    "a,b",
    "it's",
    "a=b",
)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["algo=true"], "algo=true: there is no such choice; algo can be "),
        (["data=1"], "data=1: there is no such choice; data can be "),
        (["tracker=1.5"], "tracker=1.5: there is no such choice"),
        (["experiment=false"], "experiment=false: there is no such choice"),
        (["experiment=null"], "experiment=null: there is no such choice"),
        (["hydra/launcher=true"], "hydra/launcher=true: there is no such choice"),
        (["hydra/job_logging=1"], "hydra/job_logging=1: there is no such choice"),
        (["hydra/hydra_logging=null"], "hydra/hydra_logging=null: there is no such choice"),
        (["-m", "algo=protonet,true"], "algo=True: there is no such choice"),
        (["way=" + 5000 * "1"], "way: a number of 5000 digits is too long"),
        ([".".join(2000 * ["a"]) + "=1"], "…: there is no such key"),
        ([100_000 * "a" + "=1"], "…: there is no such key"),
        (["way=" + 3000 * "["], "way: brackets within brackets, 3000 deep: at most 20"),
        (["way=5\n"], r"way=5\n"),
        (["way=5\nshot=1"], r"way=5\nshot=1"),
        (["--config-dir"], "expected one argument: see metarun --help"),
        (["optim.lr=1e300"], "optim.lr=1e+300: it must be at most 3.4e+38"),
        (["optim.betas=[0.9,1e300]"], "optim.betas=1e+300: it must be at most 3.4e+38"),
        (["seed=100000000000000000000"], "it must be at most 9,223,372,036,854,775,807"),
        (["name=" + 300 * "x"], "xxx…: 300 bytes are too long: at most 200"),
        ([f'name="{100 * "数"}"'], "数…: 300 bytes are too long: at most 200"),
        (["-m", "seed=range(0,1000000000)"], "a sweep of 1,000,000,000 jobs: at most 10,000"),
        (["-m", "seed=range(0,1000)", "way=range(2,100)"], "a sweep of 98,000 jobs: at most 10,0"),
        (["-m", "optim.lr=range(0,1,1e-9)"], "jobs: at most 10,000 at a time"),
        (["eval.episodes=1000000000000"], "it must be at most 1,000,000"),
        (["seeds=1000000"], "seeds=1000000: it must be at most 1,000"),
        (["train.steps=99999999999999999999"], "train.steps=99999999999999999999: it must be at"),
        (["algo=maml", "algo.measured_steps=[1000000000]"], "it must be at most 100,000"),
        (["mode=embed", "to=/proc/x"], "cannot write /proc/x"),
        (["=5"], "=5: cannot be read: write key=value"),
        (["experiment=x"], "experiment can be antoniou2019/…, finn2017/…"),
        (["experiment=${oc.select:nope,3}"], "the config cannot be composed: "),
        (["-m", "way=range(1,inf)"], "way=range(1,inf): it has no end"),
        (["-m", "hydra/output=glob([true])"], "patterns are texts"),
        (["hydra.verbose={a:1}"], "hydra.verbose: true, false, or names of loggers are needed"),
        (["eval.metric=[1,2]"], "eval.metric=[1, 2]: choose one of accuracy"),
        (["--cfg", "job", "--package", "x.y"], "--package x.y: the config has no such part"),
        (
            ["--cfg", "job", "--package", "checkpoint"],
            "--package checkpoint: this is no group, but a key that is null",
        ),
    ],
)
def test_refused_at_once(metarun, typed, said):
    assert said in metarun.error(*typed)
    assert list(metarun.folder.iterdir()) == []


def test_more_seeds_than_files(metarun, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda what: (64, 64))
    said = metarun.error("seeds=60")
    assert said.startswith("seeds=60: each keeps 2 files open, and this process may open 64: at mo")
    assert "at most 12, or raise" in said


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_taken_as_it_is_typed(metarun, pictures, name):
    """Whatever Hydra would read in it."""
    (metarun.folder / name).symlink_to(pictures)
    rest = [o for o in metarun.data if not o.startswith("data.root=")]
    short = ["train.steps=0", "eval.episodes=2", "tracker=none", "device=cpu"]
    metarun.main(*rest, f"data.root={name}", *short, "hydra.run.dir=outputs/a")
    assert metarun.results("a")["config"]["data"]["root"] == name


def test_a_path_in_quotes_and_several_in_a_sweep(metarun):
    """Are read as ever."""
    said = metarun.error("data=image_folder", "data.root='no such'")
    assert "no such" in said
    assert "'no such'" not in said.replace("data.root='no such'", "")
    said = metarun.error("data=image_folder", "data.root=a,b")
    assert "several values are a sweep: add -m" in said


def test_a_very_long_value_is_cut(metarun):
    """Its beginning tells the key, and the end what is needed."""
    said = metarun.error(f"optim.lr=[{100_000 * 'a'}]")
    assert len(said) < 3_100
    assert said.startswith("optim.lr=[aaa")
    assert said.endswith("a]: a number is needed")


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("optim/mine", "lr: 0.001", "optim._target_: it cannot be left out"),
        ("algo/mine", "", "algo: it cannot be left out"),
        ("optim/mine", "defaults: 5", "the config cannot be composed: Invalid defaults list"),
        ("data/mine", "defaults: [5]", "the config cannot be composed: Unsupported type in defa"),
        ("eval/mine", "defaults: [_self_, mine]", "a file or a value is within itself"),
        ("data/mine", "[1, 2]", "conf/data/mine.yaml: a config file holds keys"),
        ("augment/mine", "a: 1", "augment._target_: it cannot be left out"),
        (
            "schedule/mine",
            "{_target_: torch.optim.lr_scheduler.CosineAnnealingLR, _partial_: true, T_max: x, "
            "eta_min: 0.0}",
            "schedule.T_max=x: a whole number is needed",
        ),
        (
            "augment/mine",
            "{_target_: metarun.augment.sequence.Sequence, crop: {a: 1}}",
            "augment.crop: an augmentation is needed, with its _target_",
        ),
        (
            "augment/mine",
            "{_target_: metarun.augment.sequence.Sequence, "
            "crop: {_target_: metarun.augment.crop.PaddedCrop, padding: 4, x: 1}}",
            "metarun.augment.crop.PaddedCrop has no x",
        ),
        (
            "augment/mine",
            "{_target_: metarun.augment.sequence.Sequence, 5: x}",
            "augment: 5 is no name of a key: put it in quotes",
        ),
        (
            "augment/mine",
            "{_target_: metarun.augment.sequence.Sequence, "
            "a.b: {_target_: metarun.augment.crop.PaddedCrop, padding: 4}}",
            "augment: a.b is no name of a key: write it without a dot",
        ),
        (
            "augment/mine",
            "{c: {a.b: {_target_: metarun.augment.crop.PaddedCrop, padding: 4}}, "
            "_target_: metarun.augment.sequence.Sequence}",
            "augment.c: a.b is no name of a key: write it without a dot",
        ),
        ("table/mine", "{cells: [{5: x}]}", "table.title: it cannot be left out"),
        ("table/mine", f"a: {5_000 * '7'}", "it cannot be read"),
    ],
)
def test_files_of_ones_own(metarun, path, text, said):
    conf = own(metarun, f"{path}.yaml", text)
    short = ["train.steps=0", "eval.episodes=2", "tracker=none", "device=cpu"]
    assert said in metarun.error(*conf, *metarun.data, *short, path.replace("/", "="))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("paper", ".nan", " of a: it must be finite"),
        ("ci95", "-1", "and ci95 at least 0"),
        ("ci95", ".inf", " of a: it must be finite"),
        ("paper", "x", "=x: a number or null is needed"),
        ("paper", 400 * "7", "it must be finite, at most 3.4e+38"),
        ("ci95", "-0x" + 5_000 * "f", "it must be finite, at most 3.4e+38"),
    ],
)
def test_a_tables_figures(metarun, key, value, said):
    figures = {"paper": "50.0", "ci95": "null"} | {key: value}
    cell = f"{{experiment: a, paper: {figures['paper']}, ci95: {figures['ci95']}, read_in: x}}"
    text = f"{{title: x, source: x, data: x, metric: accuracy, seeds: [0], cells: [{cell}]}}"
    conf = own(metarun, "table/mine.yaml", text)
    told = metarun.error(*conf, "table=mine")
    assert f"table.cells.{key}" in told
    assert said in told


def own(metarun, path, text):
    """A config folder with this file."""
    file = metarun.folder / "conf" / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return ["--config-dir", str(metarun.folder / "conf")]


def test_an_own_test_without_a_sampler(metarun):
    conf = own(metarun, "eval/mine.yaml", "episodes: 5\n")
    assert "it cannot be left out" in metarun.error(*conf, "eval=mine")


def test_own_data_without_what_it_needs(metarun):
    conf = own(metarun, "data/mine.yaml", "_target_: metarun.data.csv_file.load\n")
    assert "missing a required argument" in metarun.error(*conf, "data=mine")


def test_an_own_launcher_that_is_not_there(metarun):
    conf = own(metarun, "hydra/launcher/mine.yaml", "_target_: hydra_plugins.evil.Launcher\n")
    said = metarun.error(*conf, "-m", "hydra/launcher=mine", "seed=0,1")
    assert said == "hydra/launcher=mine: there is no launcher hydra_plugins.evil.Launcher"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is not enough memory: lower sampler.tasks"),
        (
            RuntimeError("[enforce] . DefaultCPUAllocator: can't allocate"),
            "there is not enough mem",
        ),
        (RuntimeError("Storage size calculation overflowed with sizes=[9]"), "there is not enough"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file system"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "too many open files: lower seeds="),
    ],
)
def test_what_a_machine_does_not_have(metarun, monkeypatch, error, said):
    def run(*_):
        raise error

    monkeypatch.setattr("metarun.experiment.run", run)
    assert metarun.error(*metarun.data).startswith(said)


def test_a_mistake_of_the_program_keeps_its_traceback(metarun, monkeypatch):
    def run(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("metarun.experiment.run", run)
    with pytest.raises(RuntimeError, match="shapes"):
        metarun.main(*metarun.data)


def test_a_folder_that_is_gone(metarun, monkeypatch):
    gone = metarun.folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert metarun.error() == "the current folder is not there any more: change to another"
    os.chdir(metarun.folder)
