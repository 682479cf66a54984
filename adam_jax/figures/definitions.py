"""Figures that describe one step of an optimizer: norms, shares, quantiles.

A `Figure` defines what to sum over the elements of a leaf, and how to compute the
figure from the sums over one leaf or over the whole tree.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.figures.leaves import (
    Leaf,
    at_bound,
    has_signal,
    moved,
    nonfinite,
    signal_to_noise,
    square,
    step_size,
    swallowed,
)
from adam_jax.hyperparams import check_decay, check_no_schedule, shown
from adam_jax.stages.gathering import MomentsState


class Step(NamedTuple):
    """One step of an optimizer, the input of `measure`.

    Figures that need a missing field raise `MissingError`.

    Attributes:
      grads: the gradients.
      moments: for each `scale_by_moments` in the optimizer, its state after the step,
        as `read_moments` returns it. Leaves have the paths that they have in the other
        trees. One that has both moments is taken to keep averages of gradients and of
        their squares; leave one of the moments out if it does not.
      updates: what the optimizer adds to the parameters.
      params: the parameters before the step.
      learning_rate: scalar.
      bound: the largest step to be expected, in learning rates.
    """

    grads: Any = None
    moments: Sequence[MomentsState] = ()
    updates: Any = None
    params: Any = None
    learning_rate: ArrayLike | None = None
    bound: ArrayLike = 1.0


class Figure(NamedTuple):
    """A figure: sums over elements, and how to compute it from them.

    Attributes:
      sums: (leaf) -> a tuple of arrays of the leaf's shape; booleans are counted.
      read: (sums, leaf) -> the figure: a scalar, or shape (5,) for `QUANTILES`. `sums`
        is an array of the sums over one leaf or over all leaves. `leaf` has only its
        size and its weights here.

    Example: the mean of |g|.

      >>> from adam_jax import measure
      >>> mean_size = Figure(
      ...     sums=lambda leaf: (jnp.abs(leaf.grad),),
      ...     read=lambda sums, leaf: sums[0] / leaf.size,
      ... )
      >>> step = Step(grads={"w": jnp.array([3.0, -5.0]), "b": jnp.float32(1)})
      >>> measured = measure({"mean size": mean_size}, step)["mean size"]
      >>> print(measured.total, measured.leaves)
      3.0 [1. 4.]
    """

    sums: Callable[[Leaf], tuple[jax.Array, ...]]
    read: Callable[[jax.Array, Leaf], jax.Array]


def step_bound(b1: float, b2: float) -> float:
    """Return the paper's bound on Adam's step, in learning rates.

    It is (1 - b1) / sqrt(1 - b2) if 1 - b1 > sqrt(1 - b2), else 1. The former is the
    step for a gradient that comes after many zeros. (The step after it may exceed the
    bound, which is rare.)

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).

    Raises:
      ValueError: if a decay rate is out of range.
      TypeError: if one is not a number.

    Example: the bound at the defaults, and with a smaller b2.

      >>> print(f"{step_bound(0.9, 0.999):.3f} {step_bound(0.9, 0.9):.3f}")
      3.162 1.000

    Reference: Kingma & Ba 2014, section 2.1.
    """
    b1, b2 = (
        check_no_schedule(name, check_decay(name, value))
        for name, value in (("b1", b1), ("b2", b2))
    )
    return max(1.0, (1 - b1) / math.sqrt(1 - b2))


QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
"""The quantiles that are measured, in the order of the array that holds them."""

# Quantiles are interpolated, log-linearly, from the counts of values above each edge.
# Where gradients agree, both ratios are 1, which is the middle of a bin.
_EDGES = 2.0 ** np.arange(-9.5, 3)


def correction(weight: str) -> Figure:
    """Return the figure for the factor of bias correction, 1 / weight.

    Args:
      weight: "mu_weight" or "nu_weight".
    """

    def read(sums, leaf):
        seen = getattr(leaf, weight)
        return numerics.divide_or_zero(jnp.ones_like(seen), seen)

    return Figure(lambda leaf: (), read)


def norm(part: str) -> Figure:
    """Return the figure for the L2 norm of a part of each leaf.

    Args:
      part: the name of the part, such as "grad".
    """
    return Figure(
        lambda leaf: (square(leaf, part),),
        lambda sums, leaf: jnp.sqrt(sums[0]),
    )


def ratio(sums: jax.Array, leaf: Leaf | None = None) -> jax.Array:
    """Return the ratio of two sums, and 0 where the second is 0.

    Args:
      sums: array of shape (2,).
      leaf: not used.
    """
    del leaf
    return numerics.divide_or_zero(sums[0], sums[1])


def mean(sums: jax.Array, leaf: Leaf) -> jax.Array:
    """Return the mean over all elements.

    Args:
      sums: array of shape (1,).
      leaf: a leaf with its size.
    """
    return numerics.divide_or_zero(sums[0], jnp.asarray(leaf.size))


def quantiles(value: Callable[[Leaf], jax.Array]) -> Figure:
    """Return the figure for the `QUANTILES` of a value, where it is > 0.

    They are interpolated in a histogram with one bin per octave, from 2^-9.5 to 2^2.5,
    and are clipped to that range. Within it, their error is less than an octave, and
    mostly a few percent.

    Args:
      value: a function from a leaf to an array of the leaf's shape.
    """

    def count(leaf):
        x = value(leaf)
        return (x > 0, *(x > edge for edge in _EDGES.astype(x.dtype)))

    def read(sums, leaf):
        del leaf
        present, below = sums[0], sums[0] - sums[1:]
        ranks = jnp.asarray(list(QUANTILES.values()), sums.dtype) * present
        upper = jnp.sum(below[:, None] <= ranks[None], axis=0).clip(1, len(_EDGES) - 1)
        start = below[upper - 1]
        part = numerics.divide_or_zero(ranks - start, below[upper] - start).clip(0, 1)
        part = jnp.where(ranks >= below[-1], 1, part)  # above the last edge
        octaves = (upper - 1).astype(part.dtype) + part
        return jnp.where(present > 0, float(_EDGES[0]) * jnp.exp2(octaves), 0)

    return Figure(count, read)


FIGURES: dict[str, Figure] = {
    "gradient_norm": norm("grad"),
    "update_norm": norm("update"),
    "param_norm": norm("param"),
    "update_ratio": Figure(
        lambda leaf: (square(leaf, "update"), square(leaf, "param")),
        lambda sums, leaf: ratio(jnp.sqrt(sums)),
    ),
    "effective_step": Figure(lambda leaf: (step_size(leaf),), mean),
    "effective_step_quantiles": quantiles(step_size),
    "at_step_bound": Figure(lambda leaf: (at_bound(leaf),), mean),
    "signal_to_noise": Figure(
        lambda leaf: (signal_to_noise(leaf), has_signal(leaf)), ratio
    ),
    "signal_to_noise_quantiles": quantiles(signal_to_noise),
    "bias_correction_mu": correction("mu_weight"),
    "bias_correction_nu": correction("nu_weight"),
    "swallowed": Figure(lambda leaf: (swallowed(leaf), moved(leaf)), ratio),
    "nonfinite": Figure(lambda leaf: (nonfinite(leaf),), lambda sums, leaf: sums[0]),
}
"""The figures by name.

  gradient_norm, update_norm, param_norm: L2 norms. The last is taken before the step.
  update_ratio: update_norm / param_norm; 0 where the parameters are 0.
  effective_step: the mean of |update| / learning rate.
  effective_step_quantiles: `QUANTILES` of |update| / learning rate, over the updates
    that are not 0.
  at_step_bound: the share of elements whose step is at least 99% of the bound.
  signal_to_noise: the mean of |mu_hat| / sqrt(nu_hat), over the elements whose nu is
    not 0. It is 1 where gradients agree, 0 where they cancel, and 0.18 for pure noise
    at b1 = 0.9 (Kingma & Ba 2014, section 2.1). Only leaves count for which one stage
    keeps an average of gradients and an average of their squares, as in Adam.
  signal_to_noise_quantiles: `QUANTILES` of |mu_hat| / sqrt(nu_hat), where it is > 0.
  bias_correction_mu, bias_correction_nu: the current factor, 1 / (1 - b^t). It is 0 as
    long as no step was taken, because a guard skipped it or MultiSteps is gathering.
  swallowed: the share of nonzero updates that `params + updates` loses to rounding.
  nonfinite: how many elements of the gradients are infinite or NaN.
