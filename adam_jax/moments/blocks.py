"""Eight-bit moments: floating-point codes that share an exponent in each block."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from adam_jax import numerics, placement
from adam_jax.moments import native_storage
from adam_jax.moments.formats import Format, Stored
from adam_jax.moments.noise import Noise
from adam_jax.moments.tiles import find_largest, find_peaks, spread


class EightBit(NamedTuple):
    """Reader for moments stored as 8-bit codes.

    Attributes:
      exponents: the biased exponents of the blocks' largest elements, uint8. The shape
        is the leaf's, but the last axis counts the blocks. A leaf that is not coded
        has `optax.MaskedNode()` here: its moment is stored as it is.
    """

    exponents: Any

    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        """Return the array that the codes stand for."""
        del leaf
        if isinstance(self.exponents, optax.MaskedNode):
            return values
        _expect_whole_blocks(values, self.exponents.shape[-1])
        return native_storage.load(_decode, values, self.exponents)


@dataclasses.dataclass(frozen=True)
class EightBitFormat(Format):
    """The format that `eight_bit` returns; its arguments are the attributes."""

    block: int = 32
    min_size: int = 4096
    reader = EightBit

    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return the codes of `x`, or `x` itself if it is not to be coded."""
        small = placement.whole_size(x) < self.min_size
        if small or x.size == 0 or x.ndim == 0 or jnp.iscomplexobj(x):
            return Stored(x, EightBit(optax.MaskedNode()))
        half = jnp.uint32(1 << 31)  # no noise at the start: round to nearest
        blocks = -(-x.shape[-1] // _fit_block(x, self.block))
        return encode_blocks(x, blocks, signed, lambda shape: jnp.full(shape, half))

    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return the codes of `x`, or `x` itself, as in `old`."""
        exponents = old.format.exponents
        if isinstance(exponents, optax.MaskedNode):
            return Stored(numerics.cast(x, old.values.dtype), old.format)
        signed = old.values.dtype == jnp.int8
        if self._are_of_the_whole(exponents, x):
            raise ValueError(_uneven(x, -(-_whole_length(x) // exponents.shape[-1])))
        return encode_blocks(x, exponents.shape[-1], signed, noise)

    def _are_of_the_whole(self, exponents: jax.Array, x: jax.Array) -> bool:
        """Return whether the exponents, unlike `x`, were not cut along the last axis.

        With check_vma=False, JAX does not know: then their number tells.
        """
        names = placement.last_axis_names()
        if placement.last_axis_pieces() == 1:
            return False
        if placement.knows_axes(names):
            return placement.axes_of_piece(exponents, names) != names
        of_whole = -(-_whole_length(x) // self.block)
        of_piece = -(-x.shape[-1] // _fit_block(x, self.block))
        return of_piece != exponents.shape[-1] == of_whole

    def __str__(self) -> str:
        """Return its name in `FORMATS`."""
        return "8bit"


def eight_bit(block: int = 32, min_size: int = 4096, seed: int = 0) -> Format:
    """Store 8-bit floating-point codes that share an exponent in each block.

    Read them with `load_moments`: `optax.tree.get(state, "nu")` returns the codes.

    The exponent is shared as in OCP MX. The codes are unsigned E4M4 for second moments
    and signed E3M4 for first moments. Elements of a second moment that are too small
    for their block are stored as its smallest code, never as zero: a zero nu beside a
    nonzero mu would blow up. Blocks run along the last axis, so that codes and
    exponents can use the parameter's PartitionSpec.

    `benchmarks/moment_accuracy.py` measures the mean of nu over its exact value and the
    spread of sqrt(nu), with stochastic rounding: this format 1.000, 7.2%; a dynamic map
    (bitsandbytes) 1.003, 9.1%; integers companded by the square root (FlashOptim)
    1.003, 9.9%. Coding takes only shifts and adds, no logarithm or search.

    The format handles gradients whose scales span 2.5 decades within a block; even
    smaller elements take steps that are too small, or none.

    If the last axis is sharded over explicit axes, or by `in_shard_map`, each shard is
    a whole number of blocks: `init` makes them smaller where it must, if it sees the
    shards. Over automatic axes, choose a block that divides the shards. Otherwise a
    step exchanges elements between devices, and JAX cannot shard exponents like their
    leaf (IndivisibleError). `init` warns of it if it is given sharded arrays without
    jit.

    A state made with another block or min_size keeps its own.

    Args:
      block: the largest number of elements that share an exponent, at least 1; 32 costs
        1.03 bytes per element, or 1 + 1/n bytes if the last axis has only n elements.
      min_size: arrays with fewer elements stay as they are, and so do scalars and
        complex arrays. In a shard_map the elements of all shards count (those of one
        shard, if check_vma=False and there is no `in_shard_map`).
      seed: the seed of the stochastic rounding.

    Raises:
      ValueError: if block or min_size is out of range; at the first trace, if a shard
        of an explicit axis, or a piece in `in_shard_map`, is not a whole number of the
        state's blocks.

    Warns:
      UserWarning: at init, if a shard of an automatic axis is not a whole number of
        blocks.
    """
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer, got {block!r}.")
    if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 0:
        raise ValueError(f"min_size must be an integer >= 0, got {min_size!r}.")

    return EightBitFormat(seed, block, min_size)


# The widths of the two codes, by the dtype that stores them.
_EXPONENT_BITS = {"int8": 3, "uint8": 4}
_MANTISSA_BITS = 4
_DROPPED_BITS = 23 - _MANTISSA_BITS  # of the mantissa of a float32
_INFINITY = 0x7F800000
# The bits of 8, less half of the last bit of the noise: so it is unbiased.
_OFFSET = 0x41000000 - (1 << (_DROPPED_BITS - 17))
_LEAST_EXPONENT = 20  # 2^-107: every quantum below is then a normal float32


def encode_blocks(x: jax.Array, blocks: int, signed: bool, noise: Noise) -> Stored:
    """Round `x` stochastically to 8-bit codes, with an exponent for each block.

    Args:
      x: an array with at least one axis.
      blocks: the number of blocks in its last axis, all equal except the last one.
      signed: True for int8 codes (sign and magnitude, E3M4), False for uint8 (E4M4).
      noise: the random bits.

    Returns:
      The codes, of the shape of x, with the exponents of their blocks.
    """
    _expect_whole_blocks(x, blocks)

    def encode(x, noise):
        return _encode(x, noise(x.shape), blocks, signed)

    codes, exponents = native_storage.store(encode, x, noise, blocks)
    return Stored(codes, EightBit(exponents))


# Both are one call, without jit as well.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _encode(
    x: jax.Array, bits: jax.Array, blocks: int, signed: bool
) -> list[jax.Array]:
    x = x.astype(jnp.float32)
    find = functools.partial(_find_exponents, blocks=blocks)
    on_gpu = functools.partial(_find_bytes, blocks=blocks)
    exponents = lax.platform_dependent(
        jnp.abs(x), cuda=on_gpu, rocm=on_gpu, default=find
    )
    to_elements = functools.partial(spread, shape=x.shape)
    # From the bytes, so that XLA writes these, and not the integers as well.
    codes = encode_values(x, exponents.astype(jnp.int32), bits, signed, to_elements)
    return [codes, exponents]


def _find_exponents(size: jax.Array, blocks: int) -> jax.Array:
    """Return the exponents of blocks of which the sizes of all elements are given."""
    return find_exponents(find_peaks(size, blocks)).astype(jnp.uint8)


def _find_bytes(size: jax.Array, blocks: int) -> jax.Array:
    """Return the same, as GPUs do it best: XLA writes what it finds, here bytes."""
    largest = find_largest(find_exponents(size).astype(jnp.uint8), blocks)
    return jnp.maximum(largest, _LEAST_EXPONENT)  # of blocks without elements


@jax.jit
def _decode(codes: jax.Array, exponents: jax.Array) -> jax.Array:
    to_elements = functools.partial(spread, shape=codes.shape)
    return decode_values(codes, exponents.astype(jnp.int32), to_elements)


def find_exponents(peaks: jax.Array) -> jax.Array:
    """Return the exponents that blocks share, int32.

    Args:
      peaks: float32, the size of the largest element of each block.
    """
    # Above the block's largest code the next exponent: rounding up stays in range.
    bits = jnp.minimum(lax.bitcast_convert_type(peaks, jnp.int32), _INFINITY)  # or NaN
    return jnp.maximum((bits + ((1 << _DROPPED_BITS) - 1)) >> 23, _LEAST_EXPONENT)


def encode_values(
    x: jax.Array,
    exponents: jax.Array,
    bits: jax.Array,
    signed: bool,
    spread: Callable[[jax.Array], jax.Array] = lambda per_block: per_block,
) -> jax.Array:
    """Round each element stochastically to its code, int8 or uint8.

    Args:
      x: float32.
      exponents: int32, of each block; once spread, it broadcasts to the shape of x.
      bits: uint32s, of which the upper 16 bits are random; the others do not count.
      signed: as in `encode_blocks`.
      spread: repeats an array like `exponents` for each element; by default its
        result broadcasts as it is.
    """
    dtype = jnp.int8 if signed else jnp.uint8
    scale = spread(_power_of_two(257 + _top_field(dtype) - exponents))
    steps = jnp.abs(x) * scale  # of the smallest code; 16 are the least normal number
    if signed:
        # Raising a far smaller element to the first code would be a leap beside an
        # exact nu: below a quarter of that code, it becomes zero.
        steps = jnp.where(steps >= 0.25, steps, 0)
    else:
        steps = jnp.where(x > 0, jnp.maximum(steps, 1), 0)
    # What is below 16 moves into the binade below, where steps are half as long. Then
    # the upper bits, less those of 8, are the code, and the others are what is rounded.
    steps = jnp.maximum(steps, (steps + 16) * 0.5)
    raw = lax.bitcast_convert_type(steps, jnp.int32)
    noise = ((bits >> 16) << (_DROPPED_BITS - 16)).astype(jnp.int32)
    codes = (raw - _OFFSET + noise) >> _DROPPED_BITS
    if signed:
        codes = jnp.where(x < 0, -codes, codes)
    return codes.astype(dtype)


def decode_values(
    codes: jax.Array,
    exponents: jax.Array,
    spread: Callable[[jax.Array], jax.Array] = lambda per_block: per_block,
) -> jax.Array:
    """Return the float32 array that codes stand for.

    Args:
      codes: int8 or uint8.
      exponents: int32, of each block; once spread, it broadcasts to the shape of codes.
      spread: as in `encode_values`.
    """
    signed = codes.dtype == jnp.int8
    # A block that held an infinity or NaN decodes to NaN.
    scale = _power_of_two(exponents - _top_field(codes.dtype))
    scale = spread(jnp.where(exponents == 255, jnp.nan, scale))
    codes = codes.astype(jnp.int32)
    size = jnp.abs(codes) if signed else codes
    value = lax.bitcast_convert_type((size << _DROPPED_BITS) + (127 << 23), jnp.float32)
    # Below the least normal number, 2, the steps do not halve again.
    value = jnp.minimum(value, value + (value - 2)) * scale
    return jnp.where(codes < 0, -value, value) if signed else value


def _top_field(dtype: Any) -> int:
    """Return the largest exponent field of the codes that a dtype stores."""
    return (1 << _EXPONENT_BITS[jnp.dtype(dtype).name]) - 1


def _fit_block(x: jax.Array, block: int) -> int:
    """Return the largest block, up to `block`, that divides known shards of `x`."""
    length = placement.shard_length(x)
    if length < x.shape[-1] or placement.last_axis_pieces() > 1:
        return _largest_divisor(length, block)
    if not isinstance(x, Tracer):  # of which the type says nothing of automatic axes
        length = x.sharding.shard_shape(x.shape)[-1]
        if length < x.shape[-1] and length % block:
            warnings.warn(
                f"the last axis of an array of shape {x.shape} is sharded in pieces of "
                f"{length}, which are no whole number of 8-bit blocks of {block}: each "
                "step exchanges elements between devices. Use "
                f"eight_bit(block={_largest_divisor(length, block)}).",
                stacklevel=2,
            )
    return block


def _largest_divisor(length: int, limit: int) -> int:
    return max(n for n in range(1, min(length, limit) + 1) if length % n == 0)


def _expect_whole_blocks(x: jax.Array, blocks: int) -> None:
    """Refuse explicit shards, and pieces, that are not whole numbers of blocks.

    Args:
      x: the moment or its codes.
      blocks: the number of blocks in its last axis.

    Raises:
      ValueError: if they are not.
    """
    length = placement.shard_length(x)
    shards = x.shape[-1] // max(length, 1)
    several = shards * placement.last_axis_pieces() > 1
    if several and (blocks % shards or x.shape[-1] % blocks):
        raise ValueError(_uneven(x, -(-x.shape[-1] // blocks)))


def _uneven(x: jax.Array, block: int) -> str:
    """Return the message about pieces that are no whole number of blocks."""
    length = placement.shard_length(x)
    return (
        f"8-bit moments of shape {x.shape} were stored in blocks of {block}, but "
        f"their last axis is sharded in pieces of {length}: store them in "
        f"eight_bit(block={_largest_divisor(length, block)}), which convert_state "
        "does in mid-run, before the state is sharded."
    )


def _whole_length(x: jax.Array) -> int:
    """Return the length of the last axis of the whole of which `x` is a piece."""
    return x.shape[-1] * placement.last_axis_pieces()


def _power_of_two(biased_exponent: jax.Array) -> jax.Array:
    """Return 2^(biased_exponent - 127) for a biased exponent in 1..254."""
    return lax.bitcast_convert_type(biased_exponent << 23, jnp.float32)
