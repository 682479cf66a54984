"""`adam-jax report`: read, make the page, write it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from adam_jax.experiments.folder import replace_file
from adam_jax.experiments.options import ReportOptions
from adam_jax.experiments.report.pages import (
    Page,
    describe_runs,
    describe_study,
    write_html,
)
from adam_jax.experiments.report.reading import (
    read_config,
    read_environment,
    read_runs,
)
from adam_jax.experiments.study.members import MEMBERS, read_members


def prepare(options: ReportOptions) -> Callable[[], None]:
    """Read the runs or the study, and make the page.

    Raises:
      ValueError: if a folder cannot be read, or the page cannot be where it should.
    """
    folders = [Path(run) for run in options.runs]
    page = make_page(folders)
    path = options.out or choose_path(folders)
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        what = "a folder" if os.path.isdir(path) else "in no folder that exists"
        raise ValueError(f"the page would be {path}, but that is {what}; see --out")
    return lambda: save_page(page, path)


def make_page(folders: Sequence[Path]) -> Page:
    """Make the page of runs, or of one study.

    Raises:
      ValueError: if a folder cannot be read.
    """
    studies = [folder for folder in folders if os.path.exists(folder / MEMBERS)]
    if not studies:
        return describe_runs(read_runs(folders))
    folder = studies[0]
    if len(folders) > 1:
        raise ValueError(f"{folder} is a study: report it alone")
    return describe_study(
        Path(os.path.realpath(folder)).name,
        read_config(folder),
        read_environment(folder),
        read_members(folder),
    )


def choose_path(folders: Sequence[Path]) -> Path:
    """Choose where the page is written unless told: where its runs are."""
    if len(folders) == 1:
        return folders[0] / "report.html"
    places = [os.path.realpath(folder) for folder in folders]
    return Path(os.path.commonpath(places)) / "report.html"


def save_page(page: Page, path: Path) -> None:
    """Write the page, whole or not at all, and print where it is.

    Raises:
      OSError: if it cannot be written.
    """
    # A name of a group may hold half a character.
    text = write_html(page).encode("utf-8", "replace")
    replace_file(path, lambda file: file.write(text))
    Console(highlight=False).print(str(path), soft_wrap=True, markup=False)
