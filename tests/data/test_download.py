import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import Request

import pytest

from metarun.data import images
from metarun.data.download import OnlyHttps, download
from metarun.errors import UserError

CONTENT = bytes(i * i % 251 for i in range(200_000))
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """A loopback server of CONTENT; it can break off early or know nothing of ranges."""

    def __init__(self):
        self.requested = []  # the Range header of each request
        self.ranges = True
        self.break_at = None  # send no byte from here on
        self.missing = False
        self.moved_to = None
        self.content = CONTENT
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requested.append(asked)
                start = int(asked[len("bytes=") : -1]) if asked and outer.ranges else 0
                if outer.moved_to:
                    self.send_response(302)
                    self.send_header("Location", outer.moved_to)
                    self.end_headers()
                    return
                if outer.missing or start >= len(outer.content):
                    self.send_error(404 if outer.missing else 416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(outer.content) - start))
                self.end_headers()
                self.wfile.write(outer.content[start : outer.break_at])

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.zip"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_whole_file(server, tmp_path):
    path = tmp_path / "new" / "set.zip"
    download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert not path.with_name("set.zip.part").exists()
    download(server.url, path, MD5)
    assert server.requested == [None], "what is there is not fetched again"


def test_a_broken_download_is_continued(server, tmp_path):
    path = tmp_path / "set.zip"
    server.break_at = 150_000
    with pytest.raises(UserError, match="goes on from there"):
        download(server.url, path, MD5)
    assert not path.exists()
    server.break_at = None
    download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.requested == [None, "bytes=150000-"]


def test_a_server_without_ranges(server, tmp_path):
    path = tmp_path / "set.zip"
    (tmp_path / "set.zip.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT


def test_all_of_it_was_there_but_for_the_name(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "set.zip", MD5)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_other_content_is_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(UserError, match="not the published"):
        download(server.url, tmp_path / "set.zip", MD5)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    server.content = CONTENT
    download(server.url, tmp_path / "set.zip", MD5)


def test_no_network_says_what_to_put_where(tmp_path):
    """And makes no folder, which may have been a misspelt one."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/set.zip"
        with pytest.raises(UserError) as told:
            download(url, tmp_path / "new" / "omniglot" / "set.zip", MD5)
    assert list(tmp_path.iterdir()) == []
    assert "cannot download set.zip" in str(told.value)
    assert url in str(told.value)
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_wrong_part_is_thrown_away(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"something else")
    download(server.url, tmp_path / "set.zip", MD5)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_missing_page_is_told(server, tmp_path):
    server.missing = True
    with pytest.raises(UserError, match=r"cannot download set\.zip \(Not Found\)"):
        download(server.url, tmp_path / "set.zip", MD5)
    assert not (tmp_path / "set.zip.part").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"set data\.root"):
        download("http://127.0.0.1:9/set.zip", tmp_path / "file" / "set.zip", MD5)


def test_mirrors_are_tried_in_turn(server, tmp_path):
    """One that is away and one that sends something else are passed over."""
    other = Server()
    other.content = CONTENT[::-1]
    urls = ["http://127.0.0.1:9/set.zip", other.url, server.url]
    download(urls, tmp_path / "set.zip", MD5)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert (len(other.requested), len(server.requested)) == (1, 1)
    other.http.shutdown()
    other.http.server_close()


def test_a_mirror_goes_on_where_another_broke_off(server, tmp_path):
    broken = Server()
    broken.break_at = 150_000
    download([broken.url, server.url], tmp_path / "set.zip", MD5)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert server.requested == ["bytes=150000-"]
    broken.http.shutdown()
    broken.http.server_close()


def test_no_mirror_has_it(server, tmp_path):
    """All of them are named, and what each said."""
    server.missing = True
    with pytest.raises(UserError) as told:
        download(["http://127.0.0.1:9/set.zip", server.url], tmp_path / "set.zip", MD5)
    for part in ("Connection refused", "Not Found", "127.0.0.1:9/set.zip or", server.url):
        assert part in str(told.value)


def test_a_file_without_a_published_checksum(server, tmp_path):
    download(server.url, tmp_path / "set.zip", None)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url", ["http://example.org/set.zip", "ftp://example.org/set.zip", "file:///etc/hostname"]
)
def test_only_https(tmp_path, url):
    """What is sent in the clear can be changed on the way; nothing is asked for."""
    with pytest.raises(UserError, match=r"is not https\): fetch"):
        download(url, tmp_path / "set.zip", MD5)


@pytest.mark.parametrize("to", ["http://example.org/set.zip", "ftp://example.org/set.zip"])
def test_no_redirect_to_less(server, tmp_path, to):
    server.moved_to = to
    with pytest.raises(UserError, match=r"example\.org/set\.zip is not https"):
        download(server.url, tmp_path / "set.zip", MD5)
    assert not (tmp_path / "set.zip").exists()


def test_https_is_not_left_for_this_machine_either():
    asked = Request("https://example.org/set.zip")
    with pytest.raises(OSError, match="is not https"):
        OnlyHttps().redirect_request(asked, None, 302, "", {}, "http://127.0.0.1/set.zip")
    again = OnlyHttps().redirect_request(asked, None, 302, "", {}, "https://example.com/set.zip")
    assert again.full_url == "https://example.com/set.zip"


def test_every_published_address_is_https():
    """Those of our data sets, as their files have them."""
    sources = Path(images.__file__).parent.rglob("*.py")
    assert not [path.name for path in sources if '"http://' in path.read_text()]
