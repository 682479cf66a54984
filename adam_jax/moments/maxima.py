"""Second moments bounded by the maxima of their rows, of their columns, and so on."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax.measures import largest
from adam_jax.moments.formats import Format, Stored
from adam_jax.moments.noise import Noise
from adam_jax.moments.sharing import expect_second_moment


class AxisMaxima(NamedTuple):
    """Reader for moments stored as their maxima along each axis.

    Attributes:
      others: the maxima along the second axis and later ones, a tuple of arrays that
        have size 1 along all other axes. The values are those along the first axis. A
        leaf with fewer than two axes has `optax.MaskedNode()` here: its moment is
        stored as it is.
    """

    others: Any

    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        """Return the least of the maxima that bound each element."""
        del leaf
        others = () if isinstance(self.others, optax.MaskedNode) else self.others
        return functools.reduce(jnp.minimum, others, values)


@dataclasses.dataclass(frozen=True)
class AxisMaximaFormat(Format):
    """The format that `axis_maxima` returns."""

    reader = AxisMaxima

    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return the maxima of `x` along each of its axes."""
        expect_second_moment("axis_maxima", signed)
        if not _has_maxima(x):
            return Stored(x, AxisMaxima(optax.MaskedNode()))
        others = [
            tuple(i for i in range(x.ndim) if i != axis) for axis in range(x.ndim)
        ]
        first, *rest = (largest(x, one) for one in others)
        return Stored(first, AxisMaxima(tuple(rest)))

    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return the maxima of `x`, in the dtype of `old`."""
        del noise
        new = self.init(x, False)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), new, old)

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether a leaf with axes has maxima, or does not fit its moment."""
        if not super().wrote(stored, leaf):
            return False
        whole = isinstance(stored.format.others, optax.MaskedNode)
        return not (whole and _has_maxima(leaf) and stored.values.shape == leaf.shape)

    def __str__(self) -> str:
        """Return the call that creates this format."""
        return "axis_maxima()"


def axis_maxima() -> Format:
    """Store second moments as their maxima along each axis.

    A matrix is stored as the maxima of its rows and those of its columns; each element
    is read as the smaller of its two, an upper bound. So are arrays with more axes, by
    one vector an axis; those with fewer are stored as they are. The state of an n x m
    leaf has n + m numbers.

    Later stages receive the moment before it is stored: the bound that was read, with
    the gradient of this step added.

    Raises:
      ValueError: at init, for first moments.

    Example: the bounds of 1 and 2 are exact, those of 0 are not.

      >>> nu = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> stored = axis_maxima().init(nu, signed=False)
      >>> print(stored.values.shape, [x.shape for x in stored.format.others])
      (2, 1) [(1, 2)]
      >>> print(stored.decode())
      [[1. 1.]
       [1. 2.]]

    Reference: Anil et al. 2019 (SM3), Algorithm SM3-II; section 4: the cover by axes.
    """
    return AxisMaximaFormat()


def _has_maxima(leaf: Any) -> bool:
    return leaf.ndim > 1 and leaf.size > 0
