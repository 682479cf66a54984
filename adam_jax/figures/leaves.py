"""One leaf of a step, and what figures sum over its elements."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from adam_jax import numerics


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


def _once(value: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Let a function of a leaf return the same array at every call.

    Figures that sum the same array share its sum, and `name_arrays` tells which it is.
    """

    @functools.wraps(value)
    def once(leaf, *args):
        found = vars(leaf).setdefault("_found", {})
        name = " ".join((value.__name__, *args))
        if name not in found:
            found[name] = value(leaf, *args)
        return found[name]

    return once


def name_arrays(leaf: Leaf, arrays: Sequence[jax.Array]) -> list[str | None]:
    """Return by which functions of this module arrays of a leaf were made.

    Args:
      leaf: the leaf.
      arrays: arrays that figures sum over it.

    Returns:
      The name of the function and its arguments, as in "square grad"; None for any
      other array.
    """
    names = {id(array): name for name, array in vars(leaf).get("_found", {}).items()}
    return [names.get(id(array)) for array in arrays]


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
    return ratio * correct_ratio(leaf).astype(ratio.dtype)


def correct_ratio(leaf: Leaf) -> jax.Array:
    """Return what bias correction multiplies |mu| / sqrt(nu) by, a scalar.

    Args:
      leaf: a leaf with the weights of its moments.
    """
    factor = numerics.divide_or_zero(jnp.sqrt(leaf.nu_weight), leaf.mu_weight)
    return leaf.paired * factor


@_once
def has_signal(leaf: Leaf) -> jax.Array:
    """Return for each element whether it has a signal-to-noise ratio.

    Args:
      leaf: a leaf with its second moment.
    """
    return (leaf.nu > 0) & (leaf.paired > 0)


@_once
def at_bound(leaf: Leaf) -> jax.Array:
    """Return for each element whether its step is almost the largest to be expected.

    Args:
      leaf: a leaf with its update, the learning rate and the bound.
    """
    return step_size(leaf) >= least_at_bound(leaf)


def least_at_bound(leaf: Leaf) -> jax.Array:
    """Return the least step that is almost the bound, in learning rates.

    Args:
      leaf: a leaf with the bound.
    """
    return 0.99 * leaf.bound


@_once
def moved(leaf: Leaf) -> jax.Array:
    """Return for each element whether its update is not 0.

    Args:
      leaf: a leaf with its update.
    """
    return leaf.update != 0


@_once
def swallowed(leaf: Leaf) -> jax.Array:
    """Return for each element whether its update, not 0, leaves the parameter as it is.

    Args:
      leaf: a leaf with its update and its parameter.
    """
    return (leaf.landed == leaf.param) & moved(leaf)


@_once
def nonfinite(leaf: Leaf) -> jax.Array:
    """Return for each element whether its gradient is infinite or NaN.

    Args:
      leaf: a leaf with its gradient.
    """
    return ~jnp.isfinite(leaf.grad)


def as_stored(x: jax.Array) -> jax.Array:
    """Widen an array, but round as its dtype does, which XLA would otherwise omit.

    Args:
      x: a part of a leaf, in the dtype in which it is stored.
    """
    wide = numerics.widen(x)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
        info = jnp.finfo(x.dtype)
        rounded = lax.reduce_precision(wide, info.nexp, info.nmant)
        # reduce_precision() flushes subnormals to 0.
        return jnp.where(jnp.abs(wide) < float(info.tiny), wide, rounded)
    return wide
