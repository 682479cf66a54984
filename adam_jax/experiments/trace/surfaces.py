"""The surfaces: what they are, where their minima lie, and who walks on them.

Learning rates are chosen by hand, among 1, 2 and 5 times a power of ten, for paths that
can be followed. They are no optimizer's best.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Point = tuple[float, float]

# C of [R], and the settings of its Theorem 1 for it. There the learning rate falls as
# 1/sqrt(t), and no bias is corrected: both change how fast x moves, not where to.
SPIKE = 3.0
REDDI = {"b1": 0.0, "b2": 1 / (1 + SPIKE**2)}

HEAVY_BALL = {"momentum": {"name": "sgd", "momentum": 0.9}}
"""A path that is no optimizer's of OPTIMIZERS, and the options that make it."""


class Surface(NamedTuple):
    """Hold a loss of two numbers, and how to show it."""

    about: str
    loss: Callable[[Array], Array]  # of a point, shaped (2,); the mean, if it changes
    minima: tuple[Point, ...]
    start: Point
    bounds: tuple[Point, Point]  # of what is drawn: ends of x, ends of y
    steps: int
    # The optimizers that are shown unless others are asked for, and their options.
    settings: dict[str, dict[str, Any]]
    # The loss of a step, from the point, the step (it counts from 1) and a key, if it
    # is not always the same.
    step_loss: Callable[[Array, Array, Array], Array] | None = None
    limit: float = math.inf  # both coordinates are clipped to [-limit, limit]


def _rosenbrock(point: Array) -> Array:
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(point: Array) -> Array:
    x, y = point
    targets = jnp.array([1.5, 2.25, 2.625])
    return jnp.sum((targets - x + x * y ** jnp.arange(1, 4)) ** 2)


def _ravine(point: Array) -> Array:
    x, y = point
    return (x**2 + 100 * y**2) / 2


def _turned_ravine(point: Array) -> Array:
    x, y = point
    return _ravine(jnp.array([x + y, y - x]) / math.sqrt(2))


def _saddle(point: Array) -> Array:
    x, y = point
    return x**2 / 2 - y**2 / 2 + y**4 / 4


def _reddi(point: Array, slope: Any = (SPIKE - 2) / 3) -> Array:
    x, y = point
    return slope * x + y**2 / 2


def _reddi_in_turn(point: Array, step: Array, _key: Array) -> Array:
    return _reddi(point, jnp.where(step % 3 == 1, SPIKE, -1.0))


def _reddi_drawn(point: Array, _step: Array, key: Array) -> Array:
    return _reddi(point, jnp.where(jax.random.bernoulli(key, 1 / 3), SPIKE, -1.0))


def _rates(**rates: float) -> dict[str, dict[str, Any]]:
    return {name: {"learning_rate": rate} for name, rate in rates.items()}


_RAVINE = Surface(
    "curved 100 times more across than along; each coordinate on its own",
    _ravine,
    minima=((0.0, 0.0),),
    start=(-4.0, 1.0),
    bounds=((-5.0, 2.0), (-1.5, 1.5)),
    steps=500,
    settings=_rates(sgd=0.01, momentum=0.01, adagrad=0.5, rmsprop=0.02, adam=0.1),
)
_COUNTEREXAMPLE = Surface(
    "Reddi et al. 2018, Theorem 1: x sees 3x, -x, -x in turn; y sees a plain bowl",
    _reddi,
    minima=((-1.0, 0.0),),
    start=(0.0, 0.8),
    bounds=((-1.05, 1.05), (-0.2, 0.9)),
    steps=1000,
    settings={
        "sgd": {"learning_rate": 0.02},
        "adam": {"learning_rate": 0.02, **REDDI},
        "amsgrad": {"learning_rate": 0.02, **REDDI},
    },
    step_loss=_reddi_in_turn,
    limit=1.0,
)

SURFACES: dict[str, Surface] = {
    "rosenbrock": Surface(
        "a curved valley, whose floor is found at once, and whose end is not",
        _rosenbrock,
        minima=((1.0, 1.0),),
        start=(-1.2, 1.0),
        bounds=((-2.0, 2.0), (-1.0, 3.0)),
        steps=2000,
        settings=_rates(
            sgd=0.001, momentum=0.001, adagrad=0.5, rmsprop=0.01, adam=0.05
        ),
    ),
    "beale": Surface(
        "flat, with steep walls where both coordinates are large",
        _beale,
        minima=((3.0, 0.5),),
        start=(1.0, 1.5),
        bounds=((-0.5, 4.5), (-1.0, 2.0)),
        steps=1500,
        settings=_rates(sgd=0.01, momentum=0.005, adagrad=0.5, rmsprop=0.01, adam=0.1),
    ),
    "ravine": _RAVINE,
    "turned_ravine": _RAVINE._replace(
        about="the ravine turned by 45 degrees: no scale of a coordinate helps",
        loss=_turned_ravine,
        start=(-3.5, -2.1),
        bounds=((-4.5, 2.5), (-3.5, 2.0)),
    ),
    "saddle": Surface(
        "a saddle at (0, 0) between two minima; the start is almost on its ridge",
        _saddle,
        minima=((0.0, 1.0), (0.0, -1.0)),
        start=(1.5, 1e-3),
        bounds=((-1.0, 2.0), (-1.5, 1.5)),
        steps=300,
        settings=_rates(sgd=0.1, momentum=0.1, adagrad=0.5, rmsprop=0.02, adam=0.05),
    ),
    "counterexample": _COUNTEREXAMPLE,
    "random_counterexample": _COUNTEREXAMPLE._replace(
        about="Reddi et al. 2018, Theorem 3: x sees 3x with probability 1/3, else -x; "
        "y sees a plain bowl",
        step_loss=_reddi_drawn,
    ),
}
"""Every surface by name. [R] is Reddi, Kale & Kumar 2018."""
