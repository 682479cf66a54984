"""The pages lead somewhere: README.md, docs/ and CONTRIBUTING.md.

What their examples print is tested as doctests.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [README, ROOT / "CONTRIBUTING.md", *PAGES]
MOST_LINES = 150

every_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)


def prose(path: Path) -> str:
    """Return a text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)


def links(path: Path) -> list[str]:
    """Return where the links and pictures of a text lead, but not those to the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [link for link in found if not link.startswith(("https:", "http:"))]


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken(path: Path) -> list[str]:
    """Return the links of a text that lead nowhere."""
    nowhere = []
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            nowhere.append(link)
    return nowhere


@every_text
def test_links_lead_somewhere(path: Path):
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Small leaves, `fast`\n"
        "[a](#small-leaves-fast) [b](page.md#small-leaves-fast) [c](page.md)\n"
        "[d](#small) ![e](page.png) [f](other.md#small) [g](https://example.org/#x)\n"
        "```\n# No heading\n[h](in_code.md)\n```\n[i](#no-heading)\n",
        "utf-8",
    )
    assert broken(page) == ["#small", "page.png", "other.md#small", "#no-heading"]


@every_text
def test_files_that_are_named_exist(path: Path):
    folders = "adam_jax|benchmarks|configs|docs|examples|tests"
    # Not those with a *, which stands for many.
    named = re.findall(rf"\b(?:{folders})/[\w/]+\.\w+", path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@every_text
def test_targets_of_make_that_are_named_exist(path: Path):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.M)
    named = re.findall(r"(?:^|`| {4})make ([a-z-]+)", path.read_text("utf-8"), re.M)
    assert set(named) <= set(targets)


def test_the_readme_is_for_a_reader_with_one_minute():
    assert len(README.read_text("utf-8").splitlines()) <= MOST_LINES


def test_the_readme_links_every_page():
    assert {f"docs/{page.name}" for page in PAGES} <= set(links(README))
