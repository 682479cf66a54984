"""Coordinates in a subspace of a gradient: GaLore."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_jax import numerics
from adam_jax.coordinates.interface import Coordinates
from adam_jax.coordinates.kronecker import multiply
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_non_negative,
    check_whole,
    exact,
)


class _Subspace(Coordinates):
    """The coordinates that `subspace` returns."""

    def __init__(self, rank: int, every: int, scale: Any):
        """Keep the arguments."""
        self._rank, self._every, self._scale = rank, every, scale

    def init(self, param: Any) -> dict[str, jax.Array]:
        """Return a projector of 0; the first step makes one."""
        shape, dtype = np.shape(param), numerics.compute_dtype(numerics.dtype_of(param))
        if len(shape) != 2 or 0 in shape:
            return {}
        axis = _shorter(shape)
        size = shape[axis], self.shape(shape)[axis]
        return {"projector": jnp.zeros(size, dtype)}

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a matrix whose shorter axis has only `rank` elements."""
        if len(shape) != 2 or 0 in shape:
            return shape
        axis = _shorter(shape)
        rank = min(self._rank, shape[axis])
        return tuple(rank if i == axis else n for i, n in enumerate(shape))

    def advance(
        self, kept: dict[str, jax.Array], grad: jax.Array, past: Any
    ) -> dict[str, jax.Array]:
        """Take the singular vectors of this gradient in every so many steps."""
        old = kept["projector"]

        def renew():
            unfolded = jnp.moveaxis(grad, _shorter(grad.shape), 0)
            vectors = jnp.linalg.svd(unfolded, full_matrices=False)[0]
            vectors = vectors[:, : old.shape[1]]
            # A singular vector has no sign of its own.
            places = jnp.abs(vectors).argmax(0, keepdims=True)
            largest = jnp.take_along_axis(vectors, places, 0)
            return (vectors * jnp.sign(largest).conj()).astype(old.dtype)

        due = jnp.equal(past % self._every, 0)
        return {"projector": lax.cond(due, renew, lambda: old)}

    def enter(self, kept: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """Return `P^H x` along the shorter axis."""
        return multiply(kept["projector"].conj().T, x, _shorter(x.shape))

    def leave(self, kept: dict[str, jax.Array], x: jax.Array, past: Any) -> jax.Array:
        """Return `scale * P x` along the shorter axis."""
        scale = at(self._scale, past, numerics.real_dtype(x.dtype))
        projector = kept["projector"]
        # If both axes have `rank` elements, the matrix is square: the first is it.
        axis = 0 if x.shape[0] == projector.shape[1] else 1
        return scale * multiply(projector, x, axis)


def subspace(
    rank: int, *, every: int = 200, scale: Hyperparam = exact(1.0)
) -> Coordinates:
    """Project the gradients of matrices on their largest singular vectors.

        P <- U[:, :rank] of G = U S V'             in every so many steps
        G enters as P' G, and an update U leaves as scale * P U

    This is for a matrix that has no more rows than columns; else P is V[:, :rank], G
    enters as G P, and an update leaves as scale * U P'. So moments of an m x n matrix
    have the shape (rank, n) or (m, rank). They stay as they are when P changes.

    All but matrices stay as they are, and are not scaled.

    Args:
      rank: the number of singular vectors; at most the shorter side.
      every: the number of steps from one P to the next. It costs one SVD.
      scale: the factor of the updates, >= 0; a number, a 0-d array or a schedule.

    Raises:
      ValueError: if an argument is out of range, or `rank` or `every` not an integer.

    Example: of two singular values, the larger is seen.

      >>> import optax
      >>> from adam_jax import within
      >>> tx = within(subspace(1), optax.identity())
      >>> grads = jnp.diag(jnp.array([2.0, 9.0]))
      >>> print(tx.update(grads, tx.init(grads))[0].diagonal())
      [0. 9.]

    Reference: Zhao et al. 2024 (GaLore, arXiv:2403.03507), Algorithm 2.

    Differs from `optax.contrib.galore`, which projects the longer side. Here the entry
    of largest magnitude in each singular vector is positive, so that moments keep their
    signs when P changes.
    """
    return _Subspace(
        check_whole("rank", rank),
        check_whole("every", every),
        check_non_negative("scale", scale),
    )


def _shorter(shape: tuple[int, ...]) -> int:
    """Return the axis that is projected: the rows unless there are more of them."""
    return 0 if shape[0] <= shape[1] else 1
