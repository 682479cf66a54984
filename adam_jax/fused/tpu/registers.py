"""Blocks of 8-bit codes in the registers of a TPU.

A tile is 32 rows of some strips of 128 lanes. Each strip is one register of codes, or
four of float32. Blocks lie along the lanes: their maxima are found by permuting lanes,
for all registers of a strip at once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adam_jax.moments import blocks

SHAPE = SUBLANES, LANES = 8, 128  # of a register
ROWS = 32  # of a tile
IN_STRIP = ROWS // SUBLANES  # registers of float32
BLOCKS = (8, 16, 32, 64, 128)  # the sizes of blocks that fit


class Merged(NamedTuple):
    """How one register holds the exponents of all blocks of a strip.

    Those of block q of register i lie in the lanes from q * block + i * copies on, as
    many as there are copies.

    Attributes:
      block: the number of lanes of a block.
      number: the number of registers of a strip, for all coded moments.
    """

    block: int
    number: int

    @property
    def copies(self) -> int:
        """The number of lanes that hold the exponent of one block."""
        return self.block // self.number

    def find_exponents(self, sizes: Sequence[jax.Array]) -> jax.Array:
        """Return the exponents of the blocks of tiles, a register for each strip.

        Args:
          sizes: of each coded moment, the absolute values.
        """
        bits = [lax.bitcast_convert_type(size, jnp.int32) for size in sizes]  # for NaN
        strips = [
            [part for x in bits for part in jnp.split(x[:, i : i + LANES], IN_STRIP)]
            for i in range(0, bits[0].shape[1], LANES)
        ]
        step = self.block
        while step > 1:
            step //= 2
            strips = [_merge(parts, step) for parts in strips]
        peaks = jnp.concatenate([peaks for [peaks] in strips], axis=1)
        return blocks.find_exponents(lax.bitcast_convert_type(peaks, jnp.float32))

    def spread(self, merged: jax.Array, moment: int) -> jax.Array:
        """Return what belongs to the blocks of a tile, for each of its elements.

        Args:
          merged: laid like what `find_exponents` returned.
          moment: the number of the tile's moment among those that are coded.
        """
        strips = [merged[:, i : i + LANES] for i in range(0, merged.shape[1], LANES)]
        start = _lane() & -self.block
        sources = [
            start + i * self.copies
            for i in range(moment * IN_STRIP, (moment + 1) * IN_STRIP)
        ]
        spread = [
            jnp.concatenate([permute(strip, source) for source in sources])
            for strip in strips
        ]
        return jnp.concatenate(spread, axis=1)

    def keep(self, peaks: Any, first: Any, exponents: jax.Array) -> None:
        """Write exponents beside those of other strips.

        Args:
          peaks: a reference, of a register for as many strips as there are copies.
          first: the first column of the tile.
          exponents: what `find_exponents` returned.
        """
        for i in range(0, exponents.shape[1], LANES):
            strip = lax.div(first + i, LANES)
            place = lax.div(strip, self.copies)
            own = (_lane() & (self.copies - 1)) == lax.rem(strip, self.copies)
            peaks[place] = jnp.where(own, exponents[:, i : i + LANES], peaks[place])

    def collect(self, peaks: Any) -> list[jax.Array]:
        """Return the exponents of 128 blocks in order, of 32 rows of each coded moment.

        Args:
          peaks: a reference, where `keep` has left them.
        """
        span = LANES // self.number  # blocks of each row in a register of peaks
        block = _lane() & (span - 1)
        in_strip = LANES // self.block
        source = (block & (in_strip - 1)) * self.block + (block >> log2(in_strip))

        def collect(i: Any, parts: Any) -> Any:
            own = (_lane() >> log2(span)) == i
            found = peaks[i]
            return tuple(
                jnp.where(own, permute(found, source + k * self.copies), part)
                for k, part in enumerate(parts)
            )

        parts = (jnp.zeros(SHAPE, jnp.int32),) * self.number
        parts = lax.fori_loop(0, peaks.shape[0], collect, parts)
        return [
            jnp.concatenate(parts[i : i + IN_STRIP])
            for i in range(0, self.number, IN_STRIP)
        ]


def permute(x: jax.Array, source: jax.Array) -> jax.Array:
    """Return lanes of `x`, as many as there are sources.

    Args:
      x: of 128 lanes.
      source: int32s, of as many rows, the lanes to take.
    """
    strips = [source[:, i : i + LANES] for i in range(0, source.shape[1], LANES)]
    taken = [jnp.take_along_axis(x, strip, axis=1) for strip in strips]
    return jnp.concatenate(taken, axis=1)


def log2(n: int) -> int:
    """Return the logarithm of `n`, a power of two."""
    return n.bit_length() - 1


def _merge(parts: Sequence[jax.Array], step: int) -> list[jax.Array]:
    """Return maxima of pairs of lanes that lie a step apart, of twice the registers."""
    upper = (_lane() & step) != 0
    swap = functools.partial(permute, source=_lane() ^ step)
    if len(parts) == 1:
        return [jnp.maximum(parts[0], swap(parts[0]))]
    half = len(parts) // 2
    return [
        jnp.maximum(jnp.where(upper, b, a), swap(jnp.where(upper, a, b)))
        for a, b in zip(parts[:half], parts[half:], strict=True)
    ]


def _lane() -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, SHAPE, 1)
