"""How a moment is stored between steps: float32, bfloat16, 8-bit blocks.

A `Format` turns one array into what is stored and back. Whatever is narrower than
float32 is rounded stochastically: a moment moves by 0.1% a step, which nearest rounding
would lose. The random bits are a hash of (seed, step, element), so that they need no
key, and come out the same however the arrays are sharded. (Members of a vmap, and the
shards of a shard_map, see their own indices, and so the same bits.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from adam_jax import numerics

Storage = Any
"""How to store a moment: a dtype, a `Format`, the name of one, or None."""

Noise = Callable[[tuple[int, ...]], jax.Array]
"""From a shape to random uint32 of that shape."""


class Stored(NamedTuple):
    """A moment as a state keeps it.

    Attributes:
      values: what has the moment's shape: the moment itself, or codes of it.
      scales: what belongs to blocks of values, of the same number of axes; or None.
    """

    values: Any
    scales: Any = None


class Format(NamedTuple):
    """How one array is stored.

    Attributes:
      init: (x, signed) -> Stored, of the initial moment `x`; `signed` is False for
        second moments, which are never negative.
      encode: (x, old, noise) -> Stored, of `x` in the place of `old`.
      decode: (stored) -> the array, float32 at least.
      scaled: whether it stores scales beside the values.
      seed: of the random bits of stochastic rounding.
    """

    init: Callable[[jax.Array, bool], Stored]
    encode: Callable[[jax.Array, Stored, Noise], Stored]
    decode: Callable[[Stored], jax.Array]
    scaled: bool = False
    seed: int = 0


def dense(dtype: DTypeLike | None = None, seed: int = 0) -> Format:
    """Store at a dtype; None: at the one that the moment starts with.

    bfloat16 is rounded stochastically; wider dtypes hold what they are given.

    Args:
      dtype: float32, float64, bfloat16 or, for first moments, a complex dtype.
      seed: of the stochastic rounding.

    Raises:
      ValueError: for a dtype that cannot hold a moment.
    """
    if dtype is not None:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.inexact) or (
            jnp.finfo(dtype).bits not in (32, 64) and dtype != jnp.bfloat16
        ):
            raise ValueError(
                f"a moment cannot be stored as {dtype}: choose 'float32', 'bfloat16' "
                "(float16 lacks the range of a squared gradient) or '8bit'."
            )

    def init(x, signed):
        if not signed and jnp.issubdtype(dtype or x.dtype, jnp.complexfloating):
            raise ValueError(f"nu_dtype must be real, got {dtype}.")
        return Stored(numerics.cast(x, dtype or x.dtype))

    def encode(x, old, noise):
        if old.values.dtype == jnp.bfloat16:
            x = numerics.round_to_bfloat16(x.astype(jnp.float32), noise(x.shape))
        return Stored(numerics.cast(x, old.values.dtype))

    return Format(init, encode, decode_dense, seed=seed)


def decode_dense(stored: Stored) -> jax.Array:
    """Return the array, which is stored as it is."""
    return stored.values


def eight_bit(block: int = 32, min_size: int = 4096, seed: int = 0) -> Format:
    """Store 8-bit floating-point codes that share an exponent in each block.

    The shared exponent is that of OCP MX; the codes are E4M4 without a sign for second
    moments and E3M4 with one for first moments. Elements of a second moment that are
    too small for their block are stored as its smallest code, never as zero: a zero
    nu beside a nonzero mu is a blow-up. Blocks run along the last axis, so that codes
    and exponents take the parameter's PartitionSpec.

    Measured by `benchmarks/moment_accuracy.py` (mean of nu over its exact value, spread
    of sqrt(nu)), all rounded stochastically: this format 1.003, 7.2%; a dynamic map
    (bitsandbytes) 1.000, 9.0%; integers companded by the square root (FlashOptim)
    1.000, 9.9%. It is computed by shifts and adds, without a logarithm or a search.

    It follows gradients whose scales span 2.5 decades inside a block; elements smaller
    still take steps that are too small, or none. Where a shard of the last axis is not
    a whole number of blocks, a step exchanges elements between shards (and with
    explicit sharding JAX refuses it).

    Args:
      block: elements that share an exponent, at least 1; 32 costs 1.03 bytes an
        element, and 1 + 1/n bytes where the last axis has only n.
      min_size: arrays of fewer elements stay as they are, and so do scalars and
        complex arrays.
      seed: of the stochastic rounding.

    Raises:
      ValueError: if block or min_size is out of range.
    """
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer, got {block!r}.")
    if not isinstance(min_size, int) or min_size < 0:
        raise ValueError(f"min_size must be an integer >= 0, got {min_size!r}.")

    def init(x, signed):
        if x.size < max(min_size, 1) or x.ndim == 0 or jnp.iscomplexobj(x):
            # Scales of no elements, so that every leaf has some to shard and to map.
            shape = (*x.shape[:-1], 0) if x.ndim else ()
            return Stored(x, jnp.zeros(shape, jnp.uint8))
        half = jnp.uint32(1 << 31)  # no noise at the start: to the nearest
        blocks = -(-x.shape[-1] // block)
        return encode_blocks(x, blocks, signed, lambda shape: jnp.full(shape, half))

    def encode(x, old, noise):
        if old.values.dtype not in (jnp.int8, jnp.uint8):
            return Stored(numerics.cast(x, old.values.dtype), old.scales)
        signed = old.values.dtype == jnp.int8
        return encode_blocks(x, old.scales.shape[-1], signed, noise)

    return Format(init, encode, decode_blocks, scaled=True, seed=seed)


FORMATS: dict[str, Callable[[], Format]] = {
    "float32": functools.partial(dense, "float32"),
    "bfloat16": functools.partial(dense, "bfloat16"),
    "8bit": eight_bit,
}
"""The formats by name, as `mu_dtype` and `nu_dtype` take them."""


def as_format(name: str, value: Any) -> Format:
    """Return the format that `value`, a format, its name, a dtype or None, stands for.

    Raises:
      ValueError: if it stands for none; the message starts with `name`.
    """
    if isinstance(value, Format):
        return value
    if isinstance(value, str) and value in FORMATS:
        return FORMATS[value]()
    try:
        return dense(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a dtype, a format or one of {', '.join(FORMATS)}, got "
            f"{value!r}: {error}"
        ) from None


# The widths of the two codes, by the dtype that stores them.
_EXPONENT_BITS = {"int8": 3, "uint8": 4}
_MANTISSA_BITS = 4
_LEAST_EXPONENT = 20  # 2^-107: every quantum below is then a normal float32


def encode_blocks(x: jax.Array, blocks: int, signed: bool, noise: Noise) -> Stored:
    """Round `x` stochastically to 8-bit codes, with an exponent for each block.

    Args:
      x: at least one axis.
      blocks: into how many blocks to cut its last axis, equal but for the last one.
      signed: int8 codes (sign and magnitude, E3M4) or uint8 ones (E4M4).
      noise: the random bits.

    Returns:
      The codes, of the shape of x, and the biased exponents of the blocks' largest
      elements, uint8, of that shape but for the last axis, `blocks`.
    """
    dtype = jnp.int8 if signed else jnp.uint8
    top_field = (1 << _EXPONENT_BITS[jnp.dtype(dtype).name]) - 1
    largest = ((top_field + 1) << _MANTISSA_BITS) - 1
    x = x.astype(jnp.float32)
    size = jnp.abs(x)
    # Room above the largest element: to round it up must not leave the range.
    room = 1 + 2.0 ** -(_MANTISSA_BITS + 1)
    peaks = _block_max(size, blocks) * room
    exponents = jnp.maximum(_biased_exponent(peaks), _LEAST_EXPONENT)
    lowest = _spread(exponents, x.shape) - top_field
    field = jnp.clip(_biased_exponent(size) - lowest, 1, top_field)
    # Exact: a power of two brings the last mantissa bit to 1.
    steps = size * _power_of_two(254 - (lowest + field - _MANTISSA_BITS))
    uniform = (noise(x.shape) >> 8).astype(jnp.float32) * 2.0**-24
    mantissa = jnp.floor(steps + uniform).astype(jnp.int32)
    codes = jnp.minimum(((field - 1) << _MANTISSA_BITS) + mantissa, largest)
    if signed:
        # To raise a far smaller element to the first code would be a leap beside an
        # exact nu: below a quarter of it, it becomes zero.
        codes = jnp.where(steps < 0.25, 0, codes)
        codes = jnp.where(x < 0, -codes, codes)
    else:
        codes = jnp.where(size > 0, jnp.maximum(codes, 1), 0)
    return Stored(codes.astype(dtype), exponents.astype(jnp.uint8))


def decode_blocks(stored: Stored) -> jax.Array:
    """Return the float32 array that 8-bit codes stand for; other values as they are."""
    values, scales = stored
    if values.dtype not in (jnp.int8, jnp.uint8):
        return values
    top_field = (1 << _EXPONENT_BITS[values.dtype.name]) - 1
    codes = values.astype(jnp.int32)
    size = jnp.abs(codes)
    exponents = _spread(scales.astype(jnp.int32), codes.shape)
    field = jnp.maximum(size >> _MANTISSA_BITS, 1)
    mantissa = size - ((field - 1) << _MANTISSA_BITS)
    scale = _power_of_two(exponents - top_field + field - _MANTISSA_BITS)
    value = jnp.sign(codes).astype(jnp.float32) * mantissa.astype(jnp.float32) * scale
    # A block that held an infinity or NaN shows it.
    return jnp.where(exponents == 255, jnp.nan, value)


def _block_max(x: jax.Array, blocks: int) -> jax.Array:
    """Return the maximum of each block of the last axis, for x >= 0; NaN for NaN."""
    # As integers, whose order is the same: XLA's loops for floats lose some NaN.
    x = lax.bitcast_convert_type(x, jnp.int32)
    block = -(-x.shape[-1] // max(blocks, 1))
    padding = blocks * block - x.shape[-1]
    if padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    peaks = x.reshape(*x.shape[:-1], blocks, block).max(axis=-1, initial=0)
    return lax.bitcast_convert_type(peaks, jnp.float32)


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat the value of each block for its elements: an array of `shape`."""
    block = -(-shape[-1] // max(x.shape[-1], 1))
    repeated = jnp.broadcast_to(x[..., None], (*x.shape, block))
    return repeated.reshape(*shape[:-1], x.shape[-1] * block)[..., : shape[-1]]


def _biased_exponent(x: jax.Array) -> jax.Array:
    """Return the exponent field of non-negative float32, an int32 in 0..255."""
    return lax.bitcast_convert_type(x, jnp.int32) >> 23


def _power_of_two(biased_exponent: jax.Array) -> jax.Array:
    """Return 2^(biased_exponent - 127) for a biased exponent in 1..254."""
    return lax.bitcast_convert_type(biased_exponent << 23, jnp.float32)
