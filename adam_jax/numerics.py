"""Arithmetic on single arrays: no pytrees, no Optax.

Everything here computes in the dtype that it is given. Callers make sure that it is
float32 or wider (`compute_dtype`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from adam_jax.placement import in_host, on_device


def is_narrow(dtype: DTypeLike) -> bool:
    """Return whether a dtype is a float of less than 16 bits, such as float8_e5m2."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16


def compute_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """Return the dtype to compute in: the widest of `dtypes` and float32.

    Without x64, 64-bit dtypes (of NumPy arrays) count as 32-bit ones.

    >>> compute_dtype("bfloat16"), compute_dtype("float16", "complex64")
    (dtype('float32'), dtype('complex64'))
    """
    dtype = jnp.dtype("float32")
    with jax.numpy_dtype_promotion("standard"):  # users may have set "strict"
        for other in dtypes:
            if not is_narrow(other):  # which JAX promotes to nothing
                dtype = jnp.promote_types(dtype, other)
    return jax.dtypes.canonicalize_dtype(dtype)


def dtype_of(x: ArrayLike) -> jnp.dtype:
    """Return the dtype of `x`, an array or a Python number used as one.

    >>> dtype_of(1.0), dtype_of(1), dtype_of(jnp.arange(2))
    (dtype('float32'), dtype('float32'), dtype('int32'))
    """
    if isinstance(x, int) and not isinstance(x, bool):
        x = float(x)
    return jnp.result_type(x)


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype of `abs(x)` for an `x` of `dtype`."""
    return jnp.finfo(dtype).dtype


def cast(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Convert `x` to `dtype`; for a real dtype, keep the real part."""
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    return jnp.asarray(x, dtype)


def widen(x: ArrayLike) -> jax.Array:
    """Convert `x` to its compute dtype."""
    return jnp.asarray(x, compute_dtype(dtype_of(x)))


def full_like(x: Any, value: Any, dtype: DTypeLike) -> jax.Array:
    """Return an array of the shape of `x` filled with `value`, also sharded like `x`.

    It is in the device's memory, even if `x` is in the host's.

    Where `x` is traced, `jnp.full_like` makes a constant, which XLA replicates. This
    array depends on `x`, in a way that XLA neither sees through nor folds.

    Args:
      x: an array, perhaps abstract; its values do not matter.
      value: the value of all elements, a number.
      dtype: the dtype of the result.
    """
    if not isinstance(x, Tracer):
        sharding = x.sharding.with_memory_kind(None) if in_host(x) else None
        return jnp.full_like(x, value, dtype=dtype, device=sharding)
    x = lax.stop_gradient(on_device(x)).real
    zero = jnp.clip(jnp.where(x == x, x, 0), 0, 0)  # of infinities and NaN, too
    return zero.astype(dtype) + jnp.asarray(value, dtype)


def abs_sq(x: jax.Array) -> jax.Array:
    """Return |x|^2, which is real for complex `x` too."""
    return (x.conj() * x).real


