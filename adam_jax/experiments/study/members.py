"""The results of a study: its members, how they are stored and read back."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adam_jax.experiments.metrics import read_lines

MEMBERS = "members.jsonl"


class Member(NamedTuple):
    """Report one trained member of a study.

    Attributes:
      optimizer: The label of its optimizer.
      setting: The hyperparameters that were set, by name.
      seed: Of its first parameters and of the order of its batches.
      train_loss: Mean loss of the batches of each epoch.
      test_loss: Loss on the test examples after each epoch.
      test_accuracy: Share of the test labels that are found, after each epoch; NaN for
        a problem without labels.
    """

    optimizer: str
    setting: dict[str, float]
    seed: int
    train_loss: list[float]
    test_loss: list[float]
    test_accuracy: list[float]

    @property
    def test_error(self) -> list[float]:
        """Give the share of the test labels that are missed, after each epoch."""
        return [1 - x for x in self.test_accuracy]

    def until(self, epoch: int) -> "Member":
        """Give what was measured up to an epoch."""
        return self._replace(**{key: getattr(self, key)[:epoch] for key in CURVES})


CURVES = ("train_loss", "test_loss", "test_accuracy")


def to_json(member: Member) -> str:
    """Write a member as one line of JSON, with null for what is not finite."""
    fields = member._asdict()
    for key in CURVES:
        fields[key] = [x if math.isfinite(x) else None for x in fields[key]]
    return json.dumps(fields, allow_nan=False)


def from_json(line: str) -> Member:
    """Read a member, with NaN for null.

    Raises:
      ValueError, TypeError, LookupError, AttributeError: if the line holds none.
    """
    fields: dict[str, Any] = json.loads(line)
    for curve in CURVES:
        fields[curve] = [math.nan if x is None else x + 0.0 for x in fields[curve]]
    member = Member(**fields)
    if not isinstance(member.optimizer, str) or not isinstance(member.setting, dict):
        raise TypeError
    lengths = {len(fields[curve]) for curve in CURVES}
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


def append_members(folder: Path, members: Sequence[Member]) -> None:
    """Add members to those stored in a folder."""
    with (folder / MEMBERS).open("a", encoding="utf-8") as file:
        for member in members:
            print(to_json(member), file=file)
