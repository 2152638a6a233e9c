"""What W&B is given is read back from its files; services are made up on the loopback."""

import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import wandb
from wandb.proto import wandb_internal_pb2

from metarun.errors import UserError
from metarun.tracking import weights_and_biases
from metarun.tracking.weights_and_biases import WeightsAndBiases

KEY = "a" * 40  # of the right form
NO_STALL = 120  # seconds; generous, since all that is asked is that nothing waits for ever
PATIENCE = 60  # seconds for a service that does answer: a busy machine is no reason to be offline
TRAIN = {"step": 100, "episodes": 400, "train/loss": 0.5, "train/accuracy": 0.8}
VAL = {"step": 100, "episodes": 400, "val/accuracy": 0.9, "val/ci95": 0.02, "val/best": 0.9}
TEST = {"step": 100, "episodes": 400, "test/accuracy": 0.88, "test/ci95": 0.01}
RESULTS = {
    "status": "done",
    "test": {"accuracy": 0.88, "ci95": 0.01, "episodes": 600},
    "val": {"accuracy": 0.9, "ci95": 0.02},
    "train": {"steps": 100, "episodes_per_second": 1234.5},
}


@pytest.fixture(autouse=True)
def _no_account(tmp_path_factory, monkeypatch) -> Iterator[None]:
    """No key and no settings of the person who runs the tests, and a fresh wandb for each."""
    wandb.teardown()  # one that a test of another file has set up keeps the address it found
    home = tmp_path_factory.mktemp("home")
    for name in os.environ:
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def track(folder: Path, **changes) -> WeightsAndBiases:
    folder.mkdir(exist_ok=True)
    about = {"config": {"algo": {"name": "protonet"}, "way": 5}, "run_id": "run1", "name": "first"}
    return WeightsAndBiases(folder, **(about | changes))


def stored(folder: Path) -> list[list]:
    """The records of each W&B run of the folder, in the order in which the runs were made."""
    wandb.teardown()  # a run that has finished may still be on its way to the disk
    files = sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    return [scan(path) for path in files]


