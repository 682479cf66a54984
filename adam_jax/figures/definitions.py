"""Figures that describe one step of an optimizer: norms, shares, quantiles.

A `Figure` defines what to sum over the elements of a leaf, and how to compute the
figure from the sums over one leaf or over the whole tree.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.hyperparams import check_decay, check_no_schedule
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


class Leaf:
    """One leaf of a `Step`, in float32 or wider, for figures to read.

    Attributes:
      size: the number of its elements.
      grad: its gradient.
      mu, nu: its moments, before bias correction.
      mu_weight, nu_weight: scalars; bias correction divides the moments by them.
      paired: scalar: 1 if one stage keeps both moments of this leaf, else 0.
      update: what the optimizer adds to the parameter.
      param: the parameter before the step.
      landed: the parameter after the step, as `optax.apply_updates` rounds it.
      learning_rate, bound: scalars, as in `Step`.

    Raises:
      MissingError: if a figure reads a part that the step does not have.
      AttributeError: if a figure reads a part that no leaf has.
    """

    size: ArrayLike
    grad: jax.Array
    mu: jax.Array
    nu: jax.Array
    mu_weight: jax.Array
    nu_weight: jax.Array
    paired: jax.Array
    update: jax.Array
    param: jax.Array
    landed: jax.Array
    learning_rate: jax.Array
    bound: jax.Array

    def __init__(self, **parts: Any):
        """Keep the parts that are not None."""
        self.__dict__.update({k: v for k, v in parts.items() if v is not None})

    def __getattr__(self, part: str) -> Any:
        """Raise an error for a part that is missing."""
        if part not in _CURES:
            raise AttributeError(
                f"a leaf of a step has no {part!r}: choose from {', '.join(_CURES)}."
            )
        raise MissingError(f"a figure needs {_CURES[part]}.")


_KEEPS = "moment, and this optimizer keeps none"
_CURES = {
    "size": "the size: measure a step",
    "learning_rate": "the learning rate: give it to record(), as to the optimizer",
    "param": "the parameters: call tx.update(grads, state, params)",
    "landed": "the parameters: call tx.update(grads, state, params)",
    "grad": "the gradients: wrap the optimizer, as in record(adam(1e-3))",
    "update": "the updates: wrap the optimizer, as in record(adam(1e-3))",
    "mu": f"a first {_KEEPS}",
    "mu_weight": f"a first {_KEEPS}",
    "nu": f"a second {_KEEPS}",
    "nu_weight": f"a second {_KEEPS}",
    "paired": "averages of gradients and of their squares, kept by one stage, and this "
    "optimizer keeps none",
    "bound": "the bound: give it to record()",
}


class MissingError(ValueError):
    """The error for a step that lacks a part that a figure needs."""


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


def _once(value: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Let a function of a leaf return the same array at every call.

    Figures that sum the same array share its sum.
    """

    @functools.wraps(value)
    def once(leaf, *args):
        found = vars(leaf).setdefault("_found", {})
        if (value, *args) not in found:
            found[value, *args] = value(leaf, *args)
        return found[value, *args]

    return once


@_once
def square(leaf: Leaf, part: str) -> jax.Array:
    """Return |x|^2 for each element of a part of the leaf.

    Args:
      leaf: a leaf with that part.
      part: its name, such as "grad".
    """
    return numerics.abs_sq(getattr(leaf, part))


@_once
def step_size(leaf: Leaf) -> jax.Array:
    """Return |update| / learning rate for each element, and 0 where the rate is 0.

    Args:
      leaf: a leaf with its update and the learning rate.
    """
    size = jnp.abs(leaf.update)
    return numerics.divide_or_zero(size, leaf.learning_rate.astype(size.dtype))


@_once
def signal_to_noise(leaf: Leaf) -> jax.Array:
    """Return |mu_hat| / sqrt(nu_hat) for each element, and 0 where nu is 0.

    In a leaf whose moments are kept by different stages, it is 0.

    Args:
      leaf: a leaf with its moments and their weights.
    """
    ratio = numerics.divide_or_zero(jnp.abs(leaf.mu), numerics.sqrt(leaf.nu))
    factor = numerics.divide_or_zero(jnp.sqrt(leaf.nu_weight), leaf.mu_weight)
    return ratio * (leaf.paired * factor).astype(ratio.dtype)


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
    "at_step_bound": Figure(lambda leaf: (step_size(leaf) >= 0.99 * leaf.bound,), mean),
    "signal_to_noise": Figure(
        lambda leaf: (signal_to_noise(leaf), (leaf.nu > 0) & (leaf.paired > 0)), ratio
    ),
    "signal_to_noise_quantiles": quantiles(signal_to_noise),
    "bias_correction_mu": correction("mu_weight"),
    "bias_correction_nu": correction("nu_weight"),
    "swallowed": Figure(
        lambda leaf: (
            (leaf.landed == leaf.param) & (leaf.update != 0),
            leaf.update != 0,
        ),
        ratio,
    ),
    "nonfinite": Figure(
        lambda leaf: (~jnp.isfinite(leaf.grad),), lambda sums, leaf: sums[0]
    ),
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