def bound(x: jax.Array) -> jax.Array:
    """Bound the magnitude of the finite elements of `x` so that |x|^2 is finite.

    The bound is 2^60 in float32 and 2^508 in float64: sums of 256 such squares
    still fit. Infinities and NaN stay: an overflow must not look like a gradient.

    >>> float(bound(jnp.float32(-1e30))) == -(2.0**60)
    True
    """
    limit = 2.0 ** (jnp.finfo(x.dtype).maxexp // 2 - 4)
    largest = float(jnp.finfo(x.dtype).max)  # before jax 0.9, Pallas lacks isfinite()
    if jnp.iscomplexobj(x):
        size = jnp.abs(x)
        too_large = (size > limit) & (size <= largest)
        factor = jnp.where(too_large, limit / jnp.where(too_large, size, 1), 1)
        return x * factor.astype(x.dtype)
    least, most = np.asarray([-limit, limit], x.dtype)
    return lax.select(jnp.abs(x) <= largest, lax.clamp(least, x, most), x)


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """Return the square root of `x >= 0`, with derivative 0 at 0 instead of inf."""
    return jnp.sqrt(x)


sqrt.defjvps(lambda tangent, root, x: divide_or_zero(tangent, 2 * root))


@jax.custom_jvp
def rsqrt_or_zero(x: jax.Array) -> jax.Array:
    """Return 1 / sqrt(x) for `x >= 0`, and 0 where `x` is 0, with finite derivatives.

    >>> float(rsqrt_or_zero(jnp.float32(4))), float(rsqrt_or_zero(jnp.float32(0)))
    (0.5, 0.0)
    """
    zero = x == 0
    return jnp.where(zero, 0, lax.rsqrt(jnp.where(zero, 1, x)))


# Where x is tiny and its tangent 0, x^-1.5 alone would overflow.
rsqrt_or_zero.defjvps(
    lambda tangent, root, x: divide_or_zero(tangent, x) * (root * -0.5)
)


def divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return `x / y` for real `y`; a complex `x` is divided part by part."""
    if jnp.iscomplexobj(x):
        return lax.complex(x.real / y, x.imag / y)
    return x / y


def divide_or_zero(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return `x / y` for real `y`, and 0 where `y` is 0, with finite derivatives.

    >>> float(divide_or_zero(jnp.float32(0), jnp.float32(0)))
    0.0
    """
    zero = y == 0
    return jnp.where(zero, 0, divide(x, jnp.where(zero, 1, y)))


def constant_weight(decay: float, count: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Return 1 - decay^count in `dtype`: the weight of an average of constant decay.

    Computed directly, the difference loses digits: at decay 0.999 its float32 value is
    off by 1e-5. Here the relative error stays below 4e-7 (Kingma & Ba 2014, section 3).

    >>> w = constant_weight(0.999, 1, "float32")
    >>> print(f"{w:.9f} {1 - jnp.float32(0.999):.9f}")
    0.001000000 0.000999987
    """
    count = jnp.asarray(count, dtype)
    if decay == 0:
        return jnp.minimum(count, 1)
    return -jnp.expm1(count * jnp.asarray(math.log(decay), dtype))


def running_weight(weight: jax.Array, decay: jax.Array) -> jax.Array:
    """Advance the running average of 1: `w <- decay * w + (1 - decay)`.

    Args:
      weight: shape (2,): the value and its rounding error so far (Kahan's
        compensation; without it, w gets stuck 3e-5 below 1 in float32).
      decay: the decay rate of this step, a scalar of the same dtype.

    Returns:
      The new pair, of the same shape and dtype.
    """
    value, missing = weight
    step = (1 - decay) * ((1 - value) + missing) - missing
    total = value + step
    return jnp.stack([total, (total - value) - step])


def sma_length_above(
    decay: float | jax.Array, count: ArrayLike, level: ArrayLike, dtype: DTypeLike
) -> jax.Array:
    """Return rho_t - level, where rho_t is the length of RAdam's averaging window.

    For b near 1, rho_t = rho_inf - 2 t b^t / (1 - b^t) with rho_inf = 2 / (1 - b) - 1
    is a difference of two large numbers: its float32 error decides between branches.
    Let y = -log(b) / 2. Then rho_inf = coth(y), and

        rho_t = t - (f(t y) - f(y)) / y,    f(x) = x coth(x) - 1,

    which is t minus something small. For t y < 1 it is computed this way, with
    Lambert's continued fraction f(x) = x^2 / (3 + x^2 / (5 + x^2 / (7 + ...))). The
    relative error of the difference is then a few roundings, for any decay.

    Args:
      decay: b, in [0, 1): a float, or a scalar of `dtype`.
      count: t >= 1, the step number.
      level: the number to subtract; the difference is exact where `count - level` is.
      dtype: float32 or float64.

    Reference: Liu et al. 2020 (RAdam), Algorithm 2, line 7.

    >>> above = sma_length_above(0.9999, 5, 5.0, "float32")
    >>> print(f"{above:.4e}")  # 2 / (1 - b) - 1 - 10 b^5 / (1 - b^5) - 5
    -4.0002e-04
    """
    t, level = jnp.asarray(count, dtype), jnp.asarray(level, dtype)
    least = 1e-30  # in place of 0, whose logarithm is infinite; rho_t is 1 for both
    if isinstance(decay, float):
        y = jnp.asarray(-math.log(max(decay, least)) / 2, dtype)
        longest = jnp.asarray(2 / (1 - decay) - 1, dtype)
    else:
        small, large = jnp.clip(decay, least, 0.5), jnp.maximum(decay, 0.5)
        y = jnp.where(decay < 0.5, -jnp.log(small), -jnp.log1p(large - 1)) / 2
        longest = (1 + decay) / (1 - decay)

    def over_square(x):
        """Return f(x) / x^2, for x <= 1; ten levels are exact in float64."""
        square, fraction = jnp.square(jnp.minimum(x, 1)), jnp.full_like(x, 21)
        for odd in range(19, 1, -2):
            fraction = odd + square / fraction
        return 1 / fraction

    missing = jnp.minimum(y, 1) * (t * t * over_square(t * y) - over_square(y))
    # 1 / expm1(2 t y), without its overflow.
    reciprocal = jnp.exp(-2 * t * y) / -jnp.expm1(-2 * t * y)
    late = (longest - level) - 2 * t * reciprocal
    return jnp.where(t * y < 1, (t - level) - missing, late)


def round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Round float32 `x` to bfloat16 stochastically, without bias.

    Args:
      x: float32.
      bits: uint32s of the same shape; 16 bits of each are used.
    """
    # Masked and converted, not shifted into 16 bits: on TPU a bitcast between widths
    # ends XLA's fusion, and everything is read twice.
    raw = lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (raw + (bits >> 16)) & jnp.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(rounded, jnp.float32)
    # Infinities stay as they are; of NaN, the mantissa might overflow.
    return jnp.where(x == x, rounded, x).astype(jnp.bfloat16)


def split_float32(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split float32 `x` into the nearest bfloat16 and the rest in ulps, an int16.

    >>> half, residual = split_float32(jnp.float32(1.001))
    >>> print(half, residual, join_float32(half, residual) == jnp.float32(1.001))
    1 8389 True
    """
    # The half is made from the residual: on TPU, XLA fuses two outputs of which one
    # leads to the other, but not two that have only their operands in common.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    residual = jnp.where(jnp.isfinite(x), bits, 0).astype(jnp.int16)  # the lower half
    upper = lax.bitcast_convert_type(bits - residual.astype(jnp.int32), jnp.float32)
    return upper.astype(jnp.bfloat16), residual


def join_float32(half: jax.Array, residual: jax.Array) -> jax.Array:
    """Invert `split_float32`: return the float32 of `half` and `residual`."""
    upper = lax.bitcast_convert_type(half.astype(jnp.float32), jnp.int32)
    return lax.bitcast_convert_type(upper + residual.astype(jnp.int32), jnp.float32)