def scan(path: Path) -> list:
    """The records of a .wandb file: LevelDB's log format, after a head of 7 bytes."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    records, whole, at, block = [], b"", 7, 32768
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a head: the rest of the block is padding
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)  # after a checksum
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def items(entries) -> dict:
    """Keys and values of a protobuf list; a key may be nested."""
    return {
        "/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries
    }


def history(records: list) -> list[dict]:
    rows = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]


def summary(records: list) -> dict:
    merged: dict = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            merged |= items(record.summary.update)
    return merged


def only(records: list, kind: str) -> list:
    return [getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind]


def test_an_offline_run_holds_everything(tmp_path, capfd):
    tracker = track(tmp_path, mode="offline", group="sweep", tags=["a", "b"], project="few-shot")
    for record in (TRAIN, VAL, TEST):
        tracker.log(record)
    tracker.finish(RESULTS)
    tracker.close()
    tracker.close()

    (records,) = stored(tmp_path)
    run = only(records, "run")[0]
    assert (run.run_id, run.display_name, run.project) == ("run1", "first", "few-shot")
    assert (run.run_group, list(run.tags)) == ("sweep", ["a", "b"])
    config = items(run.config.update)
    assert config["algo"] == {"name": "protonet"}
    assert config["way"] == 5
    assert history(records) == [TRAIN, VAL, TEST]
    fields = summary(records)
    assert fields["test/accuracy"] == 0.88
    assert fields["test/ci95"] == 0.01
    assert fields["test/episodes"] == 600
    assert fields["val/best"] == 0.9
    assert fields["train/episodes_per_second"] == 1234.5
    metrics = {m.glob_name or m.name: m for m in only(records, "metric")}
    assert {"train/*", "val/*", "test/*", "episodes"} <= set(metrics)
    assert only(records, "exit")[0].exit_code == 0
    assert capfd.readouterr() == ("", "")  # the terminal belongs to others


def test_without_a_key_auto_is_offline_in_silence(tmp_path, capfd):
    tracker = track(tmp_path, mode="auto")
    assert (tracker.mode, tracker.url) == ("offline", None)
    tracker.close()
    assert capfd.readouterr() == ("", "")


def test_without_a_key_online_is_offline_with_a_line(tmp_path, capfd):
    tracker = track(tmp_path, mode="online")
    assert tracker.mode == "offline"
    tracker.log(TRAIN)
    tracker.close()
    assert history(stored(tmp_path)[0]) == [TRAIN]
    (line,) = capfd.readouterr().err.splitlines()
    assert "no API key was found" in line


def test_a_key_that_cannot_be_one_is_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    tracker = track(tmp_path, mode="online")
    assert tracker.mode == "offline"
    tracker.close()
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_disabled_writes_nothing(tmp_path):
    tracker = track(tmp_path, mode="disabled")
    tracker.log(TRAIN)
    tracker.pictures({"curves": tmp_path / "none.png"})
    tracker.finish(RESULTS)
    tracker.close()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "configured", "mode"),
    [
        ("disabled", "offline", "disabled"),
        ("offline", "disabled", "offline"),
        ("dryrun", "online", "offline"),
        ("", "disabled", "disabled"),
        ("nonsense", "disabled", "disabled"),
    ],
)
def test_wandb_mode_wins(monkeypatch, asked, configured, mode):
    monkeypatch.setenv("WANDB_MODE", asked)
    assert weights_and_biases.asked_mode(configured) == mode


def test_another_mode_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="tracker"):
        track(tmp_path, mode="on")


def test_a_resumed_offline_run_is_whole_in_its_newest_folder(tmp_path):
    first = track(tmp_path, mode="offline")
    first.log(TRAIN)
    first.close()
    later = TRAIN | {"step": 200, "train/loss": None}
    second = track(tmp_path, mode="offline", history=[TRAIN, VAL])
    second.log(later)
    second.finish(RESULTS)
    second.close()

    broken_off, whole = stored(tmp_path)
    assert only(broken_off, "exit")[0].exit_code == 1
    assert only(whole, "run")[0].run_id == only(broken_off, "run")[0].run_id == "run1"
    assert history(whole) == [TRAIN, VAL, later]


def test_runs_of_one_process_are_runs_of_their_own(tmp_path):
    for k in range(3):
        tracker = track(tmp_path / str(k), mode="offline", run_id=f"run{k}", config={"seed": k})
        tracker.log(TRAIN | {"step": k})
        tracker.close()
    for k in range(3):
        (records,) = stored(tmp_path / str(k))
        assert [row["step"] for row in history(records)] == [k]
        assert only(records, "run")[0].run_id == f"run{k}"


def test_the_checkpoint_and_the_pictures(tmp_path):
    from metarun.tracking.pictures import curves

    (tmp_path / "checkpoints").mkdir()
    torch.save({"w": torch.zeros(2)}, tmp_path / "checkpoints" / "best.pt")
    curves([TRAIN, VAL], tmp_path / "curves.png")
    tracker = track(tmp_path, mode="offline", artifact=True)
    tracker.pictures({"curves": tmp_path / "curves.png"})
    tracker.finish(RESULTS)
    tracker.close()
    (records,) = stored(tmp_path)
    (shown,) = history(records)
    assert shown["curves/_type"] == "image-file"
    (artifact,) = [a for a in only(records, "artifact") if a.type == "model"]
    assert [entry.path for entry in artifact.manifest.contents] == ["best.pt"]


@pytest.mark.parametrize("method", ["log", "summary", "finish", "log_artifact"])
def test_an_error_of_wandb_costs_one_line(tmp_path, capfd, monkeypatch, method):
    tracker = track(tmp_path, mode="offline", artifact=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"weights")

    class Broken:
        def __getattr__(self, name: str):
            if name == method:
                raise RuntimeError("wandb is not well\nsecond line")
            return getattr(run, name)

    run = tracker.run
    tracker.run = Broken()
    for record in (TRAIN, VAL, TEST):
        tracker.log(record)
    tracker.finish(RESULTS)
    tracker.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert "wandb is not well" in line


def test_an_error_at_the_start_costs_one_line(tmp_path, capfd, monkeypatch):
    def broken(**kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = track(tmp_path, mode="offline")
    assert tracker.mode == "disabled"
    tracker.log(TRAIN)
    tracker.finish(RESULTS)
    tracker.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert "no space left" in line


def test_the_helper_process_may_die(tmp_path):
    """The run goes on and ends in silence but for one line, and the next run is tracked again."""
    program = """
