"""A W&B server that is dead, slow or talkative: the run comes to the same, hardly later."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from forked import as_process
from harm.place import SHORT, Place, Tries, numbers

WORDS = [
    *(word for word in SHORT if word != "tracker=none"),
    "tracker=wandb",
    "tracker.mode=online",
]
KEY = 40 * "a"  # of the right form
AT_MOST = 60  # seconds more than without a server
TRIES = 2  # of each: one takes half a minute
TALK = 64 * 1024 * b"talk "


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Never answers."""
    time.sleep(600)


def slow(handler: BaseHTTPRequestHandler) -> None:
    """Answers a letter a second."""
    handler.send_response(200)
    handler.send_header("Content-Length", "600")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b" ")
        time.sleep(1)


def talkative(handler: BaseHTTPRequestHandler) -> None:
    """Answers without end."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(TALK)


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    """Answers with the right syntax, and nothing in it."""
    answer(handler, 200, b'{"data":{}}')


def angry(handler: BaseHTTPRequestHandler) -> None:
    """Answers that something is wrong with itself."""
    answer(handler, 500, TALK)


def turning(handler: BaseHTTPRequestHandler) -> None:
    """Sends to itself, again and again."""
    handler.send_response(307)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def answer(handler: BaseHTTPRequestHandler, code: int, body: bytes) -> None:
    """A whole answer."""
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(how: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that answers so, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            self.close_connection = True
            if self.raw_requestline and self.parse_request():
                how(self)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Nothing: who asked has gone."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def nobody() -> Iterator[str]:
    """The address of a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@cache
def alone(data: Path) -> tuple[float, dict[str, Any]]:
    """How many seconds a run takes without a server, and what it comes to."""
    with TemporaryDirectory() as folder:
        environment = {"METARUN_DATA": str(data), "WANDB_MODE": "disabled"}
        outcome = as_process(SHORT, Path(folder), environment)
        assert outcome.code == 0, outcome.told()
        return outcome.seconds, numbers(Path(folder))


def mirrored(server: Callable, place: Place) -> Tries:
    """Runs that are mirrored to such a server."""
    seconds, wanted = alone(place.cache)
    for _ in range(min(place.tries, TRIES)):
        folder = place.new()
        environment = {**place.environment, "WANDB_API_KEY": KEY, "HOME": str(folder)}
        with server() as address:
            environment |= {"WANDB_BASE_URL": address, "WANDB_MODE": ""}
            outcome = as_process(WORDS, folder, environment, seconds + 2 * AT_MOST)
        if outcome.code != 0 or "Traceback" in outcome.err:
            yield outcome.told()
        elif outcome.seconds > seconds + AT_MOST:
            yield f"{outcome.seconds:.0f} s, and {seconds:.0f} s without a server"
        else:
            yield None if numbers(folder) == wanted else f"another number: {numbers(folder)}"


SERVERS = {
    **{how.__name__: partial(serving, how) for how in (silent, slow, talkative)},
    **{how.__name__: partial(serving, how) for how in (nonsense, angry, turning)},
    "dead": nobody,
}
FAMILIES = {f"wandb-{name}": partial(mirrored, server) for name, server in SERVERS.items()}
