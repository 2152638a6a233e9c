"""A sweep and a paper's table on a real SLURM of this machine alone, in spite of what befalls jobs.

Installs Debian's SLURM if there is none (as root, with apt-get), starts munge, the controller and
one node on loopback with all their files in a folder of their own, runs

    metarun -m hydra/launcher=slurm algo=protonet,matching seed=0,1

on it, and while that runs requeues one job, as a preemption does, and tells another that its time
is up. The sweep must finish, both jobs must have gone on from where they were stopped, and their
results be those of runs never stopped. SLURM holds a requeued job back for two minutes. Then

    metarun table=snell2017_omniglot data=glyphs seed=0 hydra/launcher=slurm

is started with few steps, one cell is killed midway, and the same command must end with all cells,
the killed one taken up again. Everything started here is stopped again.

    python scripts/slurm_smoke.py --folder /tmp/slurm_smoke [--steps 1500] [--part table] [--keep]
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LAUNCHER = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
TINY = ["train.log_every=1", "eval.episodes=20", "eval.val_episodes=20", "backbone.width=8"]
TINY += ["device=cpu", "tracker=none"]
PORTS = (26817, 26818)  # not SLURM's own, which may be in use
CONF = """\
ClusterName=smoke
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    """Install, start, run, check, stop."""
    asked = arguments()
    if shutil.which("slurmctld") is None:
        print("installing slurm-wlm and munge", flush=True)
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge")
    asked.folder.mkdir(parents=True)  # an error if it exists: nothing is overwritten
    folder = asked.folder.resolve()
    daemons: list[subprocess.Popen] = []
    try:
        start_slurm(folder, daemons)
        for part in asked.part:
            PARTS[part](folder, asked.steps)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
    if not asked.keep:
        shutil.rmtree(folder)


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="new, for all that is written")
    parser.add_argument("--steps", type=int, default=1500, help="of training, of each job")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="not all")
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    return parser.parse_args()


def start_slurm(folder: Path, daemons: list[subprocess.Popen]) -> None:
    """Starts munge, the controller and the node, whose processes `daemons` then holds."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    host = socket.gethostname()
    text = CONF.format(host=host, folder=folder, ports=PORTS, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = [f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
    commands = {
        "munged": ["munged", "--foreground", *munge],
        "slurmctld": ["slurmctld", "-D", "-c"],
        "slurmd": ["slurmd", "-D", "-N", host],
    }
    for name, command in commands.items():
        log = open(folder / f"{name}.out", "wb")  # noqa: SIM115  # the daemon's, as long as it lives
        daemons.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        time.sleep(1)
        if daemons[-1].poll() is not None:
            told = (folder / f"{name}.out").read_text(encoding="utf-8")
            sys.exit(f"{name} did not start:\n{told}")
    until("the node is idle", lambda: "idle" in said("sinfo", "-h", "-o", "%T"), 30)
    print(said("sinfo"), flush=True)


def sweep(folder: Path, steps: int) -> None:
    """Runs the sweep, sends two jobs back to the queue, and checks what comes out."""
    runs = folder / "sweep"
    tiny = [f"train.steps={steps}", "train.val_every=100000", *TINY]
    command = ["-m", *LAUNCHER, "algo=protonet,matching", "seed=0,1", *tiny]
    with metarun([*command, f"hydra.sweep.dir={runs}"]) as launched:
        stopped = [begun(runs, "glyphs_protonet", seed) for seed in (0, 1)]
        array = said("squeue", "-h", "-o", "%F").split()[0]
        for order in (f"scancel --signal=USR2 {array}_1", f"scontrol requeue {array}_0"):
            print("$", order, flush=True)
            # scancel of SLURM 22.05 sends the signal, is told "try again later", and does so.
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(order.split(), timeout=3, stderr=subprocess.DEVNULL)
        for path in stopped:
            until("it stops", lambda p=path: results(p).get("status") == "interrupted", 60)
            print(path.name, results(path)["error"], flush=True)
        print(said("squeue"), flush=True)
        until("the sweep is over", lambda: launched.poll() is not None, 900)
    if launched.returncode:
        sys.exit(f"the sweep ended with exit code {launched.returncode}")
    told_finished(runs, count=4)
    for seed, path in enumerate(stopped):
        told = gone_on(runs, f"*_{seed}")
        alone = folder / f"alone_{seed}"
        command = ["algo=protonet", f"seed={seed}", *tiny, f"hydra.run.dir={alone}"]
        with metarun(command, stdout=subprocess.DEVNULL) as once:
            once.wait()
        same = results(alone)["test"] == results(path)["test"]
        print(f"{path.name}: {told}; the result of a run never stopped: {same}")
        assert told
        assert same


def table(folder: Path, steps: int) -> None:
    """Runs a paper's table with few steps, kills a cell, and lets the same command end it."""
    runs = folder / "table"
    command = ["table=snell2017_omniglot", "data=glyphs", "seed=0", *LAUNCHER]
    command += [f"train.steps={steps}", "train.val_every=20", "sampler.way=20", *TINY]
    command += [f"hydra.sweep.dir={runs}"]
    with metarun(command) as launched:
        killed = begun(runs, "snell2017-omniglot_5way_1shot", 0)
        until("a checkpoint", lambda: (killed / "checkpoints" / "last.pt").exists(), 120)
        kill(task=0)
        until("the other cells are done", lambda: not said("squeue", "-h"), 900)
        launched.terminate()  # without SLURM's accounting it waits for the killed job
        until("its launcher has left", lambda: launched.poll() is not None, 60)
    print(f"the killed cell: {results(killed)['status']}, by now in nobody's hands", flush=True)
    assert results(killed)["status"] == "running", "it could not say that it was killed"
    others = written(results_below(runs) - {killed})
    assert len(others) == 3
    with metarun(command) as launched:
        until("the table is over", lambda: launched.poll() is not None, 900)
    assert launched.returncode == 0
    told_finished(runs, count=4)
    told = gone_on(runs, "*")
    print(f"the killed cell: {told}")
    assert told
    assert written(results_below(runs) - {killed}) == others, "done, and left alone"


