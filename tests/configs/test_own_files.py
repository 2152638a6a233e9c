"""Config files of one's own that no program should read to their end."""

import pytest

from metarun.configs.own_files import MOST, refuse_absurd_files
from metarun.errors import UserError

LAUGHS = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)])


@pytest.fixture
def put(tmp_path):
    """Puts this content into a file of a group."""

    def put(content, group="algo"):
        path = tmp_path / group / "mine.yaml"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return put


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS, f"it holds too much: at most {MOST:,} values"),
        (2**20 * "#" + "a", "it holds too much"),
        ("a: &x [*x]", "too deep in each other"),
        (3_000 * "[", "too deep in each other"),
        (b"\xff\xfea", "it cannot be read"),
        ("a: [", "it cannot be read"),
        ("[1, 2]", "a config file holds keys"),
        ("5", "a config file holds keys"),
        ("a: 1\n---\nb: 2", "a config file holds keys"),
    ],
)
def test_refused(tmp_path, put, content, said):
    put(content)
    with pytest.raises(UserError, match=rf"mine\.yaml: .*{said}"):
        refuse_absurd_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "# nothing", "a: 1", "a: &x {b: 1}\nc: *x\nd: *x", "a: !x {b: 1}", 999 * "a: 1\n"],
)
def test_read(tmp_path, put, content):
    put(content)
    refuse_absurd_files(tmp_path)


@pytest.mark.parametrize("word", ["+mine=l", "mine=l", "+mine/in@way=l", "++mine@x=l"])
def test_a_group_that_is_asked_for(tmp_path, put, word):
    """Whether or not metarun has one of that name."""
    put(LAUGHS, group="mine")
    refuse_absurd_files(tmp_path, ["way=5", "=", "../mine=l", f"{500 * 'a'}=l"])
    with pytest.raises(UserError, match=r"mine\.yaml: it holds too much"):
        refuse_absurd_files(tmp_path, ["way=5", word])


def test_other_files_are_nobodys_business(tmp_path, put):
    """A folder of configs may hold more than that."""
    put("[", group="notes")
    refuse_absurd_files(tmp_path)
    refuse_absurd_files(tmp_path / "nothing")
