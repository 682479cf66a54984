"""Small moments that native code reads and stores, in programs for one CPU.

There XLA compiles hashes and codes for long, and leaves may be many. The native code
returns the same, bit for bit, between two loops of XLA's instead of inside them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.choice import choose
from adam_jax.moments.noise import LeafNoise, Noise
from adam_jax.native import calls


def load(
    common: Callable[[jax.Array, jax.Array], jax.Array],
    codes: jax.Array,
    exponents: jax.Array,
) -> jax.Array:
    """Return `common(codes, exponents)`.

    Args:
      common: what reads 8-bit codes anywhere.
      codes: int8 or uint8.
      exponents: uint8, of each block of the last axis.
    """
    if not calls.takes_small(codes):
        return common(codes, exponents)
    return _load(common, codes, exponents)


@functools.partial(jax.jit, static_argnums=0)  # traced once for all leaves of a shape
def _load(common: Any, codes: jax.Array, exponents: jax.Array) -> jax.Array:
    ways = [lambda *x, way=way: [way(*x)] for way in (calls.load, common)]
    [values] = choose({"cpu": ways[0]}, ways[1], exports=False)(codes, exponents)
    return values


def store(
    common: Callable[[jax.Array, Noise], list[jax.Array]],
    x: jax.Array,
    noise: Noise,
    blocks: int = 0,
) -> list[jax.Array]:
    """Return `common(x, noise)`.

    Args:
      common: what stores a moment anywhere: as codes and exponents, or as bfloat16.
      x: the moment.
      noise: the random bits that it is rounded by.
      blocks: the number of blocks of the last axis; 0 for bfloat16.
    """
    hashed = isinstance(noise, LeafNoise) and x.dtype == jnp.float32
    if not hashed or not calls.takes_small(x):
        return common(x, noise)
    order = noise.order

    def native(x, known, past):
        return calls.store(x, known, past, order, blocks)

    def composed(x, known, past):
        return common(x, LeafNoise(known, past, order, x))

    made = choose({"cpu": native}, composed, exports=False)
    return made(x, noise.known, noise.past)
