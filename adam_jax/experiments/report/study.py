"""The members of a study: one line of JSON for each, gathered over their seeds."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from adam_jax.experiments.drawing import name_values
from adam_jax.experiments.study.members import LOSSES, Member
from adam_jax.experiments.study.outcomes import group_members


class Trial(NamedTuple):
    """Hold the members that differ in nothing but their seed.

    Attributes:
      optimizer: Their label.
      setting: Their hyperparameters.
      curves: Of each loss and metric, the values, (seeds, epochs).
    """

    optimizer: str
    setting: dict[str, Any]
    curves: dict[str, np.ndarray]

    @property
    def metrics(self) -> list[str]:
        """Name the metrics."""
        return [name for name in self.curves if name not in LOSSES]

    def final(self, curve: str) -> float:
        """Give the mean over the seeds at the end: NaN where one of them diverged."""
        return float(self.curves[curve][:, -1].mean())


def gather(members: Sequence[Member]) -> list[Trial]:
    """Gather the members of one optimizer and setting; the best comes first.

    The best has the smallest test loss at the end; what diverged comes last.
    """
    trials = [
        Trial(
            group.optimizer,
            group.setting,
            {
                curve: np.array([member.curve(curve) for member in group.members])
                for curve in (*LOSSES, *group.members[0].metrics)
            },
        )
        for group in group_members(members)
    ]

    def loss(trial: Trial) -> float:
        final = trial.final("test_loss")
        return final if math.isfinite(final) else math.inf

    return sorted(trials, key=loss)


def varied(trials: Sequence[Trial], optimizer: str) -> list[str]:
    """Name the hyperparameters of an optimizer that are not the same in all trials."""
    settings = [trial.setting for trial in trials if trial.optimizer == optimizer]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({str(s.get(key)) for s in settings}) > 1]


def label(trial: Trial, trials: Sequence[Trial]) -> str:
    """Name a trial by what tells it from the others: optimizer, hyperparameters."""
    keys = varied(trials, trial.optimizer)
    settings = describe_setting(trial, trials, keys)
    alone = settings and all(other.optimizer == trial.optimizer for other in trials)
    return settings if alone else ", ".join(filter(None, [trial.optimizer, settings]))


def describe_setting(trial: Trial, trials: Sequence[Trial], keys: Iterable[str]) -> str:
    """Write hyperparameters of a trial, so that they differ from those of others."""
    value = trial.setting.get
    words = {key: to_words(other.setting.get(key) for other in trials) for key in keys}
    return ", ".join(f"{key}={words[key][value(key)]}" for key in keys)


def to_words(values: Iterable[Any]) -> dict[Any, str]:
    """Write the values of a hyperparameter: as many digits as tell them apart."""
    kept = list(values)
    floats = name_values(value for value in kept if isinstance(value, float))
    return {value: floats.get(value, str(value)) for value in kept}
