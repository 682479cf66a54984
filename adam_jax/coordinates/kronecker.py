"""Coordinates from the correlations of a gradient along each axis: SOAP and Shampoo."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax import numerics
from adam_jax.coordinates.interface import Coordinates
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_no_schedule,
    check_non_negative,
    check_whole,
    exact,
)

_EXACT = lax.Precision.HIGHEST


class _Eigenbasis(Coordinates):
    """The coordinates that `eigenbasis` returns."""

    waits = 1
    turns = True

    def __init__(self, decay: Any, every: int, max_size: int):
        """Keep the arguments."""
        self._decay, self._every, self._max_size = decay, every, max_size

    def init(self, param: Any) -> dict[str, jax.Array]:
        """Return averages of 0, and the identity for each axis that turns."""
        shape, dtype = np.shape(param), numerics.compute_dtype(numerics.dtype_of(param))
        if len(shape) < 2 or 0 in shape:
            return {}
        kept = {}
        for axis, size in enumerate(shape):
            if size <= self._max_size:
                kept[f"average{axis}"] = jnp.zeros([size, size], dtype)
                kept[f"basis{axis}"] = jnp.eye(size, dtype=dtype)
        return kept

    def advance(
        self, kept: dict[str, jax.Array], grad: jax.Array, past: Any
    ) -> dict[str, jax.Array]:
        """Renew the bases from the averages so far, then add to these."""
        # In the second step the first basis, then one in every so many steps.
        which = jnp.where(self.changes(past), jnp.where(jnp.equal(past, 1), 1, 2), 0)
        new = dict(kept)
        for axis in _axes(kept, "basis"):
            average, basis = kept[f"average{axis}"], kept[f"basis{axis}"]
            decay = at(self._decay, past, numerics.real_dtype(average.dtype))
            new[f"basis{axis}"] = lax.switch(
                which, [_keep, _eigenvectors, _iterate], average, basis
            )
            correlation = _correlate(grad, axis).astype(average.dtype)
            new[f"average{axis}"] = decay * average + (1 - decay) * correlation
        return new

    def enter(self, kept: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """Return `Q^H x` along each axis."""
        for axis in _axes(kept, "basis"):
            x = multiply(kept[f"basis{axis}"].conj().T, x, axis)
        return x

    def leave(self, kept: dict[str, jax.Array], x: jax.Array, past: Any) -> jax.Array:
        """Return `Q x` along each axis."""
        del past
        for axis in _axes(kept, "basis"):
            x = multiply(kept[f"basis{axis}"], x, axis)
        return x

    def changes(self, past: Any) -> Any:
        """Return whether this is the second step, or so many steps after it."""
        return (past > 0) & ((past - 1) % self._every == 0)

    def follow(
        self, old: dict[str, jax.Array], new: dict[str, jax.Array], x: jax.Array
    ) -> jax.Array:
        """Return `Q_new^H Q_old x` along each axis."""
        return self.enter(new, self.leave(old, x, 0))


def eigenbasis(
    decay: Hyperparam = exact(0.95), *, every: int = 10, max_size: int = 10_000
) -> Coordinates:
    """Turn gradients into the eigenvectors of their correlations along each axis.

    For a matrix G of gradients:

        L <- decay * L + (1 - decay) * G G'        R <- decay * R + (1 - decay) * G' G
        Q_L <- QR(L Q_L),  Q_R <- QR(R Q_R)        in every so many steps
        G enters as Q_L' G Q_R, and an update U leaves as Q_L U Q_R'

    The first step moves nothing: it makes the first bases, by eigh. Bases never know
    the gradient that they turn. A leaf with k axes has k bases, each from its
    correlations along one axis, summed over all others. (To treat some axes as a batch,
    as for layers in one array, call the optimizer under `jax.vmap`.)

    Scalars, vectors and leaves without elements do not turn, nor do longer axes. An
    axis of n elements keeps two n x n matrices, float32 or wider; one renewal costs
    some 10 n^3 operations.

    Args:
      decay: the decay rate of the averages, in [0, 1).
      every: the number of steps from one basis to the next.
      max_size: longer axes do not turn.

    Raises:
      ValueError: if an argument is out of range, or `every` or `max_size` not an
        integer.

    Example: the gradients of a rotated diagonal enter as a diagonal.

      >>> import optax
      >>> from adam_jax import within
      >>> tx = within(eigenbasis(), optax.scale_by_sign())
      >>> grads = jnp.array([[3.0, 1.0], [1.0, 3.0]])
      >>> state = tx.init(grads)
      >>> for _ in range(2):
      ...     updates, state = tx.update(grads, state)
      >>> print(jnp.abs(state.coordinates["basis0"]).round(4))
      [[0.7071 0.7071]
       [0.7071 0.7071]]

    Reference: Vyas et al. 2024 (SOAP, arXiv:2409.11321), Algorithms 3 and 4.

    Differs from the authors' code, which sorts the vectors before each QR.
    """
    return _Eigenbasis(
        check_decay("decay", decay),
        check_whole("every", every),
        check_whole("max_size", max_size),
    )


class _InverseRoots(Coordinates):
    """The coordinates that `inverse_roots` returns."""

    def __init__(self, initial: Any, every: int, max_size: int):
        """Keep the arguments."""
        self._initial, self._every, self._max_size = initial, every, max_size

    def init(self, param: Any) -> dict[str, jax.Array]:
        """Return the initial sums; the first step makes the roots."""
        shape, dtype = np.shape(param), numerics.compute_dtype(numerics.dtype_of(param))
        if 0 in shape:
            return {}
        kept = {}
        for axis, size in enumerate(shape or (1,)):
            if size <= self._max_size:
                unit = jnp.eye(size, dtype=dtype)
                kept[f"root{axis}"] = unit
                kept[f"sum{axis}"] = unit * jnp.asarray(self._initial, unit.real.dtype)
        return kept

    def advance(
        self, kept: dict[str, jax.Array], grad: jax.Array, past: Any
    ) -> dict[str, jax.Array]:
        """Add to the sums, then renew the roots."""
        grad = jnp.atleast_1d(grad)
        due = jnp.equal(past % self._every, 0)

        def renew(total, root):
            values, vectors = jnp.linalg.eigh(total, symmetrize_input=False)
            least = jnp.asarray(self._initial, values.dtype)
            powers = jnp.maximum(values, least) ** (-0.5 / grad.ndim)
            # With an initial 0, directions that no gradient had yet.
            powers = jnp.where(jnp.isfinite(powers), powers, 0)
            turned = vectors * powers[None].astype(vectors.dtype)
            return jnp.matmul(turned, vectors.conj().T, precision=_EXACT)

        new = {}
        for axis in _axes(kept, "root"):
            total, root = kept[f"sum{axis}"], kept[f"root{axis}"]
            total = total + _correlate(grad, axis).astype(total.dtype)
            new[f"root{axis}"] = lax.cond(due, renew, _keep, total, root)
            new[f"sum{axis}"] = total
        return new

    def enter(self, kept: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """Return `x`."""
        del kept
        return x

    def leave(self, kept: dict[str, jax.Array], x: jax.Array, past: Any) -> jax.Array:
        """Return `x`, multiplied by the root along each axis."""
        del past
        moved = jnp.atleast_1d(x)
        for axis in _axes(kept, "root"):
            moved = multiply(kept[f"root{axis}"], moved, axis)
        return moved.reshape(x.shape)


def inverse_roots(
    initial: Hyperparam = exact(1e-6), *, every: int = 1, max_size: int = 10_000
) -> Coordinates:
    """Multiply updates by inverse roots of the summed correlations along each axis.

    For a matrix G of gradients:

        L <- L + G G'        R <- R + G' G
        G enters as it is, and an update U leaves as L^(-1/4) U R^(-1/4)

    A leaf with k axes has k such sums, of power -1/(2k). So a vector is divided by the
    root of one matrix, and a scalar as in AdaGrad. Leaves without elements, and axes
    longer than `max_size`, stay as they are.

    Args:
      initial: the sums start at this multiple of the identity, >= 0, in units of the
        gradient squared; their eigenvalues are raised to it. No schedule.
      every: the number of steps from one root to the next. An axis of n elements keeps
        two n x n matrices, float32 or wider; one renewal costs some 10 n^3 operations.
      max_size: longer axes are not multiplied by anything.

    Raises:
      ValueError: if an argument is out of range, or `every` or `max_size` not an
        integer.
      TypeError: if `initial` is a schedule.

    Example: the first step of a diagonal has its signs, whatever its scale.

      >>> import optax
      >>> from adam_jax import within
      >>> tx = within(inverse_roots(), optax.identity())
      >>> grads = jnp.diag(jnp.array([2.0, -9.0]))
      >>> print(tx.update(grads, tx.init(grads))[0].round(4).diagonal())
      [ 1. -1.]

    Reference: Gupta, Koren & Singer 2018 (Shampoo, arXiv:1802.09568), Algorithms 1, 2.
    """
    return _InverseRoots(
        check_no_schedule("initial", check_non_negative("initial", initial)),
        check_whole("every", every),
        check_whole("max_size", max_size),
    )


def multiply(matrix: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Return the product of a matrix with `x` along one axis.

    Args:
      matrix: of shape (m, n).
      x: an array with n elements along the axis.
      axis: its number, which has m elements in the result.
    """
    product = jnp.tensordot(matrix, x, ((1,), (axis,)), precision=_EXACT)
    return jnp.moveaxis(product, 0, axis)


def _correlate(grad: jax.Array, axis: int) -> jax.Array:
    """Return G G^H for the unfolding G of a gradient along an axis."""
    others = [i for i in range(grad.ndim) if i != axis]
    return jnp.tensordot(grad, grad.conj(), (others, others), precision=_EXACT)


def _axes(kept: dict[str, jax.Array], name: str) -> list[int]:
    """Return the axes for which something of this name is kept."""
    return sorted(int(k.removeprefix(name)) for k in kept if k.startswith(name))


def _keep(average: jax.Array, basis: jax.Array) -> jax.Array:
    del average
    return basis


def _eigenvectors(average: jax.Array, basis: jax.Array) -> jax.Array:
    """Return the eigenvectors, that of the largest eigenvalue first."""
    del basis
    return jnp.linalg.eigh(average, symmetrize_input=False)[1][:, ::-1]


def _iterate(average: jax.Array, basis: jax.Array) -> jax.Array:
    """Return the basis after one step of power iteration."""
    return jnp.linalg.qr(jnp.matmul(average, basis, precision=_EXACT))[0]
