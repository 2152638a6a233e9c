"""Weights & Biases: a mirror of the records, and never a reason for a run to stop or to wait.

No key, no network, a service that does not answer or an error in wandb itself cost one line on
stderr and a few seconds; the run goes on, with its records in an offline folder where it can.
"""

import contextlib
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metarun.errors import UserError
from metarun.functional.metrics import METRICS
from metarun.tracking.jsonlines import Record

PROBE_SECONDS = 3  # for the service to show that it is there
INIT_SECONDS = 8  # for wandb.init, once the service has answered
FINISH_SECONDS = 10  # for what is not yet sent at the end of a run; the rest stays on disk
ARTIFACT_SECONDS = 300  # for a checkpoint, as long as the service goes on answering

MODES = ("auto", "online", "offline", "disabled")
OTHER_NAMES = {"dryrun": "offline", "run": "online"}  # wandb's old words in WANDB_MODE


class WeightsAndBiases:
    """One W&B run, from the first record to `close`; its files are in `folder`/wandb.

    `mode` is auto (online with a key and a service that answers, else offline), online, offline or
    disabled; the environment's WANDB_MODE wins over it. `history` is what the run logged before it
    was interrupted, for a service or a folder that does not have it. Afterwards `mode` is what came
    of it and `url` the page of the run, if it has one. Raises UserError for another mode.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        mode: str = "auto",
        project: str = "metarun",
        group: str | None = None,
        tags: list[str] | None = None,
        name: str | None = None,
        run_id: str | None = None,
        history: list[dict] | None = None,
        artifact: bool = False,
    ):
        self.folder = folder
        self.artifact = artifact
        self.url: str | None = None
        self.run: Any = None
        self.failed = False
        self.ended_well = False
        self.mode = asked_mode(mode)
        if self.mode == "disabled":
            return
        about = {
            "config": config,
            "project": project,
            "group": group,
            "tags": tags,
            "name": name,
            "id": run_id,
            "dir": str(folder.resolve()),
            "resume": "allow",
        }
        self.attempt("could not be started", lambda: self.start(about, history or []))
        if self.run is None:
            self.mode = "disabled"

    def log(self, record: Record) -> None:
        """One row of the run's history, with `step` and `episodes` as columns to draw against."""
        if self.run is not None and not self.failed:
            self.attempt("stopped taking records", lambda: self.run.log(record))

    def pictures(self, paths: dict[str, Path]) -> None:
        """Shows the picture files under these names, beside the curves."""
        if self.run is not None and not self.failed:
            self.attempt("did not take the pictures", lambda: self.log_pictures(paths))

    def finish(self, results: dict) -> None:
        """The results become summary fields, and the best checkpoint an artifact if asked for."""
        self.ended_well = True
        if self.run is not None and not self.failed:
            self.attempt("did not take the results", lambda: self.run.summary.update(flat(results)))
        if self.run is not None and not self.failed and self.artifact:
            self.attempt("did not take the checkpoint", self.log_checkpoint)

    def close(self) -> None:
        """Ends the W&B run, so that the next one of this process is a run of its own."""
        run, self.run = self.run, None
        if run is not None:
            code = 0 if self.ended_well else 1
            self.attempt("could not be closed", lambda: self.end(run, code))

    def attempt(self, complaint: str, action: Callable[[], None]) -> None:
        """Does it; an error costs one line, and nothing more is logged."""
        try:
            action()
        except Exception as error:  # whatever wandb raises, the run is worth more
            self.failed = True
            say(f"W&B {complaint} ({first_line(error)}); the run goes on")

    def start(self, about: dict[str, Any], history: list[dict]) -> None:
        """Opens the W&B run; `mode` becomes what was possible."""
        # wandb reports its own errors to the same service, and when that does not answer the
        # process waits for it at exit: 20 s more, in wandb 0.31.
        forget_empty_variables()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Here for the whole process, since what wandb says while logging in heeds only this.
        session = wandb.setup(wandb.Settings(silent=True, quiet=True)).settings
        if self.mode in ("auto", "online"):
            hindrance = no_way_online(session.base_url)
            if hindrance and self.mode == "online":
                say(f"W&B is offline: {hindrance}")
            self.mode = "offline" if hindrance else "online"
        try:
            self.run = wandb.init(**about, settings=self.settings())
        except Exception as error:
            if self.mode == "offline":
                raise
            say(f"W&B is offline: {first_line(error)}")
            # The failed run still holds its id in wandb's helper process; another one starts anew.
            wandb.teardown(exit_code=1)
            wandb.setup(wandb.Settings(silent=True, quiet=True))
            self.mode = "offline"
            self.run = wandb.init(**about, settings=self.settings())
        self.url = self.run.url
        for part in ("train", "val", "test"):
            self.run.define_metric(f"{part}/*", step_metric="step")
        self.run.define_metric("episodes", step_metric="step")
        # The service continues a run that it knows; an offline folder always begins at nothing.
        if not self.run.resumed:
            for record in history:
                self.run.log(record)

    def settings(self) -> Any:
        import wandb

        return wandb.Settings(
            mode="online" if self.mode == "online" else "offline",
            silent=True,
            quiet=True,
            console="off",  # the terminal's output belongs to the console tracker
            reinit="create_new",  # a run that someone left open is not taken for ours
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )

    def log_pictures(self, paths: dict[str, Path]) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)) for name, path in paths.items()})

    def log_checkpoint(self) -> None:
        import wandb
        from wandb.sdk.artifacts.exceptions import WaitTimeoutError

        best = self.folder / "checkpoints" / "best.pt"
        if not best.exists():
            return
        if self.mode == "online" and not answers(self.run.settings.base_url):
            raise TimeoutError(f"{self.run.settings.base_url} did not answer")
        artifact = wandb.Artifact(f"{self.run.id}-best", type="model")
        artifact.add_file(str(best))
        logged = self.run.log_artifact(artifact)
        if self.mode == "offline":
            return
        # The time to finish is short, so a big file is waited for here, while there is hope.
        for _ in range(ARTIFACT_SECONDS // FINISH_SECONDS):
            try:
                logged.wait(timeout=FINISH_SECONDS)
                return
            except WaitTimeoutError:
                if not answers(self.run.settings.base_url):
                    raise

    def end(self, run: Any, code: int) -> None:
        """Ends the run within the time for it; wandb is left fit for the next run."""
        import wandb

        try:
            run.finish(exit_code=code)
        except TimeoutError:
            say(
                f"W&B did not take everything within {FINISH_SECONDS} s; "
                f"send the rest with: wandb sync {run.settings.sync_dir}"
            )
        except Exception:
            # Its helper process may be gone, and would be missed by the next run and at exit.
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=code)
            raise


