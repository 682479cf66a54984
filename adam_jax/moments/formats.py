"""How a moment is stored between steps: what a format is, and the plain one.

A format is a pair. A `Format` writes: it belongs to the optimizer, and turns one array
into what is stored. The NamedTuple that it leaves in the state reads: it holds whatever
is kept beside the values, and turns both back into the array. So a state says itself
how it is to be read, and whoever reads one never guesses.

Whatever is narrower than float32 is rounded stochastically: a moment moves by 0.1% a
step, which nearest rounding would lose. The random bits are a hash of (seed, step,
element), so that they need no key, and come out the same however the arrays are
sharded. (Members of a vmap, and the shards of a shard_map, see their own indices, and
so the same bits.)
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from typing_extensions import TypeAliasType

from adam_jax import numerics

Noise = TypeAliasType("Noise", Callable[[tuple[int, ...]], jax.Array])
"""From a shape to random uint32 of that shape."""


class Stored(NamedTuple):
    """A moment as a state keeps it: of one leaf or, as trees, of all of them.

    Attributes:
      values: the moment itself, codes of it, or whatever stands for it; in a tree, a
        pytree like the parameters.
      format: the NamedTuple of the format, with what it keeps beside the values. In a
        tree each field of it is a pytree like the parameters, with `optax.MaskedNode()`
        where a leaf has nothing to keep.
    """

    values: Any
    format: Any

    def decode(self, leaf: Any = None) -> jax.Array:
        """Return the array that one leaf's values stand for, float32 at least.

        Args:
          leaf: whatever has the shape and the dtype of the parameter; None where they
            are not known. A format that shares values among elements then returns an
            array that broadcasts to the parameter's shape.
        """
        return self.format.decode(self.values, leaf)


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
    """What writes a moment into a state. To write your own, derive from it.

    Beside it you need a NamedTuple: what is kept beside the values, a field for each
    array, with a method `decode(values, leaf)`, which returns the array, float32 at
    least. `leaf` has the shape and the dtype of the parameter; it is None where nobody
    knows them.

    A format that keeps nothing beside an array of the leaf's shape is taken to store
    each element by itself: `packed` puts such leaves into one buffer.

    Attributes:
      seed: of the random bits of stochastic rounding.
      reader: (class attribute, or property) that NamedTuple.
      flows_stored: (class attribute) whether what flows on is what was stored, not what
        was computed: for methods that divide by what they keep, as Adafactor does.

    Example: moments rounded to bfloat16, and beside each leaf its largest error.

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

    @abc.abstractmethod
    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return what stores `x`, rounded to the nearest, at the start.

        Args:
          x: the moment of one leaf, float32 at least.
          signed: False for second moments, which are real and never negative.
        """

    @abc.abstractmethod
    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return what stores `x` in the place of `old`, of the same shapes and dtypes.

        Args:
          x: the moment of one leaf after this step, float32 at least.
          old: what stored it before.
          noise: the random bits of this step and leaf, for the shape that is asked for.
        """

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether this format can have written what a state holds for a leaf.

        Args:
          stored: what the state holds.
          leaf: whatever has the shape of the parameter.
        """
        del leaf
        return isinstance(stored.format, self.reader)

    def __str__(self) -> str:
        """Return what messages call it."""
        return type(self).__name__


class Dense(NamedTuple):
    """In a state: moments stand there as they are."""

    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        """Return the values."""
        del leaf
        return values


@dataclasses.dataclass(frozen=True)
class DenseFormat(Format):
    """What `dense` returns.

    Attributes:
      dtype: the dtype to store at; None: at the one that the moment starts with.
    """

    dtype: Any = None
    reader = Dense

    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return `x` at the dtype."""
        dtype = x.dtype if self.dtype is None else self.dtype
        if not signed and jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(f"nu_dtype must be real, got {dtype}.")
        return Stored(numerics.cast(x, dtype), Dense())

    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return `x` at the dtype of `old`, rounded stochastically to bfloat16."""
        if old.values.dtype == jnp.bfloat16:
            x = numerics.round_to_bfloat16(x.astype(jnp.float32), noise(x.shape))
        return Stored(numerics.cast(x, old.values.dtype), Dense())

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether a leaf has the dtype; for None, one that is computed in."""
        if not super().wrote(stored, leaf):
            return False
        dtype = stored.values.dtype
        own = numerics.compute_dtype(dtype) if self.dtype is None else self.dtype
        return dtype == own

    def __str__(self) -> str:
        """Return the dtype's name."""
        return "float32 or wider" if self.dtype is None else str(self.dtype)


def dense(dtype: DTypeLike | None = None, seed: int = 0) -> Format:
    """Store at a dtype.

    bfloat16 is rounded stochastically; wider dtypes hold what they are given.

    Args:
      dtype: float32, float64, bfloat16 or, for first moments, a complex dtype; None:
        the one that the moment starts with, float32 at least.
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
    return DenseFormat(seed, dtype)


def is_elementwise(stored: Stored, shape: tuple[int, ...]) -> bool:
    """Return whether each element of a leaf is stored by itself.

    Args:
      stored: what stores one leaf.
      shape: of the leaf.
    """
    nothing = all(isinstance(field, optax.MaskedNode) for field in stored.format)
    return nothing and stored.values.shape == shape
