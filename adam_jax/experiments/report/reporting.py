"""`adam-jax report`: read the runs or the study, make the page, write it."""

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from adam_jax.experiments.machine import ENVIRONMENT
from adam_jax.experiments.metrics import MEMBERS, no_run, read_epochs
from adam_jax.experiments.report.pages import (
    Page,
    Run,
    describe_runs,
    describe_study,
    flatten,
    write_html,
)
from adam_jax.experiments.running.folder import CONFIG, replace_file
from adam_jax.experiments.settings.options import ReportOptions
from adam_jax.experiments.study.members import read_members


def prepare(options: ReportOptions) -> Callable[[], None]:
    """Read the runs or the study, and make the page; a ValueError says what fails."""
    folders = options.runs
    page = make_page(folders)
    beside = folders[0]
    if len(folders) > 1:
        beside = Path(os.path.commonpath([*map(os.path.realpath, folders)]))
        if not any(map(Path.is_absolute, folders)):
            beside = Path(os.path.relpath(beside))
    path = options.out or beside / "report.html"
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        what = "a folder" if os.path.isdir(path) else "in no folder that exists"
        raise ValueError(f"the page would be {path}, but that is {what}; see --out")
    return lambda: save_page(page, path)


def make_page(folders: Sequence[Path]) -> Page:
    """Make the page of runs, or of one study."""
    studies = [folder for folder in folders if os.path.exists(folder / MEMBERS)]
    if studies and len(folders) > 1:
        raise ValueError(f"{studies[0]} is a study: report it alone")
    places = [Path(os.path.realpath(folder)) for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{folder} is named twice: name each run once")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = [
        Run(
            name,
            read_config(folder),
            read_environment(folder),
            [] if studies else read_epochs(folder),
        )
        for name, folder in zip(names, folders, strict=True)
    ]
    if studies:
        return describe_study(runs[0], read_members(folders[0]))
    return describe_runs(runs)


def save_page(page: Page, path: Path) -> None:
    """Write the page, whole or not at all, and print where it is."""
    # A name of a group may hold half a character.
    text = write_html(page).encode("utf-8", "replace")
    replace_file(path, lambda file: file.write(text))
    Console(highlight=False).print(str(path), soft_wrap=True, markup=False)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Read the config of a folder; a ValueError says why it cannot be read."""
    path = folder / CONFIG
    try:
        return flatten(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise no_run(path, error) from error
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}") from error


def read_environment(folder: Path) -> Mapping[str, Any] | None:
    """Read what a run was made on, or give None where it has not recorded that."""
    path = folder / ENVIRONMENT
    try:
        return flatten(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is broken: it is no table in JSON") from error
