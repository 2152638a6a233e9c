"""The READMEs say what is so: each command in them is accepted, each key and each link exists.

Commands are composed and checked as the command line does it before any work; nothing is run.
"""

import re
import shlex
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import hydra
import pytest

from metarun.cli import check, launchers
from metarun.cli.command_line import parsed_arguments
from metarun.cli.help import choice_files
from metarun.configs.rules import conf_folders
from metarun.errors import UserError
from tests.cli.test_help import PLAIN, keys_of

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "conf", ROOT / "metarun", ROOT / "scripts")
PAGES = [
    *(ROOT / "README.md", ROOT / "outputs/README.md", ROOT / "scripts/BENCH.md"),
    *(path for folder in FOLDERS for path in sorted(folder.rglob("README.md"))),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
NO_KEYS = {  # of results.json
    *("data.checksum", "data.split", "data.features", "data.left_out", "data.doubts"),
    "train.peak_memory_mib",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, language: str = "") -> list[str]:
    """The content of the page's code blocks of this language."""
    return [block for kind, block in FENCE.findall(page.read_text()) if kind == language]


def spans(page: Path) -> list[str]:
    """The page's pieces of code within lines of text."""
    return SPAN.findall(FENCE.sub("", page.read_text()))


def commands(page: Path) -> list[str]:
    """The page's commands of metarun: lines of its code blocks, and pieces of code in its text."""
    lines = [line for block in fences(page) for line in block.splitlines()]
    found = [line for line in lines if line.startswith("metarun") or " -m metarun " in line]
    return found + [code for code in spans(page) if code.startswith("metarun ") and "…" not in code]


# Each once, by its words.
COMMANDS = list(
    dict.fromkeys(
        tuple(shlex.split(command, comments=True)) for page in PAGES for command in commands(page)
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with what the commands' placeholders stand for, and the files that pages show."""
    place = tmp_path_factory.mktemp("readmes")
    (place / "DIR").mkdir()
    for file in ("FILE.csv", "FILE.npz", "FILE.safetensors"):
        (place / file).touch()
    for text in (block for page in PAGES for block in fences(page, "yaml")):
        path = place / re.match(r"# (\S+\.yaml)\n", text)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


@pytest.fixture(scope="module")
def compose():
    """hydra.compose that remembers: much of what a check composes is the same in every check."""
    remembered = cache(hydra.compose)

    def compose(config_name, overrides=(), return_hydra_config=False):
        return deepcopy(remembered(config_name, tuple(overrides), return_hydra_config))

    return compose


@pytest.fixture
def accept(folder, compose, monkeypatch):
    """A function that raises what the command line refuses the words of a command with.

    Every optional package counts as installed.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hydra, "compose", compose)
    monkeypatch.setattr(launchers, "is_installed", lambda module: True)
    monkeypatch.setattr(launchers.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(check, "find_spec", lambda module: True)
    monkeypatch.setattr(check, "MANY", 2)  # values of a swept key; of the others the names alone

    def accept(command: tuple[str, ...]) -> None:
        words = command[command.index("metarun") + 1 :]
        for path in (word.partition("=")[2] for word in words if word.startswith("checkpoint=")):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        monkeypatch.setattr(sys, "argv", ["metarun", *map(chosen, words)])
        arguments = parsed_arguments()
        values = [arguments.overrides]
        if not arguments.help:
            values = check.check(arguments.overrides, arguments.config_dir, arguments.multirun)
        folders = conf_folders(arguments.config_dir)
        for group, _, choice in (o.partition("=") for override in values for o in override):
            choices = choice_files(folders, group.lstrip("+"))
            assert not choices or choice in (*choices, "null"), f"{group}={choice}"

    return accept


def chosen(word: str) -> str:
    """`algo=NAME` with one of its choices as NAME; anything else is itself."""
    group, _, choice = word.partition("=")
    choices = choice_files([ROOT / "conf"], group) if choice == "NAME" else {}
    return f"{group}={next(iter(choices))}" if choices else word


def test_pages_and_commands_are_found():
    assert len(PAGES) >= 9
    for page in PAGES:
        assert commands(page) or page.parent.name == "scripts", name(page)
    assert any("torchrun" in command for command in COMMANDS)


@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher:UserWarning")  # as the command line does
@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_the_command_line_accepts(accept, command):
    accept(command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("metarun algo=maml algo.inner_step=3", "did you mean algo.inner_steps?"),
        ("torchrun -m metarun train.steps=many", "train.steps=many: a whole number is needed"),
        ("metarun -m seed=0,two", "seed=two: a whole number is needed"),
        ("metarun table=snell2017_omniglot data.spilts=minimal", "did you mean data.splits?"),
        ("metarun --config-dir my_conf algo=mine", "add plugins.allow=[my_package]"),
    ],
)
def test_a_wrong_command_would_be_noticed(accept, command, said):
    with pytest.raises(UserError, match=re.escape(said)):
        accept(tuple(command.split()))


def test_a_wrong_choice_before_help_would_be_noticed(accept):
    with pytest.raises(AssertionError):
        accept(("metarun", "algo=mamml", "--help"))


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every key of the committed configs, but for papers' experiments and tables."""
    return {key for path in PLAIN for key in keys_of(path)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_in_the_text_exist(known, page):
    """Whatever looks like one, with a value or without, is a key of some committed config."""
    groups = {key.partition(".")[0] for key in known if "." in key} - {"hydra"}
    found = {word.partition("=")[0] for code in spans(page) for word in code.split()}
    keys = {key for key in found if re.fullmatch(r"\w+(\.\w+)+", key)} - NO_KEYS
    keys = {key for key in keys if key.partition(".")[0] in groups}
    assert {key for key in keys - known if not key.startswith("data.sources.")} == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_scripts_exist(page):
    scripts = re.findall(r"\bpython (scripts/\w+\.py)", page.read_text())
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """To a file or folder, and to a heading where one is named."""
    text = SPAN.sub("", FENCE.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(page: Path) -> list[str]:
    """The page's headings, as a link names them."""
    found = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found]


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
