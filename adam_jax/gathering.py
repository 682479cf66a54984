"""One moment over a pytree: start it, load it, gather into it, store it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.accumulators import Accumulator
from adam_jax.checks import check_like
from adam_jax.formats import Format, Stored
from adam_jax.hyperparams import all_at, at


class Gathered(NamedTuple):
    """One moment after one step.

    Attributes:
      stored: the moment as the state keeps it.
      moment: the moment in the dtype in which it was computed.
      flows: what flows on: the moment, or what its accumulator reads in its place.
      seen: scalar, the weight that goes with what flows on.
      weight: shape (2,), the weight seen and its compensation, as in `MomentsState`.
    """

    stored: Stored
    moment: Any
    flows: Any
    seen: jax.Array
    weight: jax.Array


def start(params: Any, initial: Any, format: Format, signed: bool) -> Stored:
    """Return what stores the moment before the first gradient, sharded like `params`.

    Args:
      params: a pytree of arrays (or of `jax.ShapeDtypeStruct`).
      initial: the value of every element, a scalar.
      format: how to store it.
      signed: False for second moments, real and never negative.
    """

    def start_leaf(param):
        dtype = numerics.compute_dtype(numerics.dtype_of(param))
        dtype = dtype if signed else numerics.real_dtype(dtype)
        if isinstance(param, Tracer):
            # A constant would be replicated: this one depends on the parameter, and
            # so the partitioner shards it alike (XLA then folds the comparison).
            value = jnp.asarray(initial, dtype)
            return jnp.where(param == param, value, value)
        return jnp.full_like(param, initial, dtype=dtype)

    return restart(jax.tree.map(start_leaf, params), format, signed)


def restart(moment: Any, format: Format, signed: bool) -> Stored:
    """Return what stores a given moment, a pytree, rounded to the nearest."""
    leaves, structure = jax.tree.flatten(moment)
    return _transpose(format, structure, [format.init(leaf, signed) for leaf in leaves])


def load(format: Format, stored: Stored) -> Any:
    """Return the moment that `stored` holds, a pytree, or None for none."""
    values, scales = stored
    if scales is None:
        return jax.tree.map(lambda x: format.decode(Stored(x)), values)
    return jax.tree.map(lambda *x: format.decode(Stored(*x)), values, scales)


def _store(
    format: Format, moment: Any, stored: Stored, past: ArrayLike, signed: bool
) -> Stored:
    """Return what stores `moment` in the place of `stored`."""
    leaves, structure = jax.tree.flatten(moment)
    values = structure.flatten_up_to(stored.values)
    scales = [None] * len(leaves)
    if stored.scales is not None:
        scales = structure.flatten_up_to(stored.scales)
    encoded = []
    for i, (x, *old) in enumerate(zip(leaves, values, scales, strict=True)):
        noise = functools.partial(
            numerics.random_bits, words=(format.seed, past, signed, i)
        )
        encoded.append(format.encode(x, Stored(*old), noise))
    return _transpose(format, structure, encoded)


def _transpose(format: Format, structure: Any, leaves: list[Stored]) -> Stored:
    """Return the `Stored` of pytrees that a pytree with `Stored` leaves amounts to."""
    values = structure.unflatten([leaf.values for leaf in leaves])
    if not format.scaled:
        return Stored(values)
    return Stored(values, structure.unflatten([leaf.scales for leaf in leaves]))


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
    format: Format,
    signed: bool,
    stored: Stored,
    grads: Any,
    mu: Any,
    weight: jax.Array,
    past: ArrayLike,
) -> Gathered:
    """Gather one more gradient into a moment.

    Args:
      accumulator: says how; None: there is no such moment, and its weight is 1.
      format: how the moment is stored.
      signed: True gathers g, False |g|^2, if the accumulator does not say.
      stored: what stores the moment so far, a pytree like grads.
      grads: the gradients, widened.
      mu: the first moment of this step (grads where it is itself being gathered).
      weight: shape (2,), the weight seen so far and its compensation.
      past: int32 scalar, the number of steps before this one.

    Raises:
      TypeError: if a complex value is to be gathered into a real moment.
      ValueError: if the moment is stored in another format.
    """
    if accumulator is None:
        unit = jnp.array([1, 0], weight.dtype)
        return Gathered(Stored(None), None, None, unit[0], unit)
    if (stored.scales is not None) != format.scaled:
        raise ValueError(
            "the state stores this moment in another format than the optimizer does: "
            "adam_jax.convert_state(state, mu_dtype=..., nu_dtype=...) converts it."
        )
    add, read = accumulator.add, accumulator.read
    measure = accumulator.measure or (_first_power if signed else _second_power)
    before = load(format, stored)
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

    moment = jax.tree.map(add_leaf, before, grads, mu)
    stored = _store(format, moment, stored, past, signed)
    weight = _weigh(accumulator, weight, past)
    flows, seen = moment, weight[0]
    if read is not None:

        def read_leaf(new, old, grad):
            h = at_dtype(new.dtype)
            return read(new, old.astype(new.dtype), grad, seen.astype(new.dtype), h)

        flows = jax.tree.map(read_leaf, moment, before, grads)
    if accumulator.power == 1:
        flows, seen = jax.tree.map(jnp.square, (flows, seen))
    return Gathered(stored, moment, flows, seen, weight)


def _first_power(grad: jax.Array, mu: jax.Array, h: Any) -> jax.Array:
    """Measure g, for the first moment."""
    del mu, h
    return grad


def _second_power(grad: jax.Array, mu: jax.Array, h: Any) -> jax.Array:
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
