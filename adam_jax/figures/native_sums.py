"""Sums over small leaves that native code takes, in programs for one CPU.

There XLA compiles reductions for long, and leaves may be many.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax import numerics
from adam_jax.choice import choose
from adam_jax.figures.leaves import Leaf, correct_ratio, least_at_bound, name_arrays
from adam_jax.native import calls

# The parts of a leaf that sums read; the others read updates alone.
_READ = {
    "square grad": ("grad",),
    "nonfinite": ("grad",),
    "square param": ("param",),
    "swallowed": ("update", "param"),
    "signal_to_noise": ("mu", "nu"),
    "has_signal": ("mu", "nu"),
}


def sum_leaf(
    common: Callable[[Any], jax.Array],
    make_leaf: Callable[[Any], Leaf],
    list_sums: Callable[[Leaf], list[jax.Array]],
    given: Any,
) -> jax.Array:
    """Return `common(given)`: all that figures sum over a leaf, in one array.

    Args:
      common: what sums anywhere.
      make_leaf: makes the leaf of what is given.
      list_sums: returns the arrays that are summed over a leaf.
      given: a pytree of arrays, that of "arrays" like the leaf.
    """
    flat, structure = jax.tree.flatten(given)
    names = _name_sums(make_leaf, list_sums, given) if _takes(given["arrays"]) else []
    known = [name for name in names if name]
    if not known or not {*names} <= {*calls.SUMS}:
        return common(given)

    def native(*flat):
        given = structure.unflatten(flat)
        leaf = make_leaf(given)
        read = {part for name in known for part in _READ.get(name, ("update",))}
        parts = {part: given["arrays"][part] for part in read}
        factors = find_factors(leaf, known)
        return [calls.sum_leaf(parts, find_large(leaf, known), known, factors)]

    def composed(*flat):
        return [common(structure.unflatten(flat))]

    [row] = choose({"cpu": native}, composed, exports=False)(*flat)
    return row


def _name_sums(make_leaf: Any, list_sums: Any, given: Any) -> list[str | None]:
    """Return the names of what is summed over a leaf, by `name_arrays`."""
    names: list[str | None] = []

    def look(given):
        leaf = make_leaf(given)
        names.extend(name_arrays(leaf, list_sums(leaf)))

    jax.eval_shape(look, given)
    return names


def _takes(arrays: Mapping[str, Any]) -> bool:
    """Return whether the native code can sum over a leaf of these arrays."""
    parts = [x for x in arrays.values() if np.ndim(x)]
    return len({x.shape for x in parts}) == 1 and all(
        calls.takes_small(x) and x.dtype == jnp.float32 for x in parts
    )


def find_factors(leaf: Leaf, names: Sequence[str]) -> jax.Array:
    """Return what sums that native code takes are multiplied by, float32.

    Args:
      leaf: the leaf, of which scalars are read.
      names: those of the sums.
    """
    one = jnp.float32(1)

    def find(name):
        if name == "step_size":
            return numerics.divide_or_zero(one, leaf.learning_rate.astype(jnp.float32))
        if name == "signal_to_noise":
            return correct_ratio(leaf).astype(jnp.float32)
        return leaf.paired.astype(jnp.float32) if name == "has_signal" else one

    return jnp.stack([find(name) for name in names])


def find_large(leaf: Leaf, names: Collection[Any]) -> jax.Array:
    """Return how large an update has to be to count as one at the bound.

    Args:
      leaf: the leaf, of which scalars are read.
      names: those of the sums that are needed.
    """
    if "at_bound" not in names:
        return jnp.float32(jnp.inf)
    rate = leaf.learning_rate.astype(jnp.float32)
    least = jnp.asarray(least_at_bound(leaf), jnp.float32)
    # A learning rate of 0 makes steps of 0.
    none = jnp.where(least > 0, jnp.inf, 0)
    return jnp.where(rate > 0, least * rate, none)


def wait(grads: Any, looked: jax.Array) -> Any:
    """Return the gradients, once the figures are known.

    A step with them shares nothing with the one that was measured. So XLA keeps no copy
    of the arrays that the step overwrites. (Nothing is below -inf, but XLA does not
    know that.)

    Args:
      grads: a pytree of arrays.
      looked: true once the figures are known.
    """
    return jax.tree.map(lambda g: jnp.where(looked, g, jnp.zeros_like(g)), grads)


def wait_if_large(grads: Any, looked: jax.Array) -> Any:
    """Return the gradients of small leaves at once: they step as they were measured.

    A second step of each would take long to compile, if they are many. XLA may copy
    them, which is little.

    Args:
      grads: as for `wait`.
      looked: as for `wait`.
    """
    return jax.tree.map(
        lambda g: g if g.size <= calls.SMALL else wait(g, looked), grads
    )
