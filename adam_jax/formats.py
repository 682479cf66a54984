"""How a moment is stored between steps: float32, bfloat16, 8-bit blocks.

A `Format` turns one array into what is stored and back. Whatever is narrower than
float32 is rounded stochastically: a moment moves by 0.1% a step, which nearest rounding
would lose. The random bits are a hash of (seed, step, element), so that they need no
key, and come out the same however the arrays are sharded.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
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


class Format(NamedTuple):
    """How one array is stored.

    Attributes:
      init: (x, signed) -> what stores the initial moment `x`; `signed` is False for
        second moments, which are never negative.
      encode: (x, old, noise) -> what stores `x` in the place of `old`.
      decode: (stored) -> the array, float32 at least.
      seed: of the random bits of stochastic rounding.
    """

    init: Callable[[jax.Array, bool], Any]
    encode: Callable[[jax.Array, Any, Noise], Any]
    decode: Callable[[Any], jax.Array]
    seed: int = 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "exponents"],
    meta_fields=["block"],
)
@dataclass(frozen=True)
class Blocks:
    """An array in 8 bits an element, and 8 bits a block of the last axis.

    Attributes:
      codes: int8 (sign and magnitude, E3M4) or uint8 (E4M4), of the array's shape.
      exponents: uint8, the exponent of the largest element of each block, biased by
        127; of the array's shape but for the last axis, ceil(n / block).
      block: elements in a block.
    """

    codes: jax.Array
    exponents: jax.Array
    block: int


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
            jnp.finfo(dtype).bits < 32 and dtype != jnp.bfloat16
        ):
            raise ValueError(
                f"a moment cannot be stored as {dtype}: choose 'float32', 'bfloat16' "
                "(float16 lacks the range of a squared gradient) or '8bit'."
            )

    def init(x, signed):
        if not signed and jnp.issubdtype(dtype or x.dtype, jnp.complexfloating):
            raise ValueError(f"nu_dtype must be real, got {dtype}.")
        return numerics.cast(x, dtype or x.dtype)

    def encode(x, old, noise):
        if old.dtype == jnp.bfloat16:
            return numerics.round_to_bfloat16(x.astype(jnp.float32), noise(x.shape))
        return numerics.cast(x, old.dtype)

    return Format(init, encode, lambda stored: stored, seed)


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

    Args:
      block: elements that share an exponent, at least 1; 32 costs 1.03 bytes an
        element, where the last axis is a multiple of it.
      min_size: arrays of fewer elements stay as they are, and so do scalars and
        complex arrays.
      seed: of the stochastic rounding.

    Raises:
      ValueError: if block or min_size is out of range.
    """
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer, got {block!r}.")
    if not isinstance(min_size, int) or min_size < 0:
        raise ValueError(f"min_size must be an integer >= 0, got {min_size!r}.")

    def init(x, signed):
        if x.size < max(min_size, 1) or x.ndim == 0 or jnp.iscomplexobj(x):
            return x
        half = jnp.uint32(1 << 31)  # no noise at the start: to the nearest
        return encode_blocks(x, block, signed, lambda shape: jnp.full(shape, half))

    def encode(x, old, noise):
        if not isinstance(old, Blocks):
            return numerics.cast(x, old.dtype)
        signed = old.codes.dtype == jnp.int8
        return encode_blocks(x, old.block, signed, noise)

    return Format(init, encode, decode_blocks, seed)


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


def encode_blocks(x: jax.Array, block: int, signed: bool, noise: Noise) -> Blocks:
    """Round `x` stochastically to 8-bit codes with an exponent for each block."""
    dtype = jnp.int8 if signed else jnp.uint8
    top_field = (1 << _EXPONENT_BITS[jnp.dtype(dtype).name]) - 1
    largest = ((top_field + 1) << _MANTISSA_BITS) - 1
    x = x.astype(jnp.float32)
    size = jnp.abs(x)
    # Room above the largest element: to round it up must not leave the range.
    room = 1 + 2.0 ** -(_MANTISSA_BITS + 1)
    peaks = _block_max(size, block) * room
    exponents = jnp.maximum(_biased_exponent(peaks), _LEAST_EXPONENT)
    lowest = _spread(exponents, block, x.shape) - top_field
    field = jnp.clip(_biased_exponent(size) - lowest, 1, top_field)
    # Exact: a power of two brings the last mantissa bit to 1.
    steps = size * _power_of_two(254 - (lowest + field - _MANTISSA_BITS))
    uniform = (noise(x.shape) >> 8).astype(jnp.float32) * 2.0**-24
    codes = ((field - 1) << _MANTISSA_BITS) + jnp.floor(steps + uniform).astype(
        jnp.int32
    )
    codes = jnp.minimum(codes, largest)
    if signed:
        codes = jnp.where(x < 0, -codes, codes)
    else:
        codes = jnp.where(size > 0, jnp.maximum(codes, 1), 0)
    return Blocks(codes.astype(dtype), exponents.astype(jnp.uint8), block)


def decode_blocks(stored: Any) -> jax.Array:
    """Return the float32 array that `Blocks` hold; an array is returned as it is."""
    if not isinstance(stored, Blocks):
        return stored
    top_field = (1 << _EXPONENT_BITS[stored.codes.dtype.name]) - 1
    codes = stored.codes.astype(jnp.int32)
    size = jnp.abs(codes)
    exponents = _spread(stored.exponents.astype(jnp.int32), stored.block, codes.shape)
    field = jnp.maximum(size >> _MANTISSA_BITS, 1)
    mantissa = size - ((field - 1) << _MANTISSA_BITS)
    scale = _power_of_two(exponents - top_field + field - _MANTISSA_BITS)
    value = jnp.sign(codes).astype(jnp.float32) * mantissa.astype(jnp.float32) * scale
    # A block that held an infinity or NaN shows it.
    return jnp.where(exponents == 255, jnp.nan, value)


def load_moments(stored: Any) -> Any:
    """Return the arrays that a stored moment holds, a pytree like the parameters.

    Args:
      stored: mu or nu of an optimizer's state, as `optax.tree.get(state, "nu")` finds
        it, in any of the formats here.
    """
    return jax.tree.map(decode_blocks, stored, is_leaf=lambda x: isinstance(x, Blocks))


def _block_max(x: jax.Array, block: int) -> jax.Array:
    """Return the maximum of each block of the last axis."""
    padding = -x.shape[-1] % block
    if padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    return x.reshape(*x.shape[:-1], -1, block).max(axis=-1)


def _spread(x: jax.Array, block: int, shape: tuple[int, ...]) -> jax.Array:
    """Repeat the value of each block for its elements: an array of `shape`."""
    repeated = jnp.broadcast_to(x[..., None], (*x.shape, block))
    return repeated.reshape(*shape[:-1], -1)[..., : shape[-1]]


def _biased_exponent(x: jax.Array) -> jax.Array:
    """Return the exponent field of non-negative float32, an int32 in 0..255."""
    return lax.bitcast_convert_type(x, jnp.int32) >> 23


def _power_of_two(biased_exponent: jax.Array) -> jax.Array:
    """Return 2^(biased_exponent - 127) for a biased exponent in 1..254."""
    return lax.bitcast_convert_type(biased_exponent << 23, jnp.float32)
