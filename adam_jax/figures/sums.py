"""Sums over all elements of several arrays of the same shape, in few passes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax import numerics


def sum_all(arrays: list[jax.Array]) -> jax.Array:
    """Return the sum of each of several arrays of the same shape.

    Args:
      arrays: floating-point, complex or boolean arrays.

    Returns:
      An array of one number per array, in float32 or wider. The sum of a boolean array
      is the count of its true elements.
    """
    dtype = numerics.compute_dtype(*{x.dtype for x in arrays if x.dtype != bool})
    if not arrays or arrays[0].ndim == 0:
        return jnp.array(arrays, dtype)
    # XLA vectorises sums of integers, but keeps the order of floats: hence two passes.
    counts = [x.astype(jnp.int32) for x in arrays if x.dtype == bool]
    floats = [x.astype(dtype) for x in arrays if x.dtype != bool]
    counted, added = (iter(_sum_alike(group, dtype)) for group in (counts, floats))
    sums = [next(counted if x.dtype == bool else added) for x in arrays]
    return jnp.stack(sums)


def _sum_alike(arrays: list[jax.Array], dtype: Any) -> list[jax.Array]:
    """Return the sums of arrays of the same shape and dtype, in one pass."""
    if not arrays:
        return []
    # Row by row: a single float32 stops growing at 2^24 times what is added to it.
    parts = [jnp.stack(_sum_rows(part)) for part in _cut_rows(arrays)]
    sums = [part.astype(dtype).sum(axis=range(1, part.ndim)) for part in parts]
    return list(functools.reduce(jnp.add, sums))


def _cut_rows(arrays: list[jax.Array]) -> list[list[jax.Array]]:
    """Cut a long last axis into rows of moderate length, and a remainder if any."""
    *_, length = arrays[0].shape
    if length <= 1024:
        return [arrays]
    # A shard should be a whole number of rows. So choose a row length with few factors
    # of two, which leaves many to the number of rows. A length that has no suitable
    # divisor is hardly ever sharded.
    fits = [row for row in range(256, 2049) if length % row == 0]
    row = min(fits, key=lambda row: (row & -row, row), default=1024)
    whole = length // row * row
    cut = [[x[..., :whole].reshape(*x.shape[:-1], -1, row) for x in arrays]]
    return cut if whole == length else [*cut, [x[..., whole:] for x in arrays]]


def _sum_rows(arrays: list[jax.Array]) -> list[jax.Array]:
    """Return the sums over the last axis, in one pass."""

    def add(left, right):
        return [x + y for x, y in zip(left, right, strict=True)]

    zeros = [np.zeros([], x.dtype) for x in arrays]
    return lax.reduce(arrays, zeros, add, [arrays[0].ndim - 1])
