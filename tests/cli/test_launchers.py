import importlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from omegaconf import OmegaConf

from metarun.cli import launchers
from metarun.cli.check import check
from metarun.configs.rules import conf_folder
from metarun.errors import UserError
from tests.test_experiment import arguments, wait_for_checkpoint

CONF = conf_folder() / "hydra" / "launcher"
PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher.config",
    "slurm": "hydra_plugins.hydra_submitit_launcher.config",
    "ray": "hydra_plugins.hydra_ray_launcher._config",
}
SCHEMAS = {"joblib": "JobLibLauncherConf", "slurm": "SlurmQueueConf", "ray": "RayLauncherConf"}


@pytest.fixture
def everything_installed(monkeypatch):
    """A machine where every launcher could start jobs."""
    monkeypatch.setattr(launchers, "is_installed", lambda module: True)
    monkeypatch.setattr(launchers.shutil, "which", lambda program: f"/usr/bin/{program}")


def test_every_launcher_is_tested():
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(PLUGINS)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_launcher_that_is_not_installed(metarun, monkeypatch, name):
    monkeypatch.setattr(launchers, "is_installed", lambda module: False)
    said = metarun.error("-m", f"hydra/launcher={name}", "seed=0,1")
    assert said == f"hydra/launcher={name}: it must be installed: pip install 'metarun[{name}]'"
    assert not any(metarun.folder.iterdir())


@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher:UserWarning")  # as the command line does
@pytest.mark.parametrize("name", PLUGINS)
def test_a_launcher_composes(everything_installed, name):
    check([f"hydra/launcher={name}", "seed=0,1", "algo=protonet,maml"], None, True)


@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher:UserWarning")  # as the command line does
def test_jobs_may_share_a_gpu(everything_installed):
    """Ray takes a part of one."""
    check(["hydra/launcher=ray", "hydra.launcher.ray.remote.num_gpus=0.25", "seed=0,1"], None, True)


@pytest.mark.parametrize("name", PLUGINS)
def test_the_keys_are_the_plugins(name):
    """Each key of ours is one that the installed plugin has."""
    schema = getattr(importlib.import_module(PLUGINS[name]), SCHEMAS[name])
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert set(content) <= {field.name for field in fields(schema)}
    module, _, cls = content["_target_"].rpartition(".")
    assert hasattr(importlib.import_module(module), cls)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["hydra/launcher=slurm"],
            "hydra/launcher=slurm: it launches the jobs of a sweep: add -m",
        ),
        (
            ["-m", "hydra/launcher=joblib,slurm"],
            "hydra/launcher=joblib: nothing that is swept can choose the launcher",
        ),
        (
            ["-m", "hydra/launcher=cloud"],
            "hydra/launcher=cloud: there is no such choice; hydra/launcher can be joblib, ray,",
        ),
        (
            ["-m", "hydra/launcher=slurm", "hydra.launcher.partitions=gpu"],
            "hydra.launcher.partitions: there is no such key",
        ),
        (
            ["-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=0"],
            "hydra.launcher.cpus_per_task=0: it must be at least 1",
        ),
        (
            ["-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=1h"],
            "hydra.launcher.timeout_min=1h: a whole number is needed",
        ),
        (
            ["-m", "hydra/launcher=slurm", "hydra.launcher.comment='a\nb'"],
            "hydra.launcher.comment: it must be one line",
        ),
        (
            ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs=0: it must be at least 1, or -1 for all cores",
        ),
        (
            ["-m", "hydra/launcher=ray", "+hydra.launcher.ray.init.runtime_env.pip=[x]"],
            "hydra.launcher.ray.init.runtime_env.pip: there is no such key",
        ),
    ],
)
def test_what_a_launcher_refuses(metarun, everything_installed, overrides, said):
    assert metarun.error(*overrides).startswith(said)


def test_slurm_needs_its_commands(metarun, everything_installed, monkeypatch):
    monkeypatch.setattr(launchers.shutil, "which", lambda program: None)
    said = metarun.error("-m", "hydra/launcher=slurm", "seed=0,1")
    assert said == "hydra/launcher=slurm: there is no sbatch here: start it where SLURM takes jobs"


def test_an_experiment_that_is_swept_cannot_choose_the_launcher(metarun, everything_installed):
    """Hydra would not hear of it: the launcher is chosen before the jobs' configs are made."""
    experiments = metarun.folder / "conf" / "experiment"
    experiments.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /hydra/launcher: slurm]\n"
    for name in "ab":
        (experiments / f"{name}.yaml").write_text(text)
    mine = ["--config-dir", str(metarun.folder / "conf")]
    said = metarun.error(*mine, "-m", "experiment=a,b")
    assert said == "hydra/launcher=slurm: nothing that is swept can choose the launcher"
    check(["experiment=a", "seed=0,1"], mine[1], True)


