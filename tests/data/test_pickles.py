"""Arrays come out of a pickle as they went in; whatever else one asks for is refused."""

import copyreg
import functools
import operator
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from metarun.data import pickles
from metarun.errors import UserError

CONTENT = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "turned": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "big-endian": np.arange(3, dtype=">f4"),
    "names": np.array(["a", "über"]),
    "truth": np.array([True, False]),
    "empty": np.zeros((0, 5), np.float32),
    "scalar": [np.uint8(3), np.float64(0.1)],
    "list": [1, 2.5, None, True, "text", "ü", b"\x00\xff", (1, (2, [3]))],
    "dict": {"n01532829": list(range(600)), 5: {"deep": np.ones(2)}},
}


def same(got, wanted):
    if isinstance(wanted, np.ndarray):
        return got.dtype == wanted.dtype and np.array_equal(got, wanted)
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(same(got[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    return got == wanted


@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_come_back(tmp_path, protocol, core):
    """As pickled by this NumPy, and under the other name that its modules have had."""
    content = pickle.dumps(CONTENT, protocol)
    if protocol < 4:  # later ones give the name's length
        content = content.replace(b"numpy._core.", core)
    (tmp_path / "x.pkl").write_bytes(content)
    assert same(pickles.load(tmp_path / "x.pkl"), CONTENT)


def test_a_file_of_python_2(tmp_path):
    """Written out by its opcodes: texts are byte strings, SHORT_BINSTRING and BINSTRING."""

    def short(content):
        return b"U" + bytes([len(content)]) + content

    pixels = bytes(range(250, 256))
    kind = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    )
    array += b"(K\x01K\x02K\x03\x86" + kind + b"\x89T" + struct.pack("<i", 6) + pixels + b"tb"
    classes = b"}" + short(b"n01532829") + b"]K\x00aK\x01as"
    content = b"\x80\x02}(" + short(b"image_data") + array + short(b"class_dict") + classes + b"u."
    (tmp_path / "x.pkl").write_bytes(content)
    got = pickles.load(tmp_path / "x.pkl")
    assert got["image_data"].tolist() == [[250, 251, 252], [253, 254, 255]]
    assert got["class_dict"] == {"n01532829": [0, 1]}


class Call:
    """Pickled as a call of `function` with `arguments`, whose result then gets `state`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments, state) if state else (function, arguments)

    def __reduce__(self):
        return self.parts


def hostile(folder):
    """Pickles that run something, or try to come by what could."""
    made = folder / "made"
    yield "os.system", pickle.dumps(Call(os.system, f"touch {made}"))
    yield "builtins.eval", pickle.dumps(Call(eval, f"open({str(made)!r}, 'w')"))
    yield "builtins.exec", pickle.dumps({"data": [Call(exec, f"open({str(made)!r}, 'w')")]}, 2)
    yield "builtins.getattr", pickle.dumps(Call(getattr, np.zeros(1), "dump"))
    yield "attrgetter", pickle.dumps(Call(operator.attrgetter, "tofile"))
    yield "partial", pickle.dumps(Call(functools.partial, print))
    yield "_reconstructor", pickle.dumps(Call(copyreg._reconstructor, object, object, None), 0)
    yield "OrderedDict", pickle.dumps(OrderedDict())
    yield "numpy.load", b"cnumpy\nload\n."
    yield "numpy.dtype.type", b"\x80\x04\x8c\x05numpy\x8c\x0adtype.type\x93."
    yield "ndarray.tofile", b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    yield "multiarray.frombuffer", b"cnumpy.core.multiarray\nfrombuffer\n."
    yield "pickles.pickle", b"\x80\x04\x8c\x14metarun.data.pickles\x8c\x0cpickle.loads\x93."
    yield "_codecs.decode", b"c_codecs\ndecode\n."


NAMES = [name for name, _ in hostile(Path("."))]


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_something_is_refused(tmp_path, name):
    (tmp_path / "x.pkl").write_bytes(dict(hostile(tmp_path))[name])
    with pytest.raises(UserError) as told:
        pickles.load(tmp_path / "x.pkl")
    assert "is refused: it asks for" in str(told.value)
    assert name.split(".")[-1] in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "made").exists()


MAKE = b"cnumpy.core.multiarray\n_reconstruct\n(tR"
KIND = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
ODD = {
    "objects": pickle.dumps(np.array([{}, None], dtype=object)),
    "records": pickle.dumps(np.zeros(2, dtype=[("a", "u1")])),
    "dates": pickle.dumps(np.zeros(2, dtype="M8[s]")),
    "object scalar": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02O8\x85RU\x01x\x86R.",
    "an array made": b"cnumpy\nndarray\n(K\x08\x85tR.",
    "an array newly made": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "the array's type": b"cnumpy\nndarray\n.",
    "the type's type": b"cnumpy\ndtype\n.",
    "a name's state": b"cnumpy.core.multiarray\nscalar\n}U\x01xK\x01sb.",
    "a name's slots": b"c_codecs\nencode\n}}U\x0b__globals__K\x01s\x86b.",
    "text of no encoding": b"c_codecs\nencode\n(X\x01\x00\x00\x00xX\x04\x00\x00\x00zliitR.",
    "too short": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01(K\x09t"
    + KIND
    + b"\x89U\x02abtb.",
    "negative": MAKE + b"(K\x01(J\xff\xff\xff\xfft" + KIND + b"\x89U\x02abtb.",
    "no state": MAKE + b".",
    "no bytes": MAKE + b"(K\x01(K\x01t" + KIND + b"\x89]tb.",
    "another object": b"K\x01Q.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "an extension": b"\x80\x02\x82\x05.",
    "nothing": b"",
    "cut": pickle.dumps(CONTENT)[:-30],
    "no pickle": b"<html>not found</html>",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_an_array_or_damaged_is_told(tmp_path, name):
    (tmp_path / "x.pkl").write_bytes(ODD[name])
    with pytest.raises(UserError) as told:
        pickles.load(tmp_path / "x.pkl")
    assert str(told.value).startswith(f"{tmp_path / 'x.pkl'} ")
    assert "\n" not in str(told.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.pkl cannot be read"):
        pickles.load(tmp_path / "none.pkl")