import os, signal, subprocess, sys
from pathlib import Path
from metarun.tracking.weights_and_biases import WeightsAndBiases
folder = Path(sys.argv[1])
tracker = WeightsAndBiases(folder, {}, mode="offline", run_id="run1")
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
for child in children:
    os.kill(int(child), signal.SIGKILL)
tracker.log({"step": 1})
tracker.finish({})
tracker.close()
(folder / "next").mkdir()
tracker = WeightsAndBiases(folder / "next", {}, mode="offline", run_id="run2")
tracker.log({"step": 2})
tracker.finish({})
tracker.close()
"""
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("needs Linux's list of child processes")
    ended = run_program(program, tmp_path)
    assert ended.returncode == 0
    assert ended.stdout == ""
    assert all(line.startswith("metarun: W&B") for line in ended.stderr.splitlines())
    assert 1 <= len(ended.stderr.splitlines()) <= 2
    assert history(stored(tmp_path / "next")[0]) == [{"step": 2}]


def run_program(
    program: str, folder: Path, *long_waits: str, **environment: str
) -> subprocess.CompletedProcess:
    program = program.replace("PATIENCE", str(PATIENCE))
    return subprocess.run(
        [sys.executable, "-c", program, str(folder), *long_waits],
        env=os.environ | {"PYTHONPATH": "."} | environment,
        capture_output=True,
        text=True,
        timeout=NO_STALL,
    )


ONE_RUN = """
import sys
from pathlib import Path
from metarun.tracking import weights_and_biases
from metarun.tracking.weights_and_biases import WeightsAndBiases
for wait in sys.argv[2:]:
    setattr(weights_and_biases, wait, PATIENCE)
tracker = WeightsAndBiases(Path(sys.argv[1]), {"way": 5}, mode=MODE, run_id="run1")
print(tracker.mode, tracker.url)
for step in range(5):
    if step == 2:
        FREEZE
    tracker.log({"step": step, "episodes": 4 * step, "train/loss": 0.5})
tracker.finish({"test": {"accuracy": 0.9, "ci95": 0.01, "episodes": 600}})
tracker.close()
"""


@pytest.fixture
def silent_service() -> Iterator[str]:
    """The address of a service that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_silent_service_does_not_stall(tmp_path, silent_service, mode):
    program = ONE_RUN.replace("MODE", repr(mode)).replace("FREEZE", "pass")
    ended = run_program(program, tmp_path, WANDB_BASE_URL=silent_service, WANDB_API_KEY=KEY)
    assert ended.returncode == 0
    assert ended.stdout == "offline None\n"
    assert ("did not answer" in ended.stderr) == (mode == "online")
    assert [row["step"] for row in history(stored(tmp_path)[0])] == list(range(5))


