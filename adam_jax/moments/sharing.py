"""Second moments that many elements share: means over rows, columns or whole leaves."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax import numerics, placement
from adam_jax.hyperparams import check_whole
from adam_jax.measures import mean
from adam_jax.moments.formats import Format, Stored
from adam_jax.moments.noise import Noise


class Factored(NamedTuple):
    """Reader for moments stored as means over their longest axis.

    Attributes:
      columns: the means over the second longest axis. Axes over which a mean was taken
        have size 1. A leaf that is not factored has `optax.MaskedNode()` here: its
        moment is stored as it is.
    """

    columns: Any

    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        """Return the moment of rank 1 that has these means."""
        del leaf
        if isinstance(self.columns, optax.MaskedNode):
            return values
        # Where both have size 1 there is one value, which is its own mean.
        other = tuple(i for i, size in enumerate(self.columns.shape) if size == 1)
        if placement.current_cut():  # a piece may have size 1, too
            whole = np.broadcast_shapes(values.shape, self.columns.shape)
            other = _longest(whole)[1:]
        # Divide first: the product of two second moments may leave the range.
        return numerics.divide_or_zero(values, mean(values, other)) * self.columns


@dataclasses.dataclass(frozen=True)
class FactoredFormat(Format):
    """The format that `factored` returns; its argument is the attribute."""

    min_size: int = 128
    reader = Factored
    flows_stored = True

    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return the means of `x`, or `x` itself if an axis is too short."""
        expect_second_moment("factored", signed)
        axes = self._axes(x.shape)
        if axes is None:
            return Stored(x, Factored(optax.MaskedNode()))
        rows, columns = (mean(x, (axis,)) for axis in axes)
        return Stored(rows, Factored(columns))

    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return the means of `x`, over the same axes as in `old`."""
        del noise
        if isinstance(old.format.columns, optax.MaskedNode):
            return Stored(x.astype(old.values.dtype), old.format)
        rows, columns = (
            mean(x, (axis,)).astype(means.dtype)
            for axis, means in zip(
                _longest(x.shape), (old.values, old.format.columns), strict=True
            )
        )
        return Stored(rows, Factored(columns))

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether the means are over these axes, or do not fit the leaf."""
        if not super().wrote(stored, leaf):
            return False
        axes, columns = self._axes(leaf.shape), stored.format.columns
        if axes is None:
            return isinstance(columns, optax.MaskedNode)
        if isinstance(columns, optax.MaskedNode):
            return stored.values.shape != leaf.shape
        return all(
            _is_mean(means.shape, leaf.shape, {axis})
            for means, axis in zip((stored.values, columns), axes, strict=True)
        )

    def __str__(self) -> str:
        """Return the call that creates this format."""
        return f"factored({self.min_size})"

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the longest axis and the second longest, or None if one is short."""
        whole = placement.whole_shape(shape, placement.current_cut())
        axes = _longest(shape)
        return None if len(axes) < 2 or whole[axes[1]] < self.min_size else axes


def factored(min_size: int = 128) -> Format:
    """Store a matrix of second moments as its row means and column means.

    R holds the means over the longest axis, C those over the second longest. The moment
    is read as R C / mean(R), Adafactor's second moment, and later stages receive this.
    The state of an n x m leaf has n + m numbers. Any other axes are batch axes.

    Args:
      min_size: leaves whose second longest axis is shorter stay as they are, and so do
        leaves with one axis.

    Raises:
      ValueError: if min_size is not a positive integer; at init, for first moments.

    Example: a matrix of rank 1 is kept exactly.

      >>> nu = jnp.outer(jnp.arange(3.0), jnp.ones(4))
      >>> stored = factored(min_size=2).init(nu, signed=False)
      >>> print(stored.values.shape, stored.format.columns.shape)
      (3, 1) (1, 4)
      >>> print(stored.decode()[:, 0])
      [0. 1. 2.]

    Reference: Shazeer & Stern 2018 (Adafactor), Algorithm 4; axes are chosen as in
    `optax.scale_by_factored_rms`.
    """
    return FactoredFormat(min_size=check_whole("min_size", min_size))


class MeanOver(NamedTuple):
    """Reader for moments stored as means, with size 1 along shared axes."""

    def decode(self, values: jax.Array, leaf: Any) -> jax.Array:
        """Return the means, broadcast to the leaf.

        Raises:
          ValueError: if the leaf is not given.
        """
        if leaf is None:
            raise ValueError(
                "moments stored by mean_over() do not know the shapes of the "
                "parameters: pass params, as in load_moments(state, params)."
            )
        # If the shapes do not fit, a later check names the leaf.
        fits = _broadcasts(values.shape, leaf.shape)
        return jnp.broadcast_to(values, leaf.shape) if fits else values


@dataclasses.dataclass(frozen=True)
class MeanOverFormat(Format):
    """The format that `mean_over` returns; its argument is the attribute."""

    axes: tuple[int, ...] | None = None
    reader = MeanOver
    flows_stored = True

    def init(self, x: jax.Array, signed: bool) -> Stored:
        """Return the mean of `x` over those of the axes that it has."""
        expect_second_moment("mean_over", signed)
        if not x.size:  # the mean of nothing is NaN
            return Stored(x, MeanOver())
        return Stored(mean(x, tuple(self._own(x.ndim))), MeanOver())

    def encode(self, x: jax.Array, old: Stored, noise: Noise) -> Stored:
        """Return the mean of `x`, over the same axes as in `old`."""
        del noise
        if not x.size:
            return old
        means = mean(x, tuple(self._own(x.ndim)))
        return Stored(means.astype(old.values.dtype), MeanOver())

    def wrote(self, stored: Stored, leaf: Any) -> bool:
        """Return whether the means are over these axes, or do not fit the leaf."""
        own = self._own(leaf.ndim)
        return super().wrote(stored, leaf) and (
            not leaf.size or _is_mean(stored.values.shape, leaf.shape, own)
        )

    def __str__(self) -> str:
        """Return the call that creates this format."""
        return f"mean_over({self.axes})"

    def _own(self, ndim: int) -> set[int]:
        """Return those of the axes that an array with `ndim` axes has."""
        axes = range(ndim) if self.axes is None else self.axes
        return {axis % ndim for axis in axes if -ndim <= axis < ndim}


def mean_over(axes: int | Sequence[int] | None = None) -> Format:
    """Store one second moment for all elements along some axes: their mean.

    Later stages receive the mean, as in Adam-mini.

    Args:
      axes: the axes to average over; a leaf uses those that it has. None means all, so
        that each leaf has one second moment.

    Raises:
      ValueError: if an axis is not an integer; at init, for first moments.

    Example: one second moment per row, as for the tokens of an embedding.

      >>> stored = mean_over(-1).init(jnp.arange(6.0).reshape(2, 3), False)
      >>> print(stored.values)
      [[1.]
       [4.]]

    Reference: Zhang et al. 2024 (Adam-mini), Algorithm 1, whose blocks are the groups
    of elements that share a mean.
    """
    if axes is None:
        return MeanOverFormat()
    chosen = tuple(axes) if isinstance(axes, Sequence) else (axes,)
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in chosen):
        raise ValueError(f"axes must be integers, or None for all, got {axes!r}.")
    return MeanOverFormat(axes=chosen)


def expect_second_moment(name: str, signed: bool) -> None:
    """Refuse a first moment, which elements cannot share.

    Args:
      name: that of the format, for the message.
      signed: whether it is a first moment.

    Raises:
      ValueError: if it is one.
    """
    if signed:
        raise ValueError(
            f"{name}() stores second moments only, as in nu_dtype={name}(): positive "
            "and negative elements of a first moment cannot share a number."
        )


def _longest(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the longest axis and the second longest, of the whole."""
    whole = placement.whole_shape(shape, placement.current_cut())
    return tuple(sorted(range(len(whole)), key=lambda axis: whole[axis])[:-3:-1])


def _is_mean(shape: tuple[int, ...], whole: tuple[int, ...], axes: set[int]) -> bool:
    """Return whether a mean of `shape` is over `axes`, or does not fit `whole`."""
    expected = tuple(1 if i in axes else n for i, n in enumerate(whole))
    return shape == expected or not _broadcasts(shape, whole)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return whether `shape`, with size 1 along shared axes, broadcasts to another."""
    return len(shape) == len(to) and all(
        size in (1, whole) for size, whole in zip(shape, to, strict=True)
    )
