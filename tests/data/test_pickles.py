import io
import pickle
import subprocess

import numpy as np
import pytest

from metarun.data import pickles
from metarun.errors import UserError


class Sly:
    def __reduce__(self):
        return subprocess.check_output, (["touch", "sly"],)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data(tmp_path, protocol):
    content = {
        "data": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "strided": np.arange(12).reshape(3, 4).T,
        b"labels": [np.int64(3), 4, 5.5, None, True],
        "names": ("ä", b"\xff\x00"),
    }
    path = tmp_path / "plain.pickle"
    path.write_bytes(pickle.dumps(content, protocol))
    for found in (pickles.load(path), pickles.load(io.BytesIO(path.read_bytes()))):
        assert found.keys() == content.keys()
        assert (found["data"] == content["data"]).all()
        assert (found["strided"] == content["strided"]).all()
        assert found[b"labels"] == content[b"labels"]
        assert found["names"] == content["names"]


def test_python_2(tmp_path):
    """As Python 2 wrote numpy arrays and texts: byte strings, and numpy's old module."""
    written = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x03\x85cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\xff\x03tbu."
    )
    assert pickles.load(io.BytesIO(written))[b"data"].tolist() == [1, 255, 3]


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Sly()), pickle.dumps({"data": [Sly()]}, 0), b"garbage", b"", pickle.dumps(print)],
)
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sly.pickle"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"sly\.pickle is not a pickle of plain data"):
        pickles.load(path)
    assert not (tmp_path / "sly").exists()
