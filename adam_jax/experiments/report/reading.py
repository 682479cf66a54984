"""What the report reads of a folder: a run, or the config and machine of any."""

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adam_jax.experiments.folder import CONFIG
from adam_jax.experiments.machine import ENVIRONMENT
from adam_jax.experiments.metrics import Epoch, no_run, read_epochs


class Run(NamedTuple):
    """Hold what a run has left in its folder.

    Attributes:
      name: What the page calls it.
      config: Its config; the keys of a table follow the table's, after a dot.
      environment: The machine and the versions, likewise; None where not recorded.
      epochs: Its epochs so far.
    """

    name: str
    config: dict[str, Any]
    environment: dict[str, Any] | None
    epochs: list[Epoch]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, be they finished, interrupted or still at work.

    Raises:
      ValueError: if one cannot be read, or is named twice.
    """
    places = [Path(os.path.realpath(folder)) for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{folder} is named twice: name each run once")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [
        Run(name, read_config(folder), read_environment(folder), read_epochs(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of a folder.

    Raises:
      ValueError: if there is none, or none that can be read.
    """
    path = folder / CONFIG
    try:
        return flatten(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise no_run(path, error) from error
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}") from error


def read_environment(folder: Path) -> dict[str, Any] | None:
    """Read what a run was made on, or give None where it has not recorded that.

    Raises:
      ValueError: if it cannot be read.
    """
    path = folder / ENVIRONMENT
    try:
        return flatten(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is broken: it is no table in JSON") from error


def flatten(table: dict[str, Any]) -> dict[str, Any]:
    """Give the values of nested tables under dotted keys, but for None and empty text.

    Tables in a list are numbered, from 1, and written in a line each.

    Raises:
      AttributeError: if it is no table.
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        elif isinstance(value, list) and any(isinstance(x, dict) for x in value):
            for number, inner in enumerate(value, start=1):
                pairs = (f"{name}={x}" for name, x in flatten(inner).items())
                flat[f"{key}.{number}"] = ", ".join(pairs)
        elif value not in (None, ""):
            flat[key] = value
    return flat
