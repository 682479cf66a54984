"""What the elements of a block share: how it is found, and how it is spread to them.

Blocks lie along the last axis. On a TPU, arrays lie in tiles of 8 rows and 128 lanes,
and XLA transposes whole arrays to get at the lanes of each block. So there, arrays are
viewed as their tiles, which moves nothing. The maximum of a block is that of a row of a
tile, all of whose other lanes are set to zero. What blocks share is spread as the bytes
of one number, which all lanes of a row receive.

The last tiles may lack rows, as those of 50,257 words do. Then maxima are found with
rows of zeros below. But what is spread to such rows and then cut off XLA would copy, so
each tile takes its number by its column.
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
_MOST_COLUMNS = 8  # of tiles: to choose among more takes longer than a copy
_LEAST_SIZE = 2**18  # of a leaf: smaller ones move little, and would compile for longer


def find_peaks(x: jax.Array, blocks: int) -> jax.Array:
    """Return the maximum of each block of the last axis; a NaN gives NaN.

    Args:
      x: float32, not negative.
      blocks: the number of blocks, all equal except the last one.
    """
    # Integers have the same order, and XLA's loops for floats lose some NaNs.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type(find_largest(bits, blocks), jnp.float32)


def find_largest(x: jax.Array, blocks: int) -> jax.Array:
    """Return the maximum of each block of the last axis.

    Args:
      x: integers, not negative.
      blocks: the number of blocks, all equal except the last one.
    """
    return _run(_find_largest, _find_largest_of_tiles, x, x.shape, blocks)


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
    in_tiles = columns and _length(shape, blocks) in _BLOCKS
    in_tiles = in_tiles and math.prod(shape) >= _LEAST_SIZE
    in_tiles = in_tiles and (rows or (len(shape) > 1 and columns <= _MOST_COLUMNS))
    if not in_tiles or AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
        return plain(x, shape, blocks)
    ways = [lambda x, way=way: [way(x, shape, blocks)] for way in (tiled, plain)]
    pieces = math.gcd(rows, columns) if rows else 0
    [made] = choose({"tpu": ways[0]}, ways[1], pieces)(x)
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


def _find_largest(x: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    block = _length(shape, blocks)
    padding = blocks * block - shape[-1]
    if padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    return x.reshape(*shape[:-1], blocks, block).max(axis=-1, initial=0)


def _spread(x: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    block = _length(shape, blocks)
    repeated = jnp.broadcast_to(x[..., None], (*x.shape, block))
    return repeated.reshape(*shape[:-1], blocks * block)[..., : shape[-1]]


def _find_largest_of_tiles(
    x: jax.Array, shape: tuple[int, ...], blocks: int
) -> jax.Array:
    rows = shape[-2] if len(shape) > 1 else 0
    below = -rows % _SUBLANES
    if below:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, below), (0, 0)])
        largest = _find_largest_of_tiles(x, x.shape, blocks)
        return largest[..., :rows, :]
    block, tiles = _length(shape, blocks), _view(x, _LANES)
    lane = lax.broadcasted_iota(jnp.int32, tiles.shape, tiles.ndim - 1)
    # One by one, not as one reduction of several arrays: XLA puts all in one loop.
    largest = [
        jnp.where((lane ^ start) < block, tiles, 0).max(axis=-1)
        for start in range(0, _LANES, block)
    ]
    return _unview(jnp.stack(largest, axis=-1), (*shape[:-1], blocks))


def _spread_to_tiles(x: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    block = _length(shape, blocks)
    number = _LANES // block
    exponents = (lax.bitcast_convert_type(x, jnp.uint32) >> 23).astype(jnp.uint8)
    if not _count_tiles(shape)[0]:
        in_row = [exponents[..., i::number] for i in range(number)]
        lane = lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
        return _unpack(_choose(_pack(in_row), lane), lane % _LANES, block)
    in_row = _view(exponents, number)
    packed = _pack([in_row[..., i] for i in range(number)])
    tiles = (*packed.shape, _LANES)
    lane = lax.broadcasted_iota(jnp.uint32, tiles, len(tiles) - 1)
    return _unview(_unpack(packed[..., None], lane, block), shape)


def _pack(exponents: list[jax.Array]) -> jax.Array:
    """Return one number for the blocks of a row of a tile, of a byte each."""
    return functools.reduce(
        jnp.bitwise_or,
        [x.astype(jnp.uint32) << (8 * i) for i, x in enumerate(exponents)],
    )


def _choose(packed: jax.Array, lane: jax.Array) -> jax.Array:
    """Return for each element the number of its tile."""
    chosen = jnp.broadcast_to(packed[..., :1], lane.shape)
    for i in range(1, packed.shape[-1]):
        chosen = jnp.where(lane >= _LANES * i, packed[..., i : i + 1], chosen)
    return chosen


def _unpack(packed: jax.Array, lane: jax.Array, block: int) -> jax.Array:
    """Return for each lane what its block has."""
    raw = (packed >> (lane // block * 8)) << 23
    values = lax.bitcast_convert_type(raw & jnp.uint32(_INFINITY), jnp.float32)
    return jnp.where(values == jnp.inf, jnp.nan, values)


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
