"""What can be said of one step of an optimizer: norms, shares, quantiles.

A `Figure` says what to sum over the elements of a leaf, and how to read the sums: of
one leaf, or of the whole tree.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.hyperparams import check_decay
from adam_jax.stages.gathering import MomentsState


class Step(NamedTuple):
    """One step of an optimizer. Of what is left out, no figure can be had.

    Attributes:
      grads: the gradients.
      moments: the states after the step of each `scale_by_moments` in the optimizer, as
        `read_moments` returns them; their leaves lie at paths of the other trees.
      updates: what the optimizer adds to the parameters.
      params: the parameters before the step.
      learning_rate: scalar.
      bound: the largest step that is to be expected, in learning rates.
    """

    grads: Any = None
    moments: Sequence[MomentsState] = ()
    updates: Any = None
    params: Any = None
    learning_rate: ArrayLike | None = None
    bound: ArrayLike = 1.0


class Leaf:
    """One leaf of a `Step`, in float32 at least: what a figure reads.

    Attributes:
      size: the number of its elements.
      grad: its gradient.
      mu, nu: its moments, before bias correction.
      mu_weight, nu_weight: scalars, by which bias correction divides them.
      update: what the optimizer adds to the parameter.
      param: the parameter before the step.
      landed: the parameter after it, as `optax.apply_updates` rounds it.
      learning_rate, bound: scalars, as in `Step`.

    Raises:
      MissingError: where a figure reads what the step does not have.
    """

    size: ArrayLike
    grad: jax.Array
    mu: jax.Array
    nu: jax.Array
    mu_weight: jax.Array
    nu_weight: jax.Array
    update: jax.Array
    param: jax.Array
    landed: jax.Array
    learning_rate: jax.Array
    bound: jax.Array

    def __init__(self, **parts: Any):
        """Take the parts that there are."""
        self.__dict__.update({k: v for k, v in parts.items() if v is not None})

    def __getattr__(self, part: str) -> Any:
        """Raise for a part that there is not."""
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
    "bound": "the bound: give it to record()",
}


class MissingError(ValueError):
    """Tell that a step lacks what a figure is made of."""


class Figure(NamedTuple):
    """A figure: sums over elements, and what they mean.

    Attributes:
      sums: (leaf) -> a tuple of arrays of the leaf's shape; booleans are counted.
      read: (sums, leaf) -> the figure, from an array of the sums over one leaf, or over
        all of them; here the leaf has its size and its weights only. A scalar, or shape
        (5,) for `QUANTILES`.
    """

    sums: Callable[[Leaf], tuple[jax.Array, ...]]
    read: Callable[[jax.Array, Leaf], jax.Array]


def step_bound(b1: float, b2: float) -> float:
    """Return the paper's bound of Adam's step, in learning rates.

    (1 - b1) / sqrt(1 - b2) where 1 - b1 > sqrt(1 - b2), else 1: the step of a gradient
    that comes after many zeros. (A second one may exceed it, which is rare.)

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).

    Raises:
      ValueError: if one is out of range.

    Reference: Kingma & Ba 2014, section 2.1.

    >>> print(f"{step_bound(0.9, 0.999):.3f} {step_bound(0.9, 0.9):.3f}")
    3.162 1.000
    """
    b1, b2 = check_decay("b1", b1), check_decay("b2", b2)
    return max(1.0, (1 - b1) / math.sqrt(1 - b2))


QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
"""The quantiles that are measured, in the order of their array."""

# Quantiles are read off counts of what is above these, log-linearly in between. Where
# gradients agree both ratios are 1: that is in the middle of a bin.
_EDGES = 2.0 ** np.arange(-9.5, 3)


def step_size(leaf: Leaf) -> jax.Array:
    """Return |update| / learning rate of each element; 0 where the rate is 0.

    Args:
      leaf: with its update and the learning rate.
    """
    size = jnp.abs(leaf.update)
    return numerics.divide_or_zero(size, leaf.learning_rate.astype(size.dtype))


def signal_to_noise(leaf: Leaf) -> jax.Array:
    """Return |mu_hat| / sqrt(nu_hat) of each element; 0 where nu is 0.

    Args:
      leaf: with its moments and their weights.
    """
    ratio = numerics.divide_or_zero(jnp.abs(leaf.mu), numerics.sqrt(leaf.nu))
    factor = numerics.divide_or_zero(jnp.sqrt(leaf.nu_weight), leaf.mu_weight)
    return ratio * factor.astype(ratio.dtype)


def correction(weight: str) -> Figure:
    """Return the figure of the factor of bias correction, 1 / weight.

    Args:
      weight: "mu_weight" or "nu_weight".
    """

    def read(sums, leaf):
        seen = getattr(leaf, weight)
        return numerics.divide_or_zero(jnp.ones_like(seen), seen)

    return Figure(lambda leaf: (), read)


def norm(part: str) -> Figure:
    """Return the figure of the L2 norm of a part of each leaf.

    Args:
      part: its name, such as "grad".
    """
    return Figure(
        lambda leaf: (numerics.abs_sq(getattr(leaf, part)),),
        lambda sums, leaf: jnp.sqrt(sums[0]),
    )


def ratio(sums: jax.Array, leaf: Leaf | None = None) -> jax.Array:
    """Read the ratio of two sums, and 0 where the second is 0.

    Args:
      sums: shape (2,).
      leaf: not needed.
    """
    del leaf
    return numerics.divide_or_zero(sums[0], sums[1])


def mean(sums: jax.Array, leaf: Leaf) -> jax.Array:
    """Read the mean over all elements.

    Args:
      sums: shape (1,).
      leaf: with its size.
    """
    return numerics.divide_or_zero(sums[0], jnp.asarray(leaf.size))


def quantiles(value: Callable[[Leaf], jax.Array]) -> Figure:
    """Return the figure of the `QUANTILES` of a value, of the elements where it is > 0.

    They are read off a histogram by octaves from 2^-9.5 to 2^2.5, and so lie within it;
    they are off by less than an octave, mostly by a few percent.

    Args:
      value: from a leaf to an array of its shape.
    """

    def count(leaf):
        x = value(leaf)
        return (x > 0, *(x > edge for edge in _EDGES.astype(x.dtype)))

    def read(sums, leaf):
        del leaf
        present, below = sums[0], sums[0] - sums[1:]
        ranks = jnp.asarray(list(QUANTILES.values()), sums.dtype) * present
        upper = jnp.sum(below[:, None] <= ranks, axis=0).clip(1, len(_EDGES) - 1)
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
        lambda leaf: (numerics.abs_sq(leaf.update), numerics.abs_sq(leaf.param)),
        lambda sums, leaf: ratio(jnp.sqrt(sums)),
    ),
    "effective_step": Figure(lambda leaf: (step_size(leaf),), mean),
    "effective_step_quantiles": quantiles(step_size),
    "at_step_bound": Figure(lambda leaf: (step_size(leaf) >= 0.99 * leaf.bound,), mean),
    "signal_to_noise": Figure(lambda leaf: (signal_to_noise(leaf), leaf.nu > 0), ratio),
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

  gradient_norm, update_norm, param_norm: L2 norms; of the parameters before the step.
  update_ratio: update_norm / param_norm, 0 where the parameters are 0.
  effective_step: the mean of |update| / learning rate.
  effective_step_quantiles: `QUANTILES` of the same, of the updates that are not 0.
  at_step_bound: the share of elements whose step is the bound, within 1%, or more.
  signal_to_noise: the mean of |mu_hat| / sqrt(nu_hat), of the elements whose nu is not
    0: 1 where gradients agree, 0 where they cancel, 0.18 for pure noise at b1 = 0.9
    (Kingma & Ba 2014, section 2.1). Not for adamax, whose nu is not of squares.
  signal_to_noise_quantiles: `QUANTILES` of the same.
  bias_correction_mu, bias_correction_nu: the factor in force, 1 / (1 - b^t); 0 before
    the first step, where a guard skipped it or MultiSteps gathers.
  swallowed: the share of updates, of those that are not 0, that `params + updates`
    loses to rounding.
  nonfinite: how many elements of the gradients are infinite or NaN.
"""
