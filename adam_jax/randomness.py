"""Random bits: hashes of where an element is, of seeds and of counts, without a key."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from adam_jax import placement

POSITIONS = 2**32
"""The number of elements whose positions a uint32 can tell apart."""


def random_bits(
    shape: tuple[int, ...],
    words: Sequence[ArrayLike],
    like: ArrayLike | None = None,
    known: ArrayLike | None = None,
) -> jax.Array:
    """Return uint32s of `shape`: hashes of the words and each element's index.

    The finalizer of MurmurHash3 mixes in the words one by one. An element's bits depend
    on its position in the whole array, not on the shard that holds it. (In a shard_map,
    `placement.at_leaf` says where the shard lies.) On two CPU cores this takes 1 ns per
    element; `jax.random.bits` takes 11.

    A position is counted in 32 bits. In larger arrays, such as stacked layers, it is
    counted along the last axes, as many as fit; the position along the others is
    another word.

    Args:
      shape: the shape of the result; no axis may be longer than 2^32.
      words: numbers, of which the lowest 32 bits count. Those that are known when it is
        traced go first: they are mixed then.
      like: an array that the result is sharded like, if it has the same shape. Without
        it, on explicit mesh axes, every device computes the whole result.
      known: what `hash_known` returned for the words before these.

    Raises:
      ValueError: for a piece of a leaf, if `like` has another shape.
    """
    sharding, cut = None, placement.current_cut()
    if like is not None and jnp.shape(like) == shape:
        sharding = jax.typeof(like).sharding
        sharding = None if sharding.mesh.empty else sharding
    elif cut:
        raise ValueError(
            f"random bits of shape {shape} were asked for a leaf that in_shard_map() "
            "cuts: a format must ask for those of the shape of its leaf."
        )
    starts = placement.find_starts(shape, cut) if cut else []
    whole = placement.whole_shape(shape, cut)
    if known is None:
        first = [*itertools.takewhile(lambda word: isinstance(word, int), words)]
        known, words = hash_known(first), words[len(first) :]
    words = [_as_word(word) for word in words]
    return _random_bits(known, words, starts, shape, whole, sharding)


def hash_known(words: Sequence[ArrayLike]) -> np.ndarray:
    """Return the hash of words in such a form that XLA takes it for an operand.

    A scalar constant it would write into the loop over its leaf, and then compile a
    loop for each leaf. This is an array, of which it does not know that the first
    element is taken. So leaves of one shape share a loop: GPT-2's step with bfloat16
    moments compiles in a third of the time for an H100.

    Args:
      words: whole numbers, as in `random_bits`.
    """
    hashed = hash_words(words)
    return np.array([hashed, ~hashed], np.uint32)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))  # one call, without jit as well
def _random_bits(
    known: jax.Array,
    words: Sequence[jax.Array],
    starts: Sequence[jax.Array],
    shape: tuple[int, ...],
    whole: tuple[int, ...],
    sharding: Any,
) -> jax.Array:
    place = (words[0] | np.uint32(1)) == 0 if words else 0  # never 1
    hashed = lax.dynamic_index_in_dim(known, jnp.int32(place), keepdims=False)
    hashed = hash_words(words, hashed)
    axes = list(range(len(shape)))
    iota = functools.partial(
        lax.broadcasted_iota, jnp.uint32, shape, out_sharding=sharding
    )
    while len(axes) > 1 and math.prod(whole[axis] for axis in axes) > POSITIONS:
        axis = axes.pop(0)
        index = iota(dimension=axis)
        index = index + starts[axis] if starts else index
        hashed = hash_index(index, hashed) + _INCREMENT
    if starts:
        hashed = hashed + find_position(
            [starts[axis] for axis in axes], [whole[axis] for axis in axes]
        )
    # The last axis comes last: XLA adds what is equal along it once a row.
    for i, axis in enumerate(axes):
        stride = math.prod(whole[other] for other in axes[i + 1 :])
        index = iota(dimension=axis)
        index = index if stride == 1 else index * np.uint32(stride % POSITIONS)
        hashed = hashed + index
    return _finish(jnp.broadcast_to(hashed, shape))


def find_position(place: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
    """Return the position of one element of an array, a uint32 scalar.

    Args:
      place: its index along each axis, uint32s.
      shape: of the array.
    """
    position = jnp.uint32(0)
    for i, start in enumerate(place):
        stride = math.prod(shape[i + 1 :]) % POSITIONS
        position = position + start * jnp.uint32(stride)
    return position


_INCREMENT = np.uint32(0x9E3779B9)  # or zeros would give zeros


def hash_words(words: Sequence[ArrayLike], start: Any = _INCREMENT) -> Any:
    """Return the part of `random_bits` that all elements share, a uint32 scalar.

    Args:
      words: as in `random_bits`. If all are known, the result is NumPy's.
      start: what this function returned for the words before them.
    """
    bits = start
    with np.errstate(over="ignore"):
        for word in words:
            bits = hash_index(_as_word(word), bits) + _INCREMENT
    return bits


def _as_word(number: ArrayLike) -> Any:
    """Return the lowest 32 bits of a number; of a Python integer, as NumPy's."""
    if isinstance(number, int):
        return np.uint32(number % 2**32)
    return jnp.asarray(number, jnp.uint32)


def hash_index(index: Any, words: Any) -> Any:
    """Return the random bits of elements.

    Args:
      index: uint32s, the positions of the elements in the whole array.
      words: what `hash_words` returned.
    """
    return _finish(index + words)


def _finish(x: Any) -> Any:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
