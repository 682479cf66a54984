"""Sums over all elements of several arrays of the same shape, in few passes."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax import numerics

# Of so few elements, sums are soon taken: then programs are to be small.
_FEW = 2**16


def sum_all(
    arrays: list[jax.Array], beside: Mapping[str, jax.Array] | None = None
) -> jax.Array:
    """Return the sum of each of several arrays of the same shape.

    On TPU and GPU all are summed in one pass, in the loop that takes the step if there
    is one.

    Args:
      arrays: floating-point, complex or boolean arrays. One that is among them several
        times is summed once.
      beside: the parts of a leaf, by name, that this loop reads and writes.

    Returns:
      An array of one number per array, in float32 or wider. The sum of a boolean array
      is the count of its true elements.
    """
    dtype = numerics.compute_dtype(*{x.dtype for x in arrays if x.dtype != bool})
    if not arrays or arrays[0].ndim == 0:
        return jnp.array(arrays, dtype)
    single = {id(x): x for x in arrays}
    sums = lax.platform_dependent(
        list(single.values()),
        dict(beside or {}),
        cpu=functools.partial(_sum_by_rows, dtype),
        cuda=functools.partial(_sum_together, dtype),
        rocm=functools.partial(_sum_together, dtype),
        default=functools.partial(_sum_side_by_side, dtype),
    )
    found = dict(zip(single, sums, strict=True))
    return jnp.stack([found[id(x)] for x in arrays])


# A TPU and a GPU add up many partial sums, so none needs to be kept short. What XLA
# fuses depends on what each sum reads. So each reads more, or seems to (`_tie`): then
# one loop takes the step and all sums, and keeps nothing in memory in between. What it
# takes was found by trying: tests/compiled has it.


def _sum_side_by_side(dtype: Any, arrays: Any, beside: Any) -> list[jax.Array]:
    """Return the sums as TPUs do them best: a reduction for each."""
    seen = [beside[x] for x in ("grad", "mu", "nu", "landed") if x in beside]
    return [jnp.sum(_tie(x.astype(dtype), seen)) for x in arrays]


def _sum_together(dtype: Any, arrays: Any, beside: Any) -> list[jax.Array]:
    """Return the sums as GPUs do them best: a single reduction."""
    seen = [beside[x] for x in ("grad", "param", "mu", "nu") if x in beside]
    tied = [x.astype(dtype) for x in arrays]
    if arrays[0].size > _FEW:
        tied = [_tie(x, seen) for x in tied]
    return _reduce(tied, range(arrays[0].ndim))


def _tie(x: jax.Array, arrays: list[jax.Array]) -> jax.Array:
    """Return `x` in such a way that XLA takes it to depend on the arrays as well."""
    if x.dtype != jnp.float32:
        return x
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    for other in arrays:
        if other.shape == x.shape:
            # What is left of a sign has no second bit, which XLA does not know.
            real = other.real.astype(jnp.float32)
            sign = lax.bitcast_convert_type(real, jnp.uint32) >> jnp.uint32(31)
            bits |= sign & jnp.uint32(2)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _sum_by_rows(dtype: Any, arrays: Any, beside: Any) -> list[jax.Array]:
    """Return the sums, of partial sums over rows that a CPU adds up in order."""
    del beside
    if arrays[0].size <= _FEW:
        return _sum_alike([x.astype(dtype) for x in arrays], dtype)
    # XLA vectorises sums of integers, but keeps the order of floats: hence two passes.
    counts = [x.astype(jnp.int32) for x in arrays if x.dtype == bool]
    floats = [x.astype(dtype) for x in arrays if x.dtype != bool]
    counted, added = (iter(_sum_alike(group, dtype)) for group in (counts, floats))
    return [next(counted if x.dtype == bool else added) for x in arrays]


def _sum_alike(arrays: list[jax.Array], dtype: Any) -> list[jax.Array]:
    """Return the sums of arrays of the same shape and dtype, in one pass."""
    if not arrays:
        return []
    # Row by row: a single float32 stops growing at 2^24 times what is added to it.
    parts = [jnp.stack(_reduce(x, [x[0].ndim - 1])) for x in _cut_rows(arrays)]
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


def _reduce(arrays: list[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """Return the sums over some axes, in one pass."""

    def add(left, right):
        return [x + y for x, y in zip(left, right, strict=True)]

    zeros = [np.zeros([], x.dtype) for x in arrays]
    return lax.reduce(arrays, zeros, add, axes)