def forget_empty_variables() -> None:
    """Take what is set but empty out of the environment: wandb refuses to start with it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if not os.environ[name].strip():
            del os.environ[name]


def asked_mode(configured: str) -> str:
    """The mode that was asked for: WANDB_MODE if it is set, else the config's."""
    if configured not in MODES:
        raise UserError(f"tracker.mode={configured}, but it is one of {', '.join(MODES)}")
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    mode = OTHER_NAMES.get(asked, asked) or configured
    if mode not in MODES:
        say(f"WANDB_MODE={asked} is not one of {', '.join(MODES)}; taking {configured}")
        return configured
    return mode


def no_way_online(base_url: str) -> str | None:
    """What stands against logging to the service, in words; None when nothing does."""
    from wandb.sdk.lib.wbauth import authenticate_session

    # The look-up of wandb.init itself: environment, netrc, wandb's settings files. It raises for a
    # key that cannot be one.
    try:
        found = authenticate_session(host=base_url, source="metarun", prompt=False)
    except Exception as error:
        return first_line(error)
    if found is None:
        return "no API key was found (`wandb login` stores one)"
    if not answers(base_url):
        return f"{base_url} did not answer within {PROBE_SECONDS} s"
    return None


def answers(base_url: str) -> bool:
    """Whether the service at this address answers a request, be it with a refusal."""
    answered = threading.Event()

    def ask() -> None:
        # The address that wandb.init will need: a host may answer elsewhere and be stuck there.
        question = urllib.request.Request(
            base_url.rstrip("/") + "/graphql",
            data=b'{"query": "{ serverInfo { __typename } }"}',
            headers={"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(question, timeout=PROBE_SECONDS).close()
            answered.set()
        except urllib.error.HTTPError as refusal:
            if refusal.code < 500:
                answered.set()
        except OSError:
            pass

    # In a thread, because the timeout of a request does not bound looking its host up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()


def flat(results: dict) -> dict[str, Any]:
    """The numbers of results.json under the names of the records: test/accuracy, val/best."""
    summary = {
        f"{part}/{key}": value
        for part in ("train", "test")
        for key, value in (results.get(part) or {}).items()
        if isinstance(value, int | float)
    }
    for name, measure in ((results.get("test") or {}).get("measures") or {}).items():
        summary[f"test/{name}"] = measure["mean"]
    for metric in METRICS.keys() & (results.get("val") or {}).keys():
        summary["val/best"] = results["val"][metric]
    return summary


def first_line(error: Exception) -> str:
    lines = f"{type(error).__name__}: {error}".splitlines()
    several = 3 if "validation error" in lines[0] else 1  # which names the setting, and then why
    return " ".join(" ".join(lines[:several]).split()).rstrip(": ")


def say(text: str) -> None:
    print(f"metarun: {text}", file=sys.stderr, flush=True)
