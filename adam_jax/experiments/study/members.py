"""The results of a study: its members, how they are stored and read back."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from adam_jax.experiments.folder import Journal
from adam_jax.experiments.metrics import ACCURACY, read_lines

MEMBERS = "members.jsonl"


class Member(NamedTuple):
    """Report one trained member of a study.

    Attributes:
      optimizer: The label of its optimizer.
      setting: The hyperparameters that were set, by name.
      seed: Of its first parameters and of the order of its batches.
      train_loss: Mean loss of the batches of each epoch.
      test_loss: Loss on the test examples after each epoch.
      metrics: What else the problem measures on them after each epoch, by name.
    """

    optimizer: str
    setting: dict[str, float]
    seed: int
    train_loss: list[float]
    test_loss: list[float]
    metrics: dict[str, list[float]]

    def curve(self, name: str) -> list[float]:
        """Give what was measured after each epoch.

        Args:
          name: train_loss, test_loss, test_error (the share of the test labels that
            are missed), or the name of a metric.
        """
        if name == "test_error":
            return [1 - x for x in self.metrics[ACCURACY]]
        return getattr(self, name) if name in LOSSES else self.metrics[name]

    def until(self, epoch: int) -> "Member":
        """Give what was measured up to an epoch."""
        losses = {key: self.curve(key)[:epoch] for key in LOSSES}
        metrics = {key: curve[:epoch] for key, curve in self.metrics.items()}
        return self._replace(**losses, metrics=metrics)


LOSSES = ("train_loss", "test_loss")


def to_json(member: Member) -> str:
    """Write a member as one line of JSON, with null for what is not finite."""

    def finite(curve: list[float]) -> list[float | None]:
        return [x if math.isfinite(x) else None for x in curve]

    fields = member._asdict()
    fields |= {key: finite(fields[key]) for key in LOSSES}
    fields["metrics"] = {key: finite(x) for key, x in member.metrics.items()}
    return json.dumps(fields, allow_nan=False)


def from_json(line: str) -> Member:
    """Read a member, with NaN for null.

    Raises:
      ValueError, TypeError, LookupError, AttributeError: if the line holds none.
    """

    def number(curve: list[float | None]) -> list[float]:
        return [math.nan if x is None else x + 0.0 for x in curve]

    fields: dict[str, Any] = json.loads(line)
    fields |= {key: number(fields[key]) for key in LOSSES}
    fields["metrics"] = {key: number(x) for key, x in fields["metrics"].items()}
    member = Member(**fields)
    if not isinstance(member.optimizer, str) or not isinstance(member.setting, dict):
        raise TypeError
    lengths = {len(member.curve(key)) for key in (*LOSSES, *member.metrics)}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError
    return member


def read_members(folder: Path) -> list[Member]:
    """Read the members of a study, be it finished, interrupted or still at work.

    Raises:
      ValueError: if there is none, or one that cannot be read.
    """
    path = folder / MEMBERS
    try:
        members = read_lines(path, from_json, "member of a study")
    except OSError as error:
        raise ValueError(f"{folder} is no study: {path}: {error.strerror}") from error
    if not members:
        raise ValueError(f"{folder} has no finished member yet: its {MEMBERS} is empty")
    if len({len(member.test_loss) for member in members}) > 1:
        raise ValueError(f"{path} is broken: its members differ in their epochs")
    return members


def open_members(folder: Path) -> Journal:
    """Open the members of a study that is made or resumed, to add others.

    Raises:
      ValueError: if another process has them open.
      OSError: if they cannot be written to.
    """
    return Journal(folder / MEMBERS, to_json, from_json)
