"""Fetching one published file: resumed where it stopped, checked, and whole or not there at all."""

import hashlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from metarun.data.store import task
from metarun.errors import UserError
from metarun.tracking.progress import track

TIMEOUT = 10  # seconds without a byte; a machine without network should say so soon
CHUNK = 1 << 16


def download(url: str, path: Path, md5: str) -> None:
    """Put the file at `url`, whose MD5 is `md5`, at `path`.

    What an earlier try left in `path`.part is continued. Raises UserError, which tells how to fetch
    the file by hand, when the network or the folder fails or the content is another.
    """
    part = path.with_name(path.name + ".part")
    if task.get() == "verify":
        raise UserError(f"{path} is missing: metarun mode=prepare fetches it")
    by_hand = f"fetch {url} on a machine with network and put it in {path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            if path.exists():  # another process was faster
                return
            continued = part.exists()
            receive(url, part)
            if continued and file_md5(part) != md5:  # the earlier part was of something else
                part.unlink()
                receive(url, part)
            if file_md5(part) != md5:
                part.unlink()
                raise UserError(f"what {url} sent is not the published {path.name}: {by_hand}")
            os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        if isinstance(error, OSError) and error.filename and not isinstance(error, HTTPError):
            raise UserError(
                f"cannot write {error.filename} ({error.strerror}): "
                "set data.root to a folder that can be written"
            ) from None
        raise UserError(f"cannot download {path.name} ({reason}): {by_hand}") from None


def receive(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at `url`; OSError when the rest did not come."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT)
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
