"""What the elements of a block share: how it is found, and how it is spread to them.

Blocks lie along the last axis. On a TPU, arrays lie in tiles of 8 rows and 128 lanes,
and XLA transposes whole arrays to get at the lanes of each block. So there, arrays are
viewed as their tiles, which moves nothing. The maximum of a block is that of a row of a
tile, all of whose other lanes are set to zero. What blocks share is spread as the bytes
of one number, which all lanes of a row receive.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from adam_jax.choice import choose

_SUBLANES, _LANES = 8, 128  # of a tile
_BLOCKS = (32, 64, 128)  # at most four in a row of a tile, whose number has four bytes
_INFINITY = 0x7F800000
_LEAST_SIZE = 2**18  # of a leaf: smaller ones move little, and would compile for longer


def find_peaks(x: jax.Array, blocks: int) -> jax.Array:
    """Return the maximum of each block of the last axis; a NaN gives NaN.

    Args:
      x: float32, not negative.
      blocks: the number of blocks, all equal except the last one.
    """
    # Integers have the same order, and XLA's loops for floats lose some NaNs.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    peaks = _run(_find_peaks, _find_peaks_of_tiles, bits, x.shape, blocks)
    return lax.bitcast_convert_type(peaks, jnp.float32)


def spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat what each block has for its elements.

    Args:
      x: float32, a power of two or NaN for each block.
      shape: of the result.
    """
    return _run(_spread, _spread_to_tiles, x, shape, x.shape[-1])


def _run(
    plain: Any, tiled: Any, x: jax.Array, shape: tuple[int, ...], blocks: int
) -> jax.Array:
    """Return `plain(x, shape, blocks)`, on TPU as `tiled` computes it.

    Not so if tiles are not whole, or might not be in the shards that XLA cuts the leaf
    into: then arrays would be copied, or exchanged between devices. Nor if the leaf is
    small: such leaves may be many.
    """
    rows, columns = _count_tiles(shape)
    in_tiles = rows and columns and _length(shape, blocks) in _BLOCKS
    in_tiles = in_tiles and math.prod(shape) >= _LEAST_SIZE
    if not in_tiles or AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
        return plain(x, shape, blocks)
    ways = [lambda x, way=way: [way(x, shape, blocks)] for way in (tiled, plain)]
    [made] = choose({"tpu": ways[0]}, ways[1], math.gcd(rows, columns))(x)
    return made


def _length(shape: tuple[int, ...], blocks: int) -> int:
    """Return the length of a block; the last one of a row may be shorter."""
    return -(-shape[-1] // max(blocks, 1))


def _count_tiles(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the numbers of tiles along the last two axes; 0 if they are not whole."""
    if len(shape) == 1:  # rows of 128, one below the other
        number = _divide(shape[0], _SUBLANES * _LANES)
        return number, number
    return _divide(shape[-2], _SUBLANES), _divide(shape[-1], _LANES)


def _divide(length: int, unit: int) -> int:
    return 0 if length % unit else length // unit


def _find_peaks(bits: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    block = _length(shape, blocks)
    padding = blocks * block - shape[-1]
    if padding:
        bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, padding)])
    return bits.reshape(*shape[:-1], blocks, block).max(axis=-1, initial=0)


def _spread(x: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    block = _length(shape, blocks)
    repeated = jnp.broadcast_to(x[..., None], (*x.shape, block))
    return repeated.reshape(*shape[:-1], blocks * block)[..., : shape[-1]]


def _find_peaks_of_tiles(
    bits: jax.Array, shape: tuple[int, ...], blocks: int
) -> jax.Array:
    block, tiles = _length(shape, blocks), _view(bits, _LANES)
    lane = lax.broadcasted_iota(jnp.int32, tiles.shape, tiles.ndim - 1)
    # One by one, not as one reduction of several arrays: XLA puts all in one loop.
    peaks = [
        jnp.where((lane ^ start) < block, tiles, 0).max(axis=-1)
        for start in range(0, _LANES, block)
    ]
    return _unview(jnp.stack(peaks, axis=-1), (*shape[:-1], blocks))


def _spread_to_tiles(x: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    block = _length(shape, blocks)
    exponents = (lax.bitcast_convert_type(x, jnp.uint32) >> 23).astype(jnp.uint8)
    in_row = _view(exponents, _LANES // block).astype(jnp.uint32)
    packed = functools.reduce(
        jnp.bitwise_or, [in_row[..., i] << (8 * i) for i in range(_LANES // block)]
    )
    tiles = (*packed.shape, _LANES)
    lane = lax.broadcasted_iota(jnp.uint32, tiles, len(tiles) - 1)
    raw = (packed[..., None] >> (lane // block * 8)) << 23
    values = lax.bitcast_convert_type(raw & jnp.uint32(_INFINITY), jnp.float32)
    return _unview(jnp.where(values == jnp.inf, jnp.nan, values), shape)


def _view(x: jax.Array, width: int) -> jax.Array:
    """Return an array as its tiles, of 8 rows and `width` columns."""
    if x.ndim == 1:
        return x.reshape(-1, 1, _SUBLANES, width)
    *leading, rows, columns = x.shape
    split = rows // _SUBLANES, _SUBLANES, columns // width, width
    return x.reshape(*leading, *split).swapaxes(-3, -2)


def _unview(tiles: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return the array of a shape whose tiles these are."""
    return tiles.swapaxes(-3, -2).reshape(shape)
