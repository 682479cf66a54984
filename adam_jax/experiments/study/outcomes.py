"""What came out of a study: each setting of an optimizer, over its seeds."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from adam_jax.experiments.metrics import write_metric
from adam_jax.experiments.pictures.scales import name_values
from adam_jax.experiments.pictures.tables import Table
from adam_jax.experiments.study.members import LOSSES, Member
from adam_jax.experiments.study.study_config import MEASURES


class Spread(NamedTuple):
    """Hold a figure over seeds."""

    mean: float
    low: float
    high: float


class Outcome(NamedTuple):
    """Hold the members of an optimizer that differ in nothing but their seed."""

    optimizer: str
    setting: dict[str, float]
    members: list[Member]
    measure: str = "test_loss"  # the curve whose end is the better the smaller it is

    def curves(self, name: str) -> np.ndarray:
        """Give a curve, as in Member.curve, of each member: (seeds, epochs)."""
        return np.array([member.curve(name) for member in self.members])

    def final(self, name: str) -> Spread:
        """Give mean and ends of a curve's last values; NaN if one is not finite."""
        last = self.curves(name)[:, -1]
        if not np.isfinite(last).all():
            return Spread(math.nan, math.nan, math.nan)
        return Spread(float(last.mean()), float(last.min()), float(last.max()))

    @property
    def diverged(self) -> int:
        """Count the members whose loss is not finite at the end."""
        losses = [self.curves(name)[:, -1] for name in LOSSES]
        return int(np.sum(~np.isfinite(losses).all(axis=0)))

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


def split_by_optimizer(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
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
    """Make the table of some of the outcomes: what varies, and how they end.

    The epochs down to a target, a training loss, can be counted. What has diverged is
    counted among an outcome's members, or among the whole of its optimizer's.
    """
    groups = split_by_optimizer(outcomes)
    names = _name_settings(outcomes)
    curves = {curve: MEASURES[curve] for curve in LOSSES}
    curves |= {name: f"test {name}" for name in outcomes[0].members[0].metrics}
    heads = ["optimizer", *names, *curves.values()]
    heads += [] if target is None else [f"epochs to training loss {target:g}"]
    rows = []
    for outcome in shown:
        cells = [own[outcome.setting.get(key)] for key, own in names.items()]
        cells += [to_text(outcome.final(curve), curve) for curve in curves]
        cells += [] if target is None else [count_epochs(outcome, target)]
        counted = groups[outcome.optimizer] if whole else [outcome]
        lost = sum(x.diverged for x in counted)
        of_all = sum(len(x.members) for x in counted)
        rows.append([outcome.optimizer, *cells, f"{lost} of {of_all}"])
    return Table([*heads, "diverged"], rows, title)


def to_text(spread: Spread, curve: str = "") -> str:
    """Give the ends of a curve over seeds in words."""
    if math.isnan(spread.mean):
        return "-"
    mean, low, high = (write_metric(curve, value) for value in spread)
    return f"{mean} ({low} to {high})" if spread.low < spread.high else mean


def count_epochs(outcome: Outcome, target: float) -> str:
    """Give the mean of the first epochs whose training loss is at most `target`."""
    reached = outcome.curves("train_loss") <= target
    if not reached.any(axis=1).all():
        return "-"
    return f"{np.mean(1 + reached.argmax(axis=1)):.3g}"


def find_best(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Find each optimizer's setting of the smallest mean measure, best first."""
    return rank(rank(group)[0] for group in split_by_optimizer(outcomes).values())


def rank(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Give the outcomes, best first; what diverged comes last."""
    return sorted(outcomes, key=lambda outcome: outcome.score)


def count_diverged(outcomes: Sequence[Outcome]) -> str:
    """Say how many settings diverged, if any did."""
    lost = sum(bool(outcome.diverged) for outcome in outcomes)
    return f" {lost} of {len(outcomes)} settings diverged." if lost else ""


def varied(outcomes: Sequence[Outcome], optimizer: str) -> list[str]:
    """Name the hyperparameters of an optimizer that are not the same in all."""
    settings = [x.setting for x in outcomes if x.optimizer == optimizer]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({str(s.get(key)) for s in settings}) > 1]


def _name_settings(outcomes: Sequence[Outcome]) -> dict[str, dict[float | None, str]]:
    """Write the values of each hyperparameter that varies of any optimizer."""
    groups = split_by_optimizer(outcomes)
    keys = dict.fromkeys(key for name in groups for key in varied(outcomes, name))
    return {
        key: name_values(x.setting.get(key) for x in outcomes) | {None: "-"}
        for key in keys
    }


def label(outcome: Outcome, outcomes: Sequence[Outcome]) -> str:
    """Name an outcome by what tells it from the others: optimizer, hyperparameters."""
    names = _name_settings(outcomes)
    words = [
        f"{key}={names[key][outcome.setting.get(key)]}"
        for key in varied(outcomes, outcome.optimizer)
    ]
    if not words or any(x.optimizer != outcome.optimizer for x in outcomes):
        words.insert(0, outcome.optimizer)
    return ", ".join(words)
