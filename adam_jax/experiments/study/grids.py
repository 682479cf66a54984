"""Which settings a sweep tries: all combinations of its grid, or random draws."""

import itertools
from collections.abc import Mapping

import numpy as np

from adam_jax.experiments.pictures.scales import name_values
from adam_jax.experiments.study.study_config import Range, SweepConfig, SweptCandidate


def list_settings(
    config: SweepConfig, candidate: SweptCandidate
) -> list[dict[str, float]]:
    """Give what each hyperparameter of its grid is set to, setting by setting."""
    axes = config.list_axes(candidate)
    if config.draws is None:
        chosen = itertools.product(*map(list_values, axes.values()))
    else:
        rng = np.random.default_rng(config.draw_seed)
        draws = range(config.draws)
        chosen = ([_draw(rng, axis) for axis in axes.values()] for _ in draws)
    return [dict(zip(axes, values, strict=True)) for values in chosen]


def list_values(axis: Range | list[float]) -> list[float]:
    """Give the values of one hyperparameter, rounded to twelve digits."""
    if isinstance(axis, list):
        return [float(value) for value in axis]
    space = np.geomspace if axis.scale == "log" else np.linspace
    return [_round(value) for value in space(axis.min, axis.max, axis.count)]


def _draw(rng: np.random.Generator, axis: Range | list[float]) -> float:
    """Draw from a range as it is scaled, from a list with equal chances."""
    if isinstance(axis, list):
        return float(rng.choice(axis))
    if axis.scale == "log":
        return _round(np.exp(rng.uniform(np.log(axis.min), np.log(axis.max))))
    return _round(rng.uniform(axis.min, axis.max))


def _round(value: float) -> float:
    return float(f"{value:.12g}")


def find_border(
    setting: Mapping[str, float], axes: Mapping[str, Range | list[float]]
) -> list[str]:
    """Say of which axes of a grid a setting lies at the end, but for a natural 0."""
    notes = []
    for key, axis in axes.items():
        values, value = sorted(list_values(axis)), setting[key]
        ends = {values[0]: "smallest", values[-1]: "largest"}
        if len(values) > 1 and value in ends and value != 0:
            words = name_values(values)[value]
            notes.append(f"{key} {words} is the {ends[value]} that was tried")
    return notes
