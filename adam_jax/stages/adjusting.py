"""Stages that look at each leaf as a whole."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import tree_map_with_path

from adam_jax import numerics, placement
from adam_jax.checks import check_inexact
from adam_jax.stages.division import emit
from adam_jax.stages.flow import expect_updates, widen


def adjust_leaves(
    measure: Callable[[jax.Array], jax.Array],
    use: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    stage: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Measure one number of each leaf, and adjust the leaf by what becomes of it.

    The numbers of all leaves are a pytree of scalars. They go through a stage of their
    own, which may average them.

    Args:
      measure: leaf -> a real scalar, like `largest` and `norm`.
      use: (leaf, measured, number) -> the adjusted leaf, where `number` is what the
        stage makes of `measured`. All are float32 or wider.
      stage: from updates to updates; None takes the numbers as they are.

    Raises:
      TypeError: at the first trace, for `Moments`.

    Example: Adam's step for the norm of a leaf; its direction stays.

      >>> from adam_jax import bias_correct, precondition, scale_by_moments
      >>> tx = adjust_leaves(
      ...     norm,
      ...     lambda leaf, size, number: leaf / size * number,
      ...     optax.chain(scale_by_moments(), bias_correct(), precondition()),
      ... )
      >>> leaf = jnp.array([30.0, 40.0])
      >>> print(tx.update(leaf, tx.init(leaf))[0].round(3))
      [0.6 0.8]

    Reference: Huang et al. 2025 (Stable-SPAM), Algorithm 1.
    """
    inner = stage or optax.identity()

    def init_fn(params):
        check_inexact(params, "params")

        def start(param):
            dtype = numerics.compute_dtype(numerics.dtype_of(param))
            return jnp.zeros([], numerics.real_dtype(dtype))

        return inner.init(jax.tree.map(start, params))

    def update_fn(updates, state, params=None):
        expect_updates(updates, "adjust_leaves")
        check_inexact(updates, "updates")
        wide = widen(updates)
        measured = tree_map_with_path(
            lambda path, leaf: placement.at_leaf(path, measure, leaf), wide
        )
        numbers, state = inner.update(measured, state)
        adjusted = jax.tree.map(use, wide, measured, numbers)
        return emit(adjusted, updates, params), state

    return optax.GradientTransformation(init_fn, update_fn)


def largest(leaf: jax.Array) -> jax.Array:
    """Return the size of the largest element; 0 of an empty leaf.

    Args:
      leaf: an array. Of a piece in `in_shard_map`, the whole counts.
    """
    size = jnp.max(jnp.abs(leaf), initial=0)
    names = _names()
    return lax.pmax(size, names) if names else size


def norm(leaf: jax.Array) -> jax.Array:
    """Return the Euclidean norm, also where the squares leave the range.

    Args:
      leaf: an array. Of a piece in `in_shard_map`, the whole counts.
    """
    scale = largest(lax.stop_gradient(leaf))
    scale = jnp.where(scale == 0, 1, scale)
    squares = numerics.abs_sq(numerics.divide(leaf, scale)).sum()
    names = _names()
    return scale * numerics.sqrt(lax.psum(squares, names) if names else squares)


def _names() -> tuple[str, ...]:
    """Return the axes of the mesh that cut the leaf at work."""
    return tuple(name for axis in placement.current_cut() or () for name in axis)
