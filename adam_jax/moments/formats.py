"""Formats: how a moment is stored between steps, and the plain format.

A format is a pair. The `Format` is the writer: it belongs to the optimizer, and turns
an array into its stored form. The reader is a NamedTuple in the state: it holds
whatever is kept beside the values, and turns both back into the array. So every state
carries its reader, and code that reads a state never guesses.

Values narrower than float32 are rounded stochastically: a moment moves by 0.1% per
step, which rounding to nearest would lose. The random bits are a hash of (seed, step,
element). They need no key, and are the same however the arrays are sharded. (Members
of a vmap see their own indices, and so the same bits. So do shards of a shard_map,
unless `in_shard_map` says how they are cut.)
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from adam_jax import numerics, placement
from adam_jax.hyperparams import check_whole
from adam_jax.moments import native_storage
from adam_jax.moments.noise import Noise


class Stored(NamedTuple):
    """A moment as a state keeps it: of one leaf or, as trees, of all leaves.

    Attributes:
      values: the moment itself, its codes, or another encoding; for all leaves, a
        pytree like the parameters.
      format: the reader, with whatever the format keeps beside the values. For all
        leaves, each of its fields is a pytree like the parameters, with
        `optax.MaskedNode()` for a leaf that has nothing to keep.
    """

    values: Any
    format: Any

    def decode(self, leaf: Any = None) -> jax.Array:
        """Return the array that one leaf's values stand for.

        Codes give float32 or wider. Values in a dtype keep it.

        Args:
          leaf: anything with the shape and dtype of the parameter; None if they are
            unknown. A format that shares values among elements then returns an array
            that broadcasts to the parameter's shape.
        """
        values, format = jax.tree.map(placement.on_device, (self.values, self.format))
        return format.decode(values, leaf)


def list_types(stored: Stored) -> list[str]:
    """Return the types of what a stored moment consists of, such as "int8[3]".

    Args:
      stored: the stored moment.
    """
    return [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(stored)]


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
    """The writer of a format. Derive from it to define your own.

    Your format also needs a reader: a NamedTuple with one field for each array that is
    kept beside the values. Its method `decode(values, leaf)` returns the moment,
    float32 or wider. `leaf` has the shape and dtype of the parameter, or is None if
    they are unknown.

    A format that keeps nothing beside an array of the leaf's shape is assumed to store
    each element by itself: `packed` puts such leaves into one buffer.

    Attributes:
      seed: the seed of the random bits of stochastic rounding.
      reader: (class attribute or property) the class of the reader.
      flows_stored: (class attribute) whether later stages receive the moment as stored,
        not as computed: for methods like Adafactor, which divide by what they keep.

    Example: moments rounded to bfloat16, with the largest error of each leaf.

      >>> class Rounded(NamedTuple):
      ...     error: jax.Array
      ...
      ...     def decode(self, values, leaf):
      ...         return values.astype(jnp.float32)

      >>> class RoundedFormat(Format):
      ...     reader = Rounded
      ...
      ...     def init(self, x, signed):
      ...         values = x.astype(jnp.bfloat16)
      ...         return Stored(values, Rounded(jnp.abs(x - values).max()))
      ...
      ...     def encode(self, x, old, noise):
      ...         return self.init(x, True)

      >>> import adam_jax
      >>> tx = adam_jax.adam(1e-3, nu_dtype=RoundedFormat())
      >>> _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
      >>> print(f"{optax.tree.get(state, 'error'):.1e}")  # of nu = 0.001
      5.5e-07
    """

    seed: int = 0
    reader: ClassVar[Any]
    flows_stored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the seed."""
        object.__setattr__(self, "seed", check_whole("seed", self.seed, 0))

    @abc.abstractmethod
    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Store the initial moment `x`, rounded to nearest.

        Args:
          x: the moment of one leaf, float32 or wider.
          signed: False for second moments, which are real and never negative.
        """

    @abc.abstractmethod
    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Store `x` in place of `old`, with the same shapes and dtypes.

        Args:
          x: the moment of one leaf after this step, float32 or wider.
          old: the stored moment before this step.
          noise: a function from a shape to the random bits of this step and leaf,
            uint32s of which only the upper 16 bits may be used.
        """

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether this format could have written a leaf's stored moment.

        Args:
          stored: the stored moment.
          leaf: anything with the shape of the parameter.
        """
        del leaf
        return isinstance(stored.format, self.reader)

    def __str__(self) -> str:
        """Return the format's name in messages."""
        return type(self).__name__


