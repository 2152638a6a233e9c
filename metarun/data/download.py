"""Fetching one published file: resumed where it stopped, checked, and whole or not there at all."""

import hashlib
import http.client
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock

from metarun.data.store import task
from metarun.errors import UserError
from metarun.folders import none_left_empty
from metarun.tracking.progress import track

TIMEOUT = 10  # seconds without a byte; a machine without network should say so soon
CHUNK = 1 << 16
THIS_MACHINE = ("127.0.0.1", "::1", "localhost")  # which nobody can listen in on the way to


class OnlyHttps(HTTPRedirectHandler):
    """Follows a redirect to where nobody on the way can change what is sent."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        refuse_insecure(newurl, ours=is_this_machine(req.full_url))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def refuse_insecure(url: str, ours: bool) -> None:
    """Raise OSError unless the URL is of HTTPS, or of a server on this machine where that is
    `ours`."""
    if urlsplit(url).scheme != "https" and not (ours and is_this_machine(url)):
        raise OSError(f"{url} is not https")


def is_this_machine(url: str) -> bool:
    """Whether the URL is of a web server on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in THIS_MACHINE


def download(urls: str | Sequence[str], path: Path, md5: str | None) -> None:
    """Put the file whose MD5 is `md5` at `path`, from the first of `urls` that sends it.

    `md5` is None where the publisher gives none. What an earlier try left in `path`.part is
    continued. Only HTTPS is used, in redirects too. Raises UserError, which tells how to fetch the
    file by hand, when the folder fails, or for every mirror the network does or the content is
    another.
    """
    if task.get() == "verify":
        raise UserError(f"{path} is missing: metarun mode=prepare fetches it")
    mirrors = [urls] if isinstance(urls, str) else urls
    try:
        with none_left_empty(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(path.name + ".lock")
            with FileLock(lock):
                if path.exists():  # another process was faster
                    return
                failures = []
                for url in mirrors:
                    failure = fetch(url, path, md5)
                    if failure is None:
                        return
                    failures.append(failure)
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or path} ({error.strerror}): "
            "set data.root to a folder that can be written"
        ) from None
    raise UserError(
        f"{'; '.join(dict.fromkeys(failures))}: fetch {' or '.join(mirrors)} on a machine with "
        f"network and put it in {path.parent}"
    )


def fetch(url: str, path: Path, md5: str | None) -> str | None:
    """Put the file at `url` at `path`; if that cannot be done, why. OSError if the disk fails."""
    part = path.with_name(path.name + ".part")
    try:
        continued = part.exists()
        receive(url, part)
        if continued and md5 and file_md5(part) != md5:  # the earlier part was of something else
            part.unlink()
            receive(url, part)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        if isinstance(error, OSError) and error.filename and not isinstance(error, HTTPError):
            raise
        return f"cannot download {path.name} ({getattr(error, 'reason', None) or error})"
    if md5 and file_md5(part) != md5:
        part.unlink()
        return f"what {url} sent is not the published {path.name}"
    os.replace(part, path)
    return None


def receive(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at `url`; OSError when the rest did not come."""
    refuse_insecure(url, ours=True)
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = build_opener(OnlyHttps).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        if not have or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        return  # nothing beyond what is there: the checksum will tell whether that is the file
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0  # a server that knows no ranges sends all of it again
        length = int(response.headers.get("Content-Length") or 0)
        with open(part, "ab" if have else "wb") as file:
            for chunk in track(
                chunks(response), f"Downloading {url.rsplit('/', 1)[-1]}", -(-length // CHUNK)
            ):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    if length and part.stat().st_size != have + length:
        raise OSError("the connection broke; the next try goes on from there")


def chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body of the response, in pieces of CHUNK bytes."""
    while chunk := response.read(CHUNK):
        yield chunk


def file_md5(path: Path) -> str:
    """MD5 of the file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