class Service:
    """As much of W&B's service as a run needs, and what it was sent. It can go dead."""

    def __init__(self) -> None:
        self.questions: list[dict] = []
        self.rows: list[dict] = []
        self.summary: dict = {}
        self.known: dict | None = None  # what it says of the run when asked whether it is resumed
        self.dead_after: Callable[[], bool] = lambda: False

    def answer(self, path: str, body: dict, address: str) -> dict:
        if path.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows += [json.loads(line) for line in lines]
            for line in body.get("files", {}).get("wandb-summary.json", {}).get("content", []):
                self.summary = json.loads(line)
            return {}
        self.questions.append(body)
        query, variables = body["query"], body.get("variables", {})
        if "upsertBucket" in query:
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "someone"}}
            bucket = {"id": "x", "name": "run1", "displayName": "first", "config": "{}"}
            bucket |= {"project": project, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": self.known is None}}}
        if "RunResumeStatus" in query:
            return {"data": {"model": self.known}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{address}/{f}"} for f in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        return {"data": {}}


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    """A service that answers, at WANDB_BASE_URL, and a key for it."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if service.dead_after():
                time.sleep(NO_STALL)
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer = service.answer(self.path, json.loads(body), os.environ["WANDB_BASE_URL"])
            self.reply(json.dumps(answer).encode())

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.reply(b"{}")

        def reply(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args) -> None:
            pass

    class Server(ThreadingHTTPServer):
        block_on_close = False

        def handle_error(self, *args) -> None:  # a connection that the client has dropped
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for wait in ("PROBE_SECONDS", "INIT_SECONDS", "FINISH_SECONDS"):
        monkeypatch.setattr(weights_and_biases, wait, PATIENCE)
    yield service
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_with_a_key_and_a_service_auto_is_online(tmp_path, service, monkeypatch, capfd, source):
    if source == "netrc":
        monkeypatch.delenv("WANDB_API_KEY")
        host = os.environ["WANDB_BASE_URL"].removeprefix("http://")
        Path(os.environ["NETRC"]).write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    tracker = track(tmp_path, mode="auto", group="sweep", tags=["a"], history=[TRAIN])
    assert tracker.mode == "online"
    assert tracker.url
    assert tracker.url.endswith("/runs/run1")
    tracker.log(VAL)
    tracker.finish(RESULTS)
    tracker.close()
    (created, *_) = [q["variables"] for q in service.questions if "upsertBucket" in q["query"]]
    assert created["groupName"] == "sweep"
    assert created["tags"] == ["a"]
    assert json.loads(created["config"])["way"]["value"] == 5
    # The service did not know the run, so it was given what was logged before.
    assert [row["episodes"] for row in service.rows] == [400, 400]
    assert service.rows[0]["train/loss"] == 0.5
    assert service.rows[1]["val/accuracy"] == 0.9
    assert service.summary["test/accuracy"] == 0.88
    assert capfd.readouterr() == ("", "")


def test_a_run_that_the_service_knows_is_continued(tmp_path, service):
    bucket = {"name": "run1", "id": "x", "historyLineCount": 1, "eventsLineCount": 0}
    bucket |= {"logLineCount": 0, "historyTail": json.dumps([json.dumps({"_step": 0})])}
    bucket |= {"eventsTail": "[]", "summaryMetrics": "{}", "displayName": "first", "config": "{}"}
    bucket |= {"tags": [], "wandbConfig": json.dumps({"t": 1})}
    entity = {"id": "e", "name": "someone"}
    service.known = {"id": "p", "name": "p", "entity": entity, "bucket": bucket}
    tracker = track(tmp_path, mode="online", history=[TRAIN])
    assert tracker.mode == "online"
    tracker.log(VAL)
    tracker.finish(RESULTS)
    tracker.close()
    assert [row["step"] for row in service.rows] == [100]
    assert "val/accuracy" in service.rows[0]


def test_a_service_that_refuses_the_run(tmp_path, service, capfd):
    """It answers, but not as a service of W&B does: one line, and an offline run."""
    service.answer = lambda path, body, address: {"errors": [{"message": "no such entity"}]}
    tracker = track(tmp_path, mode="auto")
    assert tracker.mode == "offline"
    tracker.log(TRAIN)
    tracker.close()
    assert history(stored(tmp_path)[-1]) == [TRAIN]
    (line,) = capfd.readouterr().err.splitlines()
    assert "W&B is offline" in line


def test_a_service_that_dies_in_the_middle_does_not_stall(tmp_path, service):
    frozen = tmp_path / "frozen"
    service.dead_after = frozen.exists
    freeze = f"Path({str(frozen)!r}).touch()"
    program = ONE_RUN.replace("MODE", "'auto'").replace("FREEZE", freeze)
    ended = run_program(program, tmp_path, "PROBE_SECONDS", "INIT_SECONDS")
    assert ended.returncode == 0
    assert ended.stdout.startswith("online http")
    (line,) = ended.stderr.splitlines()
    assert "wandb sync" in line
    assert [row["step"] for row in history(stored(tmp_path)[0])] == list(range(5))


def test_a_service_that_dies_at_the_start_does_not_stall(tmp_path, service):
    """It answers the probe, and nothing after it."""
    service.dead_after = lambda: bool(service.questions)
    program = ONE_RUN.replace("MODE", "'auto'").replace("FREEZE", "pass")
    ended = run_program(program, tmp_path, "PROBE_SECONDS")
    assert ended.returncode == 0
    assert ended.stdout == "offline None\n"
    (line,) = ended.stderr.splitlines()
    assert "W&B is offline" in line
    assert [row["step"] for row in history(stored(tmp_path)[-1])] == list(range(5))


def test_what_is_set_but_empty_counts_as_unset(tmp_path, monkeypatch):
    """For wandb too, which would refuse to start with it."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")
    tracker = track(tmp_path / "run", mode="offline")
    tracker.log(TRAIN)
    tracker.close()
    assert tracker.mode == "offline"
    assert not tracker.failed
    assert len(stored(tmp_path / "run")) == 1
