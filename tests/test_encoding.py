"""Text is UTF-8 whatever the locale: no file is opened as text without saying so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    path for folder in ("metarun", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
]


def opens_text(call: ast.Call) -> bool:
    """Whether the call reads or writes a file as text; ruff's rule cannot see what a Path is."""
    method = isinstance(call.func, ast.Attribute)
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name in ("read_text", "write_text"):
        return method and owner != "runfolder"
    if name not in ("open", "fdopen"):
        return False
    inside = [node for argument in call.args for node in ast.walk(argument)]
    texts = [node.value for node in inside if isinstance(node, ast.Constant)]
    modes = [text for text in texts if isinstance(text, str) and set(text) <= set("rwaxbt+")]
    builtin = not method or name == "fdopen"
    return (builtin or bool(modes)) and not any("b" in mode for mode in modes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_as_utf8(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    for call in filter(opens_text, calls):
        said = {keyword.arg for keyword in call.keywords}
        assert "encoding" in said, f"{path}, line {call.lineno}"


def test_a_locale_that_is_not_utf8(metarun):
    """A run under ASCII, with a name in Chinese: its results are UTF-8."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    more = "train.steps=2 train.val_every=2 eval.episodes=4 eval.val_episodes=2 backbone.width=8"
    command = [sys.executable, "-m", "metarun", *more.split(), "tracker=none", "device=cpu"]
    done = subprocess.run(
        [*command, "hydra.run.dir=outputs/a"], cwd=metarun.folder, env=environment,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert metarun.results("a")["status"] == "finished"
