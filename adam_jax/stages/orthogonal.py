"""From updates to updates, of whole matrices: Newton and Schulz, and scales."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import keystr, tree_map_with_path

from adam_jax import numerics, placement
from adam_jax.checks import fit_params
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_no_schedule,
    check_non_negative,
    check_whole,
    exact,
    shown,
)
from adam_jax.measures import norm
from adam_jax.stages.division import emit
from adam_jax.stages.flow import expect_updates

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's coefficients: singular values of 0.01 to 1 end in 0.68 to 1.14."""
_PRESETS = {
    "standard": QUINTIC,
    "dion": (  # Ahn et al. 2025 (arXiv:2504.05295)
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def on_matrices(
    *stages: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Run stages on the matrices, and another optimizer on all other leaves.

    A matrix is a leaf with exactly two axes, as in `optax.contrib.muon`. (For others,
    such as the kernels of convolutions or layers in one array, use `optax.partition`.)

    Args:
      *stages: transformations for the matrices, as in `optax.chain`.
      others: a transformation for scalars, vectors and leaves with more axes.

    Raises:
      AssertionError: (from chex) at the first trace, if updates do not fit the
        parameters.

    Example:

      >>> tx = on_matrices(orthogonalize(), others=optax.identity())
      >>> grads = {"kernel": 9 * jnp.eye(2), "bias": jnp.array([9.0])}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(f"{updates['kernel'][0, 0]:.3f} {updates['bias'][0]}")
      1.108 9.0
    """

    def label(params):
        return jax.tree.map(
            lambda x: "matrix" if len(np.shape(x)) == 2 else "other", params
        )

    inner = optax.partition({"matrix": optax.chain(*stages), "other": others}, label)

    def update_fn(updates, state, params=None, **extra_args):
        if params is not None:
            fit_params(params, updates)
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def orthogonalize(
    ns_coeffs: Sequence[Any] | str = QUINTIC,
    ns_steps: int = 5,
    eps: Hyperparam = exact(1e-8),
    *,
    adaptive: bool = False,
) -> optax.GradientTransformation:
    """Bring the singular values of each update near 1, and keep its singular vectors.

        X <- X / (norm(X) + eps)                        the Frobenius norm
        X <- a X + (b A + c A A) X  with A = X X'       in every step

    A matrix is the last two axes of a leaf; others count its matrices. Computed in
    float32 or wider, in full precision: a step of an m x n matrix, m <= n, takes some
    4 m m n + 2 m m m operations.

    Args:
      ns_coeffs: a, b and c; a sequence of such triples, one for each step; or
        "standard" or "dion", for those of Optax.
      ns_steps: the number of steps, an integer; triples may be fewer, and are then all.
      eps: added to the norm, >= 0, in units of the gradient. No schedule.
      adaptive: whether to multiply the result O by the inner product of X and O, the
        sum of the singular values of X.

    Raises:
      ValueError: for other coefficients, or if an argument is out of range; at the
        first trace, for scalars and vectors, or in a shard_map that cuts a leaf.
      TypeError: if eps is a schedule; at the first trace, for `Moments`.

    Example: singular values 3 and 0.1.

      >>> tx, grads = orthogonalize(), jnp.diag(jnp.array([3.0, 0.1]))
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(*(f"{x:.3f}" for x in updates.diagonal()))
      0.697 1.129

    Reference: Jordan et al. 2024 (Muon); Bernstein & Newhouse 2024 (arXiv:2409.20325).
    """
    if isinstance(ns_coeffs, str) and ns_coeffs in _PRESETS:
        ns_coeffs = _PRESETS[ns_coeffs]
    shape: Any = () if isinstance(ns_coeffs, str) else np.shape(ns_coeffs)
    if len(shape) not in (1, 2) or shape[-1] != 3:
        raise ValueError(
            "ns_coeffs are three numbers, a sequence of such triples or one of "
            f"{', '.join(_PRESETS)}, got {shown(ns_coeffs)}."
        )
    ns_steps = check_whole("ns_steps", ns_steps)
    triples = [ns_coeffs] * ns_steps if len(shape) == 1 else [*ns_coeffs]
    if len(triples) > ns_steps:
        raise ValueError(
            f"{len(triples)} triples of ns_coeffs, but ns_steps={ns_steps}."
        )
    eps = check_no_schedule("eps", check_non_negative("eps", eps))

    def multiply(x, y):
        return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)

    def adjoint(x):
        return x.mT.conj()

    def iterate(x):
        tall = x.shape[-2] > x.shape[-1]
        given = x
        x = adjoint(x) if tall else x
        size = norm(x, (-2, -1))
        x = numerics.divide_or_zero(x, size + at(eps, 0, size.dtype))
        for triple in triples:
            a, b, c = (jnp.asarray(number, size.dtype) for number in triple)
            gram = multiply(x, adjoint(x))
            x = a * x + multiply(b * gram + c * multiply(gram, gram), x)
        x = adjoint(x) if tall else x
        if adaptive:
            inner = jnp.sum(given.conj() * x, axis=(-2, -1), keepdims=True)
            x = inner * x
        return x

    return _stage("orthogonalize", iterate)


def scale_by_shape(
    consistent_rms: Hyperparam | None = None,
) -> optax.GradientTransformation:
    """Scale matrices by a function of their shapes.

        updates <- sqrt(max(1, columns / rows)) * updates
        updates <- consistent_rms * sqrt(max(rows, columns)) * updates    if it is given

    Args:
      consistent_rms: >= 0, a number or a 0-d array: an orthogonal matrix then has this
        root mean square. 0.2 is that of typical updates of Adam.

    Raises:
      ValueError: if it is out of range; at the first trace, for scalars and vectors, or
        in a shard_map that cuts a leaf.
      TypeError: if it is a schedule; at the first trace, for `Moments`.

    Example:

      >>> tx, grads = scale_by_shape(), jnp.ones((2, 8))
      >>> print(tx.update(grads, tx.init(grads))[0][0, 0])
      2.0

    Reference: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv:2502.16982), eq. 4.
    """
    if consistent_rms is not None:
        consistent_rms = check_no_schedule(
            "consistent_rms", check_non_negative("consistent_rms", consistent_rms)
        )

    def scale(x):
        rows, columns = x.shape[-2:]
        if consistent_rms is None:
            return math.sqrt(max(1, columns / max(rows, 1))) * x
        rms = at(consistent_rms, 0, numerics.real_dtype(x.dtype))
        return rms * math.sqrt(max(rows, columns)) * x

    return _stage("scale_by_shape", scale)


def set_rms(rms: Hyperparam = exact(0.2)) -> optax.GradientTransformation:
    """Scale each matrix to a given root mean square; 0 stays 0.

        updates <- rms * sqrt(rows * columns) / norm(updates) * updates

    A matrix is the last two axes of a leaf.

    Args:
      rms: >= 0, a number or a 0-d array. 0.2 is that of typical updates of Adam.

    Raises:
      ValueError: if it is out of range; at the first trace, for scalars and vectors, or
        in a shard_map that cuts a leaf.
      TypeError: if it is a schedule; at the first trace, for `Moments`.

    Example:

      >>> tx, grads = set_rms(0.2), jnp.array([[3.0, -4.0]])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> print(f"{jnp.sqrt(jnp.mean(updates**2)):.4f}")
      0.2000
    """
    rms = check_no_schedule("rms", check_non_negative("rms", rms))

    def scale(x):
        size = norm(x, (-2, -1))
        length = at(rms, 0, size.dtype) * math.sqrt(math.prod(x.shape[-2:]))
        return numerics.divide_or_zero(length, size) * x

    return _stage("set_rms", scale)


def _stage(name: str, function: Any) -> optax.GradientTransformation:
    """Return a stage that computes each matrix from that of the updates."""

    def apply(updates, params=None):
        expect_updates(updates, name)

        def apply_leaf(path, update):
            update = numerics.widen(update)
            if update.ndim < 2:
                raise ValueError(
                    f"{name}() takes matrices, updates{keystr(path)} has shape "
                    f"{update.shape}: put it in on_matrices(..., others=adam(1e-3))."
                )
            if any(placement.cut_at(path) or ()):
                raise ValueError(
                    f"{name}() needs whole matrices, and updates{keystr(path)} is one "
                    "of several pieces in a shard_map: take the step outside of it, "
                    "under jit."
                )
            return function(update)

        return emit(tree_map_with_path(apply_leaf, updates), updates, params)

    return optax.stateless(apply)
