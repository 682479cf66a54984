"""Bare XLA calls for one whole leaf: a moment is read or stored, or sums are taken."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adam_jax import placement
from adam_jax.native.library import LARGEST_BLOCK, LOAD, STORE, SUM, available

SUMS: tuple[str, ...] = (
    "square grad",
    "nonfinite",
    "square param",
    "square update",
    "step_size",
    "at_bound",
    "moved",
    "swallowed",
    "signal_to_noise",
    "has_signal",
)
"""What native code may sum over a leaf, by the functions of `figures.leaves`.

But "step_size" is not divided by the learning rate, nor is "signal_to_noise" corrected.
"""


def takes(shape: tuple[int, ...], blocks: int = 0) -> bool:
    """Return whether the library can take a moment: it was built, and blocks are short.

    Args:
      shape: of the moment.
      blocks: the number of blocks of its last axis; 0 if there are none.
    """
    return available() and (not blocks or -(-shape[-1] // blocks) < LARGEST_BLOCK)


SMALL = 2**13
"""The elements of a small leaf. Of a larger one, what lies in memory between a call and
XLA's loops costs more than is won: XLA computes it inside of them."""


def takes_small(x: jax.Array) -> bool:
    """Return whether a call is to take a leaf: it is small, traced, and on no mesh.

    Args:
      x: an array like the leaf.
    """
    whole = jax.typeof(x).sharding.mesh.empty and not placement.current_cut()
    return whole and isinstance(x, Tracer) and 0 < x.size <= SMALL and available()


def load(codes: jax.Array, exponents: jax.Array) -> jax.Array:
    """Return the float32 values of 8-bit codes, as `blocks.decode_values` does.

    Args:
      codes: int8 of a first moment, uint8 of a second one.
      exponents: uint8, of each block of the last axis.
    """
    values = jax.ShapeDtypeStruct(codes.shape, jnp.float32)
    return jax.ffi.ffi_call(LOAD, values)(codes, exponents)


def store(
    values: jax.Array, known: jax.Array, past: jax.Array, order: int, blocks: int = 0
) -> list[jax.Array]:
    """Round a moment stochastically, as the composed formats do, bit for bit.

    Args:
      values: float32.
      known: uint32s, what `randomness.hash_known` returned.
      past: int32 scalar, the number of steps before this one.
      order: 1 for a first moment, 2 for a second one.
      blocks: the number of blocks of the last axis; 0 for bfloat16.

    Returns:
      The codes and the exponents of their blocks; for bfloat16, the moment alone.
    """
    shape = values.shape
    if blocks:
        dtypes = [jnp.int8 if order == 1 else jnp.uint8, jnp.uint8]
        shapes = [shape, (*shape[:-1], blocks)]
    else:
        dtypes, shapes = [jnp.bfloat16], [shape]
    results = [*map(jax.ShapeDtypeStruct, shapes, dtypes)]
    past = jnp.asarray(past, jnp.uint32)
    return list(jax.ffi.ffi_call(STORE, results)(values, known, past, order=order))


def sum_leaf(
    parts: Mapping[str, jax.Array],
    large: jax.Array,
    names: Sequence[str],
    factors: jax.Array,
) -> jax.Array:
    """Return some of the `SUMS` over a leaf, each times its factor.

    Args:
      parts: "grad", "param", "update", "mu" and "nu", or those of them that are summed,
        float32, all of one shape. The moments count together only.
      large: float32 scalar; an update of this size or more counts as "at_bound".
      names: which sums, in order.
      factors: float32, one for each; 0 gives 0, of NaN as well.
    """
    none = jnp.zeros(0, jnp.float32)
    given = ("grad", "param", "update", "mu", "nu")
    arrays = [parts.get(part, none) for part in given]
    result = jax.ShapeDtypeStruct((len(names),), jnp.float32)
    order = np.array([SUMS.index(name) for name in names], np.int32)
    return jax.ffi.ffi_call(SUM, result)(*arrays, large, factors, order=order)
