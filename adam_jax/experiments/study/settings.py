"""Which settings a sweep tries: all combinations of its grid, or random draws."""

import itertools
from collections.abc import Mapping

import numpy as np

from adam_jax.experiments.study.config import Range, SweepConfig, SweptCandidate


def list_settings(
    config: SweepConfig, candidate: SweptCandidate
) -> list[dict[str, float]]:
    """Give what each hyperparameter of its grid is set to, setting by setting."""
    axes = config.list_axes(candidate)
    if config.draws is not None:
        return draw_settings(axes, config.draws, config.draw_seed)
    values = [list_values(axis) for axis in axes.values()]
    return [
        dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values)
    ]


def list_values(axis: Range | list[float]) -> list[float]:
    """Give the values of one hyperparameter, rounded to twelve digits."""
    if isinstance(axis, list):
        return [float(value) for value in axis]
    space = np.geomspace if axis.scale == "log" else np.linspace
    return [_round(value) for value in space(axis.min, axis.max, axis.count)]


def draw_settings(
    axes: Mapping[str, Range | list[float]], draws: int, seed: int
) -> list[dict[str, float]]:
    """Draw settings; a range as it is scaled, a list with equal chances."""
    rng = np.random.default_rng(seed)

    def draw(axis: Range | list[float]) -> float:
        if isinstance(axis, list):
            return float(rng.choice(axis))
        if axis.scale == "log":
            return _round(np.exp(rng.uniform(np.log(axis.min), np.log(axis.max))))
        return _round(rng.uniform(axis.min, axis.max))

    return [{key: draw(axis) for key, axis in axes.items()} for _ in range(draws)]


def _round(value: float) -> float:
    return float(f"{value:.12g}")