"""


def check_figures(figures: Any) -> Mapping[str, Figure]:
    """Return `figures` if they are figures by name.

    Args:
      figures: the figures to measure.

    Raises:
      TypeError: if they are none.
    """
    values = figures.values() if isinstance(figures, Mapping) else [figures]
    for value in values:
        if not isinstance(figures, Mapping) or not isinstance(value, Figure):
            raise TypeError(
                "figures must be a dict from names to Figures, as in "
                f"{{'norm': FIGURES['gradient_norm']}}, got {shown(value)}."
            )
    return figures


def choose_figures(figures: Any) -> Mapping[str, Figure]:
    """Return the figures that `record` is given, by name.

    Args:
      figures: names, figures by name, or None for all but the quantiles.

    Raises:
      ValueError: if there is no such figure.
      TypeError: if a dict holds anything but figures.
    """
    if figures is None:
        return {k: v for k, v in FIGURES.items() if not k.endswith("_quantiles")}
    if isinstance(figures, Mapping):
        return check_figures(figures)
    if isinstance(figures, str) or not isinstance(figures, Iterable):
        raise ValueError(
            "figures must be a sequence of names, as in ['update_norm'], got "
            f"{shown(figures)}."
        )
    for name in figures:
        if name not in FIGURES:
            raise ValueError(
                f"there is no figure {shown(name)}: choose from "
                f"{', '.join(FIGURES)}, or pass a dict of your own figures."
            )
    return {name: FIGURES[name] for name in figures}
