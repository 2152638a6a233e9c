"""The list of mutations has not gone stale, and the script tells what the tests make of one."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "mutants.py"
spec = importlib.util.spec_from_file_location("mutants_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
Mutation = script.Mutation


def test_every_mutation_can_be_made():
    """Its text stands in its file just once, the file is Python then, and its tests are there."""
    listed = script.mutations()
    assert [why for mutation in listed if (why := script.rotten(mutation))] == []
    assert len(listed) >= 60
    assert len({mutation.what for mutation in listed}) == len(listed)


def test_every_algorithm_has_one():
    mutated = {mutation.file for mutation in script.mutations()}
    families = {path.stem for path in (SCRIPT.parents[1] / "metarun" / "algos").glob("[!_]*.py")}
    assert {name for name in families if f"metarun/algos/{name}.py" not in mutated} == set()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A product of one line with a test that knows what is right, in place of the checkout."""
    for name, text in {
        "metarun/__init__.py": "",
        "metarun/double.py": "def double(x):\n    return x + x\n",
        "tests/test_double.py": "import pytest\n\nfrom metarun.double import double\n\n\n"
        "def test_of_nought():\n    assert double(0) == 0\n\n\n"
        "@pytest.mark.parametrize('x', [3], ids=['three [of] us'])\n"
        "def test_of_more(x):\n    assert double(x) == 6, 'as [x] - said'\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "COPIED", ("metarun", "tests"))
    return tmp_path


def run(monkeypatch, capsys, listed, *arguments):
    """The exit code of the script with these mutations, and what it says."""
    monkeypatch.setattr(script, "mutations", lambda: listed)
    monkeypatch.setattr(script.sys, "argv", ["mutants.py", *arguments])
    code = 0
    try:
        script.main()
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


def test_caught_and_survived(checkout, monkeypatch, capsys):
    """Twice three is not three times three, but twice nought is three times nought."""
    before = {path: path.read_bytes() for path in checkout.glob("*/*.py")}
    three = Mutation("threefold", "metarun/double.py", "x + x", "x + x + x", "tests/test_double.py")
    listed = [three, three._replace(what="survives", tests="tests/test_double.py -k nought")]
    code, lines, _ = run(monkeypatch, capsys, listed)
    assert code == 1
    assert lines[0].startswith("caught ")
    assert lines[0].endswith(
        "/double.py: threefold  tests/test_double.py::test_of_more[three [of] us]"
    )
    assert lines[1].startswith("survived ")
    assert lines[2].startswith("1 of 2 caught")
    assert {path: path.read_bytes() for path in checkout.glob("*/*.py")} == before
    code, lines, _ = run(monkeypatch, capsys, listed, "--only", "threefold", "--jobs", "2")
    assert (code, len(lines)) == (0, 2)


def test_a_test_that_fails_anyway_catches_nothing(checkout, monkeypatch, capsys):
    test = checkout / "tests" / "test_double.py"
    test.write_text(test.read_text().replace("== 6", "== 7"))
    three = Mutation("threefold", "metarun/double.py", "x + x", "x + x + x", "tests/test_double.py")
    code, _, _ = run(monkeypatch, capsys, [three])
    assert "without any mutation tests/test_double.py::test_of_more[three [of] us] fails" in code


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "x * 2"}, "has its text 0 times: 'x * 2'"),
        ({"text": "x"}, "has its text 3 times: 'x'"),
        ({"file": "metarun/half.py"}, "there is no metarun/half.py"),
        ({"new": "x +"}, "metarun/double.py is no Python then"),
        ({"tests": "tests/test_half.py"}, "there is no ['tests/test_half.py']"),
        ({"tests": "-k half"}, "there is no test file"),
    ],
)
def test_what_cannot_be_made_is_told_before_anything_runs(
    checkout, monkeypatch, capsys, change, said
):
    sound = Mutation("threefold", "metarun/double.py", "x + x", "x + x + x", "tests/test_double.py")
    code, lines, error = run(monkeypatch, capsys, [sound, sound._replace(**change)])
    assert (code, lines) == (2, [])
    assert said in error
