"""The package tells type checkers its types: a user's program, at their strictest.

The programs in `typed/` are checked elsewhere, as a user's are: beside the package they
would see its source.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROGRAM, MISTAKES = "program.py", "mistakes.py"
# Without what mypy has learned of JAX, it takes 10 s.
LEARNED = TESTS.parent / ".pytest_cache" / "mypy"


def run(*command: str, where: Path) -> str:
    """Return what a checker prints, of the packages of this interpreter."""
    folders = str(Path(sys.executable).parent), os.environ["PATH"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=where,
        env=os.environ | {"PATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return done.stdout


def mypy(where: Path) -> set[tuple[str, int]]:
    options = ("--strict", "--cache-dir", str(LEARNED))
    told = run("mypy", *options, PROGRAM, MISTAKES, where=where)
    return {(m[1], int(m[2])) for m in re.finditer(r"(?m)^(.*):(\d+): error:", told)}


def pyright(where: Path) -> set[tuple[str, int]]:
    """Strict because the programs say so."""
    told = json.loads(run("pyright", "--outputjson", PROGRAM, MISTAKES, where=where))
    return {
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1)
        for error in told["generalDiagnostics"]
    }


@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_program_has_no_errors_and_mistakes_are_reported(check, tmp_path):
    shutil.copytree(TESTS / "typed", tmp_path, dirs_exist_ok=True)
    lines = (TESTS / "typed" / MISTAKES).read_text().splitlines()
    wrong = {(MISTAKES, i) for i, line in enumerate(lines, 1) if "# wrong" in line}
    assert check(tmp_path) == wrong


def test_the_program_runs(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(TESTS / "typed" / PROGRAM), run_name="__main__")
    assert capsys.readouterr().out == "moved by 0.10, mean gradient 0.38\n"


def test_every_type_is_known(tmp_path):
    """Of all that can be imported; but the command line is not meant to be."""
    told = run(
        *("pyright", "--outputjson", "--verifytypes", "adam_jax", "--ignoreexternal"),
        where=tmp_path,
    )
    found = json.loads(told)["typeCompleteness"]
    assert "pyTypedPath" in found, "there is no py.typed"
    library = [
        symbol
        for symbol in found["symbols"]
        if not symbol["name"].startswith("adam_jax.experiments")
    ]
    assert "adam_jax.adamw" in {symbol["name"] for symbol in library}
    assert not [
        (symbol["name"], symbol["diagnostics"])
        for symbol in library
        if symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]
    ]
