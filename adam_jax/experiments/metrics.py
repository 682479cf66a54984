"""What is reported of an epoch, how it is stored, and how it is read back."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, TypeAdapter

METRICS, MEMBERS, PATHS = "metrics.jsonl", "members.jsonl", "trace.json"
OTHERS = {MEMBERS: "a study: see adam-jax report", PATHS: "paths of adam-jax trace"}
LOSS, ACCURACY = "loss", "accuracy"  # what a problem's metrics may be known by
# JSON has null for what is not finite.
Number = Annotated[float, BeforeValidator(lambda x: math.nan if x is None else x)]


class Epoch(NamedTuple):
    """Report one epoch; what belongs to a step belongs to the epoch's last one."""

    epoch: int  # its number, from 1
    step: int  # since the start of the run
    skipped: int  # of these steps, by the guard
    learning_rate: Number  # of the last step that was not skipped
    train_loss: Number  # the mean over the epoch's batches, each before its step
    test_loss: Number  # after the epoch
    metrics: dict[str, Number]  # what else the problem measures on the test examples
    # The adam_jax.FIGURES, by "name", and of each parameter group, by "name/path".
    figures: dict[str, Number]
    moved: dict[str, Number]  # the root mean square of each group's way from its start


_EPOCH = TypeAdapter(Epoch)


def to_scalars(epoch: Epoch) -> dict[str, float]:
    """Give all numbers of an epoch under the names that TensorBoard groups them by."""
    moved = {f"moved/{group}": value for group, value in epoch.moved.items()}
    return {
        "loss/train": epoch.train_loss,
        "loss/test": epoch.test_loss,
        **epoch.metrics,
        "learning_rate": epoch.learning_rate,
        "skipped": epoch.skipped,
        **epoch.figures,
        **moved,
    }


def write_metric(name: str, value: float) -> str:
    """Write a loss or a metric in four digits, or, if it is an accuracy, in percent."""
    return f"{value:.2%}" if name == ACCURACY else f"{value:.4g}"


def rank_moved(moved: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Name the groups that moved most, first of all, and least: up to three each.

    A group that has no other beside it moved most.
    """

    def distance(group: str) -> float:
        return moved[group] if math.isfinite(moved[group]) else math.inf

    ranked = sorted(moved, key=distance, reverse=True)
    number = min(3, len(ranked) // 2)
    return ranked[: max(1, number)], ranked[: -number - 1 : -1]


def to_json(entry: Any) -> str:
    """Write a NamedTuple as one line of JSON, with null for what is not finite."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(x) for key, x in value.items()}
        if isinstance(value, list):
            return [*map(finite, value)]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(entry._asdict()), allow_nan=False)


def from_json(line: str) -> Epoch:
    """Read an epoch, with NaN for null."""
    return _EPOCH.validate_json(line, strict=True)


def no_run(path: Path, error: OSError, command: str = "adam-jax train") -> ValueError:
    """Say that a folder is no run, because of one of its files, and what makes one."""
    return ValueError(
        f"{path.parent} is no run: {path}: {error.strerror}; {command} makes one"
    )


def read_epochs(folder: Path) -> list[Epoch]:
    """Read the epochs of a run, be it finished, interrupted or still at work."""
    try:
        epochs = read_lines(folder / METRICS, from_json, "epoch")
    except OSError as error:
        for name, held in OTHERS.items():
            if os.path.exists(folder / name):
                raise ValueError(f"{folder} is no run, but holds {held}") from error
        raise no_run(folder / METRICS, error) from error
    if not epochs:
        raise ValueError(f"{folder} has no finished epoch yet: its {METRICS} is empty")
    return epochs


def read_lines(path: Path, parse: Callable[[str], Any], kind: str) -> list[Any]:
    """Read each line of a file; the kind is what it stands for, in a word."""
    entries = []
    try:
        for entry in parse_lines(path.read_bytes(), parse):
            entries.append(entry)
    except ValueError as error:
        raise ValueError(
            f"{path} is broken: line {len(entries) + 1} is no {kind} of this version "
            "of adam-jax; train again"
        ) from error
    return entries


def parse_lines(text: bytes, parse: Callable[[str], Any]) -> Iterator[Any]:
    """Parse each line of a file that may still be written to; a ValueError ends it."""
    # The last line may be half written.
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        yield parse(line.decode())
