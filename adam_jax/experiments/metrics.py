"""What is reported of an epoch, how it is stored, and how it is read back."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

METRICS = "metrics.jsonl"
LOSS, ACCURACY = "loss", "accuracy"  # what a problem's metrics may be known by


class Epoch(NamedTuple):
    """Report one epoch; what belongs to a step belongs to the epoch's last one.

    Attributes:
      epoch: Its number, from 1.
      step: Steps since the start of the run.
      skipped: How many of these the guard has skipped.
      learning_rate: Learning rate of the last step that was not skipped.
      train_loss: Mean loss of the epoch's batches, each before its step.
      test_loss: Loss on the test examples after the epoch.
      metrics: What else the problem measures on them, by name.
      figures: The adam_jax.FIGURES of the step: of the whole tree by "name", of each
        parameter group by "name/path".
      moved: How far each parameter group is from where it started, by its path: the
        root mean square over its elements.
    """

    epoch: int
    step: int
    skipped: int
    learning_rate: float
    train_loss: float
    test_loss: float
    metrics: dict[str, float]
    figures: dict[str, float]
    moved: dict[str, float]


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
    """Name the groups that moved most, first of all, and least: up to three each."""

    def distance(group: str) -> float:
        return moved[group] if math.isfinite(moved[group]) else math.inf

    ranked = sorted(moved, key=distance, reverse=True)
    number = min(3, len(ranked) // 2)
    return ranked[:number], ranked[: -number - 1 : -1]


def to_json(entry: Any) -> str:
    """Write a named tuple as one line of JSON, with null for what is not finite."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(x) for key, x in value.items()}
        if isinstance(value, list):
            return [*map(finite, value)]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(entry._asdict()), allow_nan=False)


def from_json(line: str) -> Epoch:
    """Read an epoch, with NaN for null.

    Raises:
      ValueError, TypeError, LookupError, AttributeError: if the line holds none.
    """

    def number(value: Any) -> Any:
        return math.nan if value is None else value + 0  # what is no number fails

    def table(values: Any) -> dict[str, Any]:
        return {key: number(value) for key, value in values.items()}

    fields = json.loads(line)
    tables: dict[str, Any] = {
        key: table(fields.pop(key)) for key in ("metrics", "figures", "moved")
    }
    return Epoch(**table(fields), **tables)


def no_run(path: Path, error: OSError) -> ValueError:
    """Say that a folder is no run, because of one of its files."""
    return ValueError(
        f"{path.parent} is no run: {path}: {error.strerror}; adam-jax train makes one"
    )


def read_epochs(folder: Path) -> list[Epoch]:
    """Read the epochs of a run, be it finished, interrupted or still at work.

    Raises:
      ValueError: if the folder holds no run, or no epoch that can be read.
    """
    path = folder / METRICS
    try:
        epochs = read_lines(path, from_json, "epoch")
    except OSError as error:
        raise no_run(path, error) from error
    if not epochs:
        raise ValueError(f"{folder} has no finished epoch yet: its {METRICS} is empty")
    return epochs


def read_lines(path: Path, parse: Callable[[str], Any], kind: str) -> list[Any]:
    """Read each line of a file that may still be written to.

    Args:
      path: The file.
      parse: Turns a line into what it stands for, and raises what `from_json` does.
      kind: What a line stands for, in a word.

    Raises:
      ValueError: if the file is no text, or a line cannot be parsed.
      OSError: if it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is broken: it is no text") from error
    parsed = []
    # The last line may be half written.
    lines = text[: text.rfind("\n") + 1].splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(parse(line))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{path} is broken: line {number} is no {kind} of this version of "
                "adam-jax; train again"
            ) from error
    return parsed
