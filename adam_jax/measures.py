"""Numbers of a whole leaf, of which a shard_map may hold a piece: norms, means, sums.

In a function that `map_leaves` calls, an array like the leaf is taken for a piece of it
if `in_shard_map` says so. Elsewhere it is the whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

from adam_jax import numerics, placement

Axes = Sequence[int] | None
"""Along which a number is measured. They stay, with size 1; None gives a scalar."""


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map over the leaves of trees, with each in turn the leaf at work.

    Args:
      function: maps a leaf of each tree to one new leaf.
      tree: a pytree of arrays, like the parameters.
      *rest: pytrees like it.
    """
    return tree_map_with_path(
        lambda path, *leaves: placement.at_leaf(path, function, *leaves), tree, *rest
    )


def largest(leaf: jax.Array, axes: Axes = None) -> jax.Array:
    """Return the size of the largest element; 0 if there is none.

    Args:
      leaf: an array, or a piece of the leaf at work.
      axes: along which to look; None means all.
    """
    size = jnp.abs(leaf).max(axes, keepdims=axes is not None, initial=0)
    return placement.reduce_pieces(lax.pmax, size, _all(leaf, axes))


def norm(leaf: jax.Array, axes: Axes = None) -> jax.Array:
    """Return the Euclidean norm, also where squares leave the range.

    Args:
      leaf: an array, float32 or wider, or a piece of the leaf at work.
      axes: along which to add; None means all.
    """
    return _root(leaf, axes, jnp.sum, lax.psum)


def root_mean_square(leaf: jax.Array, axes: Axes = None) -> jax.Array:
    """Return the root mean square, also where squares leave the range.

    That of nothing is 0.

    Args:
      leaf: an array, float32 or wider, or a piece of the leaf at work.
      axes: along which to average; None means all.
    """
    return _root(leaf, axes, _mean, lax.pmean)


def mean(leaf: jax.Array, axes: Axes = None) -> jax.Array:
    """Return the mean, also where the sum would overflow. That of nothing is 0.

    Args:
      leaf: an array, float32 or wider, or a piece of the leaf at work.
      axes: along which to average; None means all.
    """
    half = 2.0 ** (jnp.finfo(leaf.dtype).maxexp // 2)
    plain, scaled = (
        placement.reduce_pieces(
            lax.pmean, _mean(x, axes, keepdims=axes is not None), _all(leaf, axes)
        )
        for x in (leaf, leaf / half)
    )
    return jnp.where(jnp.isfinite(plain), plain, scaled * half)


def sum_leaves(tree: Any, dtype: Any) -> jax.Array:
    """Return the sum over all leaves of what was summed over each.

    Args:
      tree: a pytree like the parameters, of real scalars. Where leaves are in pieces,
        each is of its piece, and the result of the whole.
      dtype: that of the result.
    """
    paths = [path for path, _ in tree_leaves_with_path(tree)]
    sums, _ = placement.sum_pieces(jax.tree.leaves(tree), None, paths)
    return sum((x.astype(dtype) for x in sums), jnp.zeros([], dtype))


def _root(leaf: jax.Array, axes: Axes, gather: Any, combine: Any) -> jax.Array:
    """Return the root of the gathered squares of the pieces, combined."""
    # A power of two: no digit of the leaf is lost.
    _, exponent = jnp.frexp(largest(lax.stop_gradient(leaf), axes))
    tiny = jnp.finfo(leaf.dtype).tiny
    scale = jnp.maximum(jnp.ldexp(jnp.ones([], tiny.dtype), exponent - 1), tiny)
    squares = numerics.abs_sq(numerics.divide(leaf, scale))
    gathered = gather(squares, axes, keepdims=axes is not None)
    whole = placement.reduce_pieces(combine, gathered, _all(leaf, axes))
    return scale * numerics.sqrt(whole)


def _mean(x: jax.Array, axes: Axes, keepdims: bool) -> jax.Array:
    """Return the mean of an array, and 0 instead of the NaN that JAX gives nothing."""
    return x.mean(axes, keepdims=keepdims) if x.size else x.sum(axes, keepdims=keepdims)


def _all(leaf: jax.Array, axes: Axes) -> Sequence[int]:
    return range(leaf.ndim) if axes is None else axes
