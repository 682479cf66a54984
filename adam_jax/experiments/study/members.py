"""The results of a study: its members, how they are stored and read back."""

from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from adam_jax.experiments.metrics import ACCURACY, MEMBERS, Number, read_lines
from adam_jax.experiments.running.folder import Journal

LOSSES = ("train_loss", "test_loss")


class Member(NamedTuple):
    """Report one trained member of a study; each curve has a value for each epoch."""

    optimizer: str  # its label
    setting: dict[str, float]  # the hyperparameters that were set, by name
    seed: int
    train_loss: list[Number]  # the mean over an epoch's batches
    test_loss: list[Number]
    metrics: dict[str, list[Number]]  # what else the problem measures in tests, by name

    def curve(self, name: str) -> list[float]:
        """Give a loss, a metric, or the test_error: the share of missed labels."""
        if name == "test_error":
            return [1 - x for x in self.metrics[ACCURACY]]
        return getattr(self, name) if name in LOSSES else self.metrics[name]

    def until(self, epoch: int) -> "Member":
        """Give what was measured up to an epoch."""
        metrics = {key: curve[:epoch] for key, curve in self.metrics.items()}
        losses = {key: self.curve(key)[:epoch] for key in LOSSES}
        return self._replace(metrics=metrics, **losses)


_MEMBER = TypeAdapter(Member)


def from_json(line: str) -> Member:
    """Read a member, with NaN for null; raise ValueError if it is none."""
    member = _MEMBER.validate_json(line, strict=True)
    lengths = {len(member.curve(key)) for key in (*LOSSES, *member.metrics)}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"the curves have {lengths} epochs")
    return member


def read_members(folder: Path) -> list[Member]:
    """Read the members of a study that may be at work; a ValueError says what fails."""
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
    """Open the members of a study that is made or resumed, to add others."""
    return Journal(folder / MEMBERS, from_json)
