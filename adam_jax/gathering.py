"""One moment over a pytree: start it, gather into it, store it.

How a moment is stored is decided here and nowhere else: at a dtype, today.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from adam_jax import numerics
from adam_jax.accumulators import Accumulator
from adam_jax.checks import check_like
from adam_jax.hyperparams import all_at, at


class Gathered(NamedTuple):
    """One moment after one step.

    Attributes:
      stored: the moment as state keeps it.
      moment: the moment in the dtype in which it was computed.
      flows: what flows on: the moment, or what its accumulator reads in its place.
      weight: shape (2,), the weight seen and its compensation, as in `MomentsState`.
    """

    stored: Any
    moment: Any
    flows: Any
    weight: jax.Array


def storage_dtype(
    name: str, dtype: DTypeLike | None, kind: type[jnp.generic]
) -> jnp.dtype | None:
    """Return `dtype` as JAX will have it, or None.

    Raises:
      ValueError: if it is not of `kind` (jnp.floating or jnp.inexact).
    """
    if dtype is None:
        return None
    canonical = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(canonical, kind):
        kinds = "a floating-point" if kind is jnp.floating else "an inexact"
        raise ValueError(f"{name} must be {kinds} dtype, got {canonical}.")
    return canonical


def start(
    params: Any, initial: Any, dtype: DTypeLike | None = None, real: bool = False
) -> Any:
    """Return the moment before the first gradient, sharded like `params`.

    Args:
      params: a pytree of arrays (or of `jax.ShapeDtypeStruct`).
      initial: the value of every element, a scalar.
      dtype: dtype to store in; None: that of the parameter, float32 at least.
      real: whether the moment of a complex parameter is real.
    """

    def start_leaf(param):
        own = numerics.compute_dtype(numerics.dtype_of(param))
        own = dtype or (numerics.real_dtype(own) if real else own)
        if isinstance(param, Tracer):
            # A constant would be replicated: this one depends on the parameter, and
            # so the partitioner shards it alike (XLA then folds the comparison).
            value = jnp.asarray(initial, own)
            return jnp.where(param == param, value, value)
        return jnp.full_like(param, initial, dtype=own)

    return jax.tree.map(start_leaf, params)


def widen(grads: Any, *moments: Any) -> Any:
    """Return `grads` in the widest dtype of grads, moments and float32, leaf by leaf.

    Raises:
      AssertionError: if structure or shapes differ from the moments'.
    """
    present = [m for m in moments if m is not None]
    for moment in present:
        check_like(grads, moment, "grads", "the optimizer's state")

    def widen_leaf(grad, *stored):
        dtypes = [numerics.dtype_of(x) for x in (grad, *stored)]
        return jnp.asarray(grad, numerics.compute_dtype(*dtypes))

    return jax.tree.map(widen_leaf, grads, *present)


def cast_like(tree: Any, like: Any) -> Any:
    """Return `tree` in the dtypes of `like`, leaf by leaf."""
    return jax.tree.map(lambda x, y: numerics.cast(x, numerics.dtype_of(y)), tree, like)


def gather(
    accumulator: Accumulator | None,
    measure: Callable[..., jax.Array],
    stored: Any,
    grads: Any,
    mu: Any,
    weight: jax.Array,
    past: ArrayLike,
) -> Gathered:
    """Gather one more gradient into a moment.

    Args:
      accumulator: says how; None: there is no such moment, and its weight is 1.
      measure: (grad, mu, h) -> value, if the accumulator has none of its own.
      stored: the moment so far, a pytree like grads.
      grads: the gradients, widened.
      mu: the first moment of this step (grads where it is itself being gathered).
      weight: shape (2,), the weight seen so far and its compensation.
      past: int32 scalar, the number of steps before this one.

    Raises:
      TypeError: if a complex value is to be gathered into a real moment.
    """
    if accumulator is None:
        return Gathered(None, None, None, jnp.array([1, 0], weight.dtype))
    add, read = accumulator.add, accumulator.read
    measure = accumulator.measure or measure
    # Evaluated once for each dtype, not for each leaf.
    at_dtype = functools.cache(
        lambda dtype: all_at(accumulator.hyperparams, past, dtype)
    )

    def add_leaf(old, grad, mu):
        complex_moment = jnp.iscomplexobj(old)
        h = at_dtype(grad.dtype if complex_moment else numerics.real_dtype(grad.dtype))
        value = measure(grad, mu, h)
        if jnp.iscomplexobj(value) and not complex_moment:
            raise TypeError(
                f"a {value.dtype} gradient cannot be gathered into a {old.dtype} "
                "moment: pass a complex mu_dtype (or None), or real gradients to real "
                "parameters."
            )
        return add(old.astype(value.dtype), value, h)

    moment = jax.tree.map(add_leaf, stored, grads, mu)
    weight = _weigh(accumulator, weight, past)
    if read is None:
        return Gathered(cast_like(moment, stored), moment, moment, weight)

    def read_leaf(new, old, grad):
        seen, h = weight[0].astype(new.dtype), at_dtype(new.dtype)
        return read(new, old.astype(new.dtype), grad, seen, h)

    flows = jax.tree.map(read_leaf, moment, stored, grads)
    return Gathered(cast_like(moment, stored), moment, flows, weight)


def first_power(grad: jax.Array, mu: jax.Array, h: Any) -> jax.Array:
    """Measure g, for the first moment."""
    del mu, h
    return grad


def second_power(grad: jax.Array, mu: jax.Array, h: Any) -> jax.Array:
    """Measure |g|^2, for the second moment."""
    del mu, h
    return numerics.abs_sq(grad)


def _weigh(accumulator: Accumulator, weight: jax.Array, past: ArrayLike) -> jax.Array:
    """Return the weight pair after this step; 1 for what is not an average."""
    if not accumulator.averages:
        return jnp.array([1, 0], weight.dtype)
    decay = accumulator.hyperparams["decay"]
    if isinstance(decay, float):
        value = numerics.constant_weight(
            decay, optax.safe_increment(past), weight.dtype
        )
        return jnp.stack([value, jnp.zeros_like(value)])
    return numerics.running_weight(weight, at(decay, past, weight.dtype))