def kill(task: int) -> None:
    """Kills this task of the array without a warning, as a machine does that runs out of memory."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # one that has ended, or of a user whom we are not to see
            environment = set(
                (process / "environ").read_text(encoding="utf-8", errors="replace").split("\0")
            )
            ours = {f"SLURM_CONF={os.environ['SLURM_CONF']}", f"SLURM_ARRAY_TASK_ID={task}"}
            if ours <= environment:
                print("$ kill -KILL", process.name, flush=True)
                os.kill(int(process.name), signal.SIGKILL)


PARTS = {"sweep": sweep, "table": table}


@contextmanager
def metarun(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    """The command line, started; what it has begun is stopped if this block is left too early."""
    print("$", " ".join(["metarun", *command]), flush=True)
    launched = subprocess.Popen([sys.executable, "-m", "metarun", *command], **options)
    try:
        yield launched
    finally:
        if launched.poll() is None:
            launched.terminate()
            subprocess.run(["scancel", "--user=root"], check=False)


def begun(sweep: Path, what: str, seed: int) -> Path:
    """The folder of the run of this seed, once that trains."""

    def trains() -> bool:
        return any(lines(path / "metrics.jsonl") > 20 for path in sweep.glob(folders(what, seed)))

    until(f"{what} of seed {seed} trains", trains, 300)
    (folder,) = sweep.glob(folders(what, seed))
    return folder


def folders(what: str, seed: int | str) -> str:
    """The pattern of a sweep's run folders: of an experiment, or a data set and a method."""
    return f"{what}/seed{seed}-*"


def results_below(sweep: Path) -> set[Path]:
    """The folders of the sweep's runs that have begun."""
    return {path.parent for path in sweep.glob(f"{folders('*', '*')}/results.json")}


def written(folders: set[Path]) -> dict[Path, int]:
    """When the results of each run were last written."""
    return {folder: (folder / "results.json").stat().st_mtime_ns for folder in folders}


def told_finished(sweep: Path, count: int) -> None:
    """Tells how the runs of the sweep stand, so many, all of which must be finished."""
    found = {path: results(path) for path in sorted(results_below(sweep))}
    for path, of_job in found.items():
        trained, accuracy = of_job["train"]["steps"], of_job["test"]["accuracy"]
        print(path.relative_to(sweep), of_job["status"], trained, f"{accuracy:.4f}", flush=True)
    assert len(found) == count
    assert all(of_job["status"] == "finished" for of_job in found.values())


def gone_on(sweep: Path, job: str) -> list[str]:
    """What the jobs said when they went on with a run."""
    logs = [
        log.read_text(encoding="utf-8") for log in (sweep / ".submitit").glob(f"{job}/*_log.out")
    ]
    return [line for log in logs for line in log.splitlines() if line.startswith("going on")]


def results(folder: Path) -> dict:
    """The run's results.json; empty before there is one."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def lines(path: Path) -> int:
    """How many lines the file has."""
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def run(*command: str) -> None:
    """Runs it; an error if it fails."""
    subprocess.run(command, check=True)


def said(*command: str) -> str:
    """What it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(what: str, done: Callable[[], bool], seconds: float) -> None:
    """Waits for it; leaves when it has taken too long."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            sys.exit(f"after {seconds:.0f} s still waiting: {what}")
        time.sleep(1)


if __name__ == "__main__":
    main()