def test_a_cluster_of_the_users_own(metarun, everything_installed):
    """A file on top of ours may say what it likes, but not what would run something."""
    folder = metarun.folder / "conf" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    head = "# Ours\ndefaults: [slurm, _self_]\n"
    (folder / "mine.yaml").write_text(f"{head}partition: gpu\ngpus_per_node: 1\n")
    (folder / "sly.yaml").write_text(f"{head}setup: [touch x]\n")
    (folder / "slyer.yaml").write_text(f"{head}additional_parameters: {{export: PYTHONPATH=x}}\n")
    mine = ["--config-dir", str(metarun.folder / "conf"), "-m", "seed=0,1"]
    check(["hydra/launcher=mine", "seed=0,1"], mine[1], True)
    said = metarun.error(*mine, "hydra/launcher=sly")
    assert said == "hydra.launcher.setup: it can be given on the command line only"
    assert "export: there is no such key" in metarun.error(*mine, "hydra/launcher=slyer")
    typed = ["hydra.launcher.setup=[module load cuda]", "seed=0,1"]
    typed += ["+hydra.launcher.additional_parameters.mail-type=END"]
    check(["hydra/launcher=mine", *typed], mine[1], True)


def test_what_a_launcher_complains_of_is_one_line():
    complaint = type("Failed", (RuntimeError,), {"__module__": "submitit.core.utils"})
    text = (
        "Job 5_1 (task: 0) with path x.pkl\nhas not produced any output\nError stream produced:\n"
    )
    assert launchers.complaint(complaint(text)).endswith("x.pkl has not produced any output")
    assert launchers.complaint(RuntimeError("of ours")) is None
    assert launchers.complaint(UserError("of ours")) is None


def test_a_job_that_slurm_requeues_goes_on(metarun, monkeypatch, capsys):
    """Told that its time is up it saves, and only then does the launcher queue it again; its second
    start goes on in the same folder without being told to."""
    program = (
        "import json, signal, sys\n"
        "def requeue(number, frame):\n"  # as submitit's listener
        "    status = json.load(open('outputs/a/results.json'))['status']\n"
        "    print('requeued:', status, flush=True)\n"
        "    sys.exit(255)\n"
        "signal.signal(signal.SIGUSR2, requeue)\n"
        "from metarun.cli.main import main\n"
        "main()\n"
    )
    given = arguments(metarun, "a")
    command = [sys.executable, "-c", program, *given, "train.steps=100000"]
    job = subprocess.Popen(command, cwd=metarun.folder, text=True, stdout=subprocess.PIPE)
    wait_for_checkpoint(metarun, "a")
    job.send_signal(signal.SIGUSR2)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 255
    assert said.splitlines()[-1] == "requeued: interrupted"
    step = int(metarun.results("a")["error"].split("step ")[1].split(" ")[0])
    checkpoint = metarun.folder / "outputs/a/checkpoints/last.pt"
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == step

    assert "already holds a run (interrupted)" in metarun.error(*given)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    metarun.main(*given, f"train.steps={step + 3}")
    assert f"going on after step {step}" in capsys.readouterr().out
    assert metarun.results("a")["train"]["steps"] == step + 3


def test_joblib_gives_the_results_of_one_process(metarun):
    """Two jobs at once, beside the same sweep one after the other, with as many threads."""
    sweep = ["-m", *arguments(metarun, "x")[:-1], "train.steps=2", "seed=0,1"]
    sweep.append("hydra.sweep.subdir=${seed}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        metarun.main(*sweep, "hydra.sweep.dir=outputs/basic")
    finally:
        torch.set_num_threads(threads)
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=outputs/joblib"]
    process = metarun.process(*sweep, *joblib, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "warning" not in said.lower()
    for seed in "01":
        one, two = (metarun.results(f"{name}/{seed}") for name in ("basic", "joblib"))
        assert one["test"] == two["test"]


def test_joblibs_jobs_end_with_a_process_that_is_killed(metarun):
    """They save and end, those that wait for a worker do not begin, and a run can go on."""
    common = [*arguments(metarun, "x")[:-1], "hydra.sweep.dir=outputs/s"]
    common += ["hydra.sweep.subdir=${seed}", "train.steps=100000"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2,3"]
    process = metarun.process("-m", *common, *joblib)
    for seed in "01":
        wait_for_checkpoint(metarun, f"s/{seed}")
    process.kill()
    process.communicate(timeout=60)  # until nobody is left who could write to its pipes
    steps = {}
    for seed in "01":
        results = metarun.results(f"s/{seed}")
        assert results["status"] == "interrupted"
        steps[seed] = int(re.match(r"stopped at step (\d+) of 100000", results["error"])[1])
    assert not (metarun.folder / "outputs/s/2/results.json").exists()
    longer = f"train.steps={steps['0'] + 1}"
    metarun.main("-m", *common, "seed=0", "resume=auto", longer)
    assert metarun.results("s/0")["status"] == "finished"