def check_stored(new: Any, format: Format, old: Stored | None = None) -> Stored:
    """Return what a format made of one leaf, if it has the right types.

    Args:
      new: what it made.
      format: the format.
      old: what it replaces, if anything.

    Raises:
      TypeError: if it has others.
    """
    reader = getattr(format, "reader", None)
    if not isinstance(new, Stored) or not isinstance(new.format, reader or ()):
        raise TypeError(
            f"{type(format).__name__} must return a Stored whose format is its reader, "
            f"{getattr(reader, '__name__', reader)}, got {type(new).__name__}"
            + (f" of {type(new.format).__name__}." if isinstance(new, Stored) else ".")
        )
    if old is not None:
        before, after = map(list_types, (old, new))
        if before != after:
            raise TypeError(
                f"{type(format).__name__}.encode() must keep shapes and dtypes: the "
                f"state held {', '.join(before)}, it returned {', '.join(after)}."
            )
    return new


class Dense(NamedTuple):
    """Reader for moments stored as they are."""

    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        """Return the values."""
        del leaf
        return values


@dataclasses.dataclass(frozen=True)
class DenseFormat(Format):
    """The format that `dense` returns.

    Attributes:
      dtype: the dtype to store in; None means the moment's initial dtype.
    """

    dtype: Any = None
    reader = Dense

    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return `x` in the dtype."""
        dtype = x.dtype if self.dtype is None else self.dtype
        if not signed and jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(f"nu_dtype must be real, got {dtype}.")
        return Stored(numerics.cast(x, dtype), Dense())

    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return `x` in the dtype of `old`; rounding to bfloat16 is stochastic."""
        if old.values.dtype == jnp.bfloat16:
            [x] = native_storage.store(_round, x.astype(jnp.float32), noise)
        return Stored(numerics.cast(x, old.values.dtype), Dense())

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether a leaf has the dtype; None accepts any compute dtype."""
        if not super().wrote(stored, leaf):
            return False
        dtype = stored.values.dtype
        own = numerics.compute_dtype(dtype) if self.dtype is None else self.dtype
        return dtype == own

    def __str__(self) -> str:
        """Return the dtype's name."""
        return "float32 or wider" if self.dtype is None else str(self.dtype)


def _round(x: jax.Array, noise: Noise) -> list[jax.Array]:
    return [numerics.round_to_bfloat16(x, noise(x.shape))]


def dense(dtype: DTypeLike | None = None, seed: int = 0) -> Format:
    """Store in a dtype.

    Only bfloat16 is rounded stochastically.

    Args:
      dtype: float32, float64, bfloat16 or, for first moments, a complex dtype; None
        means the moment's initial dtype, float32 or wider.
      seed: the seed of the stochastic rounding.

    Raises:
      ValueError: for a dtype that cannot hold a moment.
    """
    if dtype is not None:
        asked = dtype
        try:
            dtype = jax.dtypes.canonicalize_dtype(asked)
        except (TypeError, ValueError):
            raise ValueError(
                f"a moment is stored in a dtype, such as 'bfloat16', got {asked!r}."
            ) from None
        by_class = asked is float or asked is complex  # whatever JAX makes of them
        if not by_class and dtype != jnp.dtype(asked):
            raise ValueError(
                f"a moment cannot be stored as {jnp.dtype(asked)} unless 64-bit types "
                "are enabled: call jax.config.update('jax_enable_x64', True) first, or "
                f"choose {str(dtype)!r}."
            )
        if not jnp.issubdtype(dtype, jnp.inexact) or (
            jnp.finfo(dtype).bits not in (32, 64) and dtype != jnp.bfloat16
        ):
            raise ValueError(
                f"a moment cannot be stored as {dtype}: choose 'float32', 'bfloat16' "
                "(float16 lacks the range of a squared gradient) or '8bit'."
            )
    return DenseFormat(seed, dtype)


def is_elementwise(stored: Stored, shape: tuple[int, ...]) -> bool:
    """Return whether each element of a leaf is stored by itself.

    Args:
      stored: the stored moment of one leaf.
      shape: the shape of the leaf.
    """
    nothing = all(isinstance(field, optax.MaskedNode) for field in stored.format)
    return nothing and stored.values.shape == shape
