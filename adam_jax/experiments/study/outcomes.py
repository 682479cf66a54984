"""What came out of a study: each setting of an optimizer, over its seeds."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adam_jax.experiments.metrics import write_metric
from adam_jax.experiments.scales import name_values, to_words
from adam_jax.experiments.study.config import MEASURES, Range
from adam_jax.experiments.study.members import LOSSES, Member
from adam_jax.experiments.study.settings import list_values
from adam_jax.experiments.tables import Table


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

    def curves(self, curve: str) -> np.ndarray:
        """Give a curve of each member: (seeds, epochs)."""
        return np.array([member.curve(curve) for member in self.members])

    @property
    def metrics(self) -> list[str]:
        """Name what else was measured."""
        return list(self.members[0].metrics)

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


def tabulate(
    title: str,
    shown: Sequence[Outcome],
    outcomes: Sequence[Outcome],
    target: float | None = None,
    whole: bool = False,
) -> Table:
    """Make the table of some outcomes: what varies of their settings, and their ends.

    Args:
      title: What it is about.
      shown: Those of the table.
      outcomes: All that there are.
      target: A training loss; the epochs until it is reached are counted.
      whole: Count what diverged over all settings of an optimizer.
    """
    groups = split_by_optimizer(outcomes)
    keys = list(dict.fromkeys(key for name in groups for key in varied(outcomes, name)))
    curves = {curve: MEASURES[curve] for curve in LOSSES}
    curves |= {name: f"test {name}" for name in outcomes[0].metrics}
    heads = ["optimizer", *keys, *curves.values()]
    heads += [] if target is None else [f"epochs to training loss {target:g}"]
    words = {key: to_words(x.setting.get(key, "-") for x in outcomes) for key in keys}
    rows = []
    for outcome in shown:
        cells = [words[key][outcome.setting.get(key, "-")] for key in keys]
        cells += [to_text(outcome.final(curve), curve) for curve in curves]
        cells += [] if target is None else [count_epochs(outcome, target)]
        name = outcome.optimizer
        counted = groups[name] if whole else [outcome]
        runs = sum(len(x.members) for x in counted)
        lost = f"{sum(x.diverged for x in counted)} of {runs}"
        rows.append([name, *cells, lost])
    return Table([*heads, "diverged"], rows, title)


def to_text(spread: Spread, curve: str = "") -> str:
    """Give the ends of a curve over seeds in words."""
    if math.isnan(spread.mean):
        return "-"
    mean, low, high = (write_metric(curve, value) for value in spread)
    return f"{mean} ({low} to {high})" if spread.low < spread.high else mean


def count_epochs(outcome: Outcome, target: float) -> str:
    """Give the mean of the first epochs whose training loss is at most `target`."""
    firsts = []
    for member in outcome.members:
        reached = [n for n, x in enumerate(member.train_loss, start=1) if x <= target]
        if not reached:
            return "-"
        firsts.append(reached[0])
    return f"{sum(firsts) / len(firsts):.3g}"


def find_best(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Find each optimizer's setting of the smallest mean measure, best first."""
    groups = split_by_optimizer(outcomes).values()
    return rank(min(group, key=lambda outcome: outcome.score) for group in groups)


def rank(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Give the outcomes, best first; what diverged comes last."""
    return sorted(outcomes, key=lambda outcome: outcome.score)


def count_diverged(outcomes: Sequence[Outcome]) -> str:
    """Say how many settings diverged, if any did."""
    lost = sum(bool(outcome.diverged) for outcome in outcomes)
    return f" {lost} of {len(outcomes)} settings diverged." if lost else ""


def varied(outcomes: Sequence[Outcome], optimizer: str) -> list[str]:
    """Name the hyperparameters of an optimizer that are not the same in all."""
    settings = [
        outcome.setting for outcome in outcomes if outcome.optimizer == optimizer
    ]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({str(s.get(key)) for s in settings}) > 1]


def label(outcome: Outcome, outcomes: Sequence[Outcome]) -> str:
    """Name an outcome by what tells it from the others: optimizer, hyperparameters."""
    keys, value = varied(outcomes, outcome.optimizer), outcome.setting.get
    words = {key: to_words(x.setting.get(key) for x in outcomes) for key in keys}
    settings = ", ".join(f"{key}={words[key][value(key)]}" for key in keys)
    alone = settings and all(x.optimizer == outcome.optimizer for x in outcomes)
    return settings if alone else ", ".join(filter(None, [outcome.optimizer, settings]))


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
