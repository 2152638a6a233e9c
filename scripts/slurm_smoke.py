"""A sweep on a real SLURM of this machine alone, two jobs of which are sent back to the queue.

Installs Debian's SLURM if there is none (as root, with apt-get), starts munge, the controller and
one node on loopback with all their files in a folder of their own, runs

    metarun -m hydra/launcher=slurm algo=protonet,matching seed=0,1

on it, and while that runs requeues one job, as a preemption does, and tells another that its time
is up. The sweep must finish, both jobs must have gone on from where they were stopped, and their
results be those of runs never stopped. SLURM holds a requeued job back for two minutes. Everything
started here is stopped again.

    python scripts/slurm_smoke.py --folder /tmp/slurm_smoke [--steps 1500] [--keep]
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
        sweep(folder, asked.steps)
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
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    return parser.parse_args()


def start_slurm(folder: Path, daemons: list[subprocess.Popen]) -> None:
    """Starts munge, the controller and the node, whose processes `daemons` then holds."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    host = socket.gethostname()
    text = CONF.format(host=host, folder=folder, ports=PORTS, cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
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
        log = open(folder / f"{name}.out", "w")  # noqa: SIM115  # the daemon's, as long as it lives
        daemons.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        time.sleep(1)
        if daemons[-1].poll() is not None:
            sys.exit(f"{name} did not start:\n{(folder / f'{name}.out').read_text()}")
    until("the node is idle", lambda: "idle" in said("sinfo", "-h", "-o", "%T"), 30)
    print(said("sinfo"), flush=True)


def sweep(folder: Path, steps: int) -> None:
    """Runs the sweep, sends two jobs back to the queue, and checks what comes out."""
    runs = folder / "sweep"
    tiny = [f"train.steps={steps}", "train.val_every=100000", "train.log_every=1"]
    tiny += ["eval.episodes=20", "eval.val_episodes=20", "backbone.width=8", "device=cpu"]
    tiny += ["tracker=none", f"hydra.sweep.dir={runs}"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
    metarun = [sys.executable, "-m", "metarun", "-m"]
    command = [*metarun, *launcher, "algo=protonet,matching", "seed=0,1", *tiny]
    print("$", " ".join(["metarun", *command[3:]]), flush=True)
    launched = subprocess.Popen(command)
    stopped = [runs / "0_glyphs_protonet", runs / "1_glyphs_protonet"]
    try:
        for path in stopped:
            until(f"{path.name} trains", lambda p=path: lines(p / "metrics.jsonl") > 20, 120)
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
    finally:
        if launched.poll() is None:
            launched.terminate()
            subprocess.run(["scancel", "--user=root"], check=False)
    if launched.returncode:
        sys.exit(f"the sweep ended with exit code {launched.returncode}")
    found = {path.parent.name: results(path.parent) for path in sorted(runs.glob("*/results.json"))}
    for name, of_job in found.items():
        print(name, of_job["status"], of_job["train"]["steps"], of_job["test"]["accuracy"])
    assert len(found) == 4
    assert all(of_job["status"] == "finished" for of_job in found.values())
    for seed, path in enumerate(stopped):
        (log,) = (runs / ".submitit").glob(f"*_{seed}/*_log.out")
        told = [line for line in log.read_text().splitlines() if line.startswith("going on")]
        alone = folder / f"alone_{seed}"
        command = [*metarun[:-1], "algo=protonet", f"seed={seed}", *tiny[:-1]]
        command += [f"hydra.run.dir={alone}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        same = results(alone)["test"] == found[path.name]["test"]
        print(f"{path.name}: {told}; the result of a run never stopped: {same}")
        assert told
        assert same


def results(folder: Path) -> dict:
    """The run's results.json; empty before there is one."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def lines(path: Path) -> int:
    """How many lines the file has."""
    return len(path.read_text().splitlines()) if path.exists() else 0


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
