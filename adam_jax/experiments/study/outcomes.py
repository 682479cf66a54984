"""What came out of a study: each setting of an optimizer, over its seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adam_jax.experiments.drawing import name_values
from adam_jax.experiments.study.config import Range
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.settings import list_values


class Spread(NamedTuple):
    """Hold a figure over seeds."""

    mean: float
    low: float
    high: float


class Outcome(NamedTuple):
    """Hold the members of an optimizer that differ in nothing but their seed.

    Attributes:
      optimizer: The label of the optimizer.
      setting: The hyperparameters that were set.
      members: One for each seed.
      measure: The curve whose end is the better the smaller it is.
    """

    optimizer: str
    setting: dict[str, float]
    members: list[Member]
    measure: str = "test_loss"

    def final(self, curve: str) -> Spread:
        """Give the mean and the ends of a curve's last values; NaN if one is infinite.

        Args:
          curve: As in Member.curve.
        """
        last = [member.curve(curve)[-1] for member in self.members]
        if not all(map(math.isfinite, last)):
            return Spread(math.nan, math.nan, math.nan)
        return Spread(float(np.mean(last)), min(last), max(last))

    @property
    def diverged(self) -> int:
        """Count the members whose loss is not finite at the end."""
        losses = [
            member.train_loss[-1] + member.test_loss[-1] for member in self.members
        ]
        return sum(not math.isfinite(loss) for loss in losses)

    @property
    def score(self) -> float:
        """Give the mean of the measure at the end; infinity if a member diverged."""
        return math.inf if self.diverged else self.final(self.measure).mean


def group_members(
    members: Sequence[Member], measure: str = "test_loss"
) -> list[Outcome]:
    """Put the members together that differ in nothing but their seed."""
    groups: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        key = member.optimizer, json.dumps(member.setting, sort_keys=True)
        groups.setdefault(key, []).append(member)
    return [
        Outcome(group[0].optimizer, group[0].setting, group, measure)
        for group in groups.values()
    ]


def split_by_optimizer(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Put the settings of each optimizer together, in order."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.optimizer, []).append(outcome)
    return groups


def find_border(
    setting: Mapping[str, float], axes: Mapping[str, Range | list[float]]
) -> list[str]:
    """Say of which axes of a grid a setting lies at the end, but for a natural 0."""
    notes = []
    for key, axis in axes.items():
        values, value = sorted(list_values(axis)), setting[key]
        if len(values) == 1 or value == 0:
            continue
        words = name_values(values)[value]
        if value == values[0]:
            notes.append(f"{key} {words} is the smallest that was tried")
        elif value == values[-1]:
            notes.append(f"{key} {words} is the largest that was tried")
    return notes
