import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = {
    wanted.name: wanted
    for wanted in map(
        Requirement,
        [
            *PROJECT["project"]["dependencies"],
            *PROJECT["project"]["optional-dependencies"]["experiments"],
        ],
    )
}


def pins(name: str) -> dict[str, list[Version]]:
    """Return the versions of each package in a file of requirements."""
    found: dict[str, list[Version]] = {}
    lines = (ROOT / name).read_text().splitlines()
    for pin in map(Requirement, [x for x in lines if x and not x.startswith("#")]):
        [only] = pin.specifier
        found.setdefault(pin.name, []).append(Version(only.version))
    return found


@pytest.mark.parametrize("name", DECLARED)
def test_the_lowest_version_that_is_declared_is_tested(name):
    [lowest] = [x for x in DECLARED[name].specifier if x.operator == ">="]
    assert pins("requirements-lowest.txt")[name] == [Version(lowest.version)]


@pytest.mark.parametrize("name", DECLARED)
def test_the_usual_versions_are_ones_that_are_declared(name):
    assert all(v in DECLARED[name].specifier for v in pins("requirements.txt")[name])


def test_the_native_library_is_built_for_the_lowest_jaxlib():
    build = {x.name: x for x in map(Requirement, PROJECT["build-system"]["requires"])}
    assert (
        build["jaxlib"].specifier
        == Requirement(
            f"jaxlib=={pins('requirements-lowest.txt')['jaxlib'][0]}"
        ).specifier
    )
