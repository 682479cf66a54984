"""Adam and AdaGrad in the coordinates of whole matrices."""

from typing import Any

import jax.numpy as jnp
import optax

from adam_jax.coordinates.changing import within
from adam_jax.coordinates.kronecker import eigenbasis, inverse_roots
from adam_jax.coordinates.projection import subspace
from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_no_schedule,
    check_non_negative,
    check_whole,
    exact,
)
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def soap(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.95),
    b2: Hyperparam = exact(0.95),
    eps: Hyperparam = exact(1e-8),
    weight_decay: Hyperparam = exact(0.01),
    *,
    precondition_frequency: int = 10,
    max_size: int = 10_000,
    mask: Mask = None,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build SOAP: AdamW in the eigenbases of Shampoo's matrices.

        L <- b2 * L + (1 - b2) * G G'           R <- b2 * R + (1 - b2) * G' G
        N = Q_L' mu_hat Q_R / (sqrt(nu_hat) + eps)
        params <- params - learning_rate * (Q_L N Q_R' + weight_decay * params)

    nu gathers the squares of Q_L' G Q_R, and mu G itself. The state holds mu as
    Q_L' mu Q_R, and turns it when the vectors change. A gradient meets the Q of the
    gradients before it; every `precondition_frequency` steps, one QR renews Q.

    The first step moves nothing, not even scalars: it makes the first vectors. A leaf
    with k axes has k such matrices; scalars and vectors go by AdamW.

    Along vectors in which gradients have only rounding errors, some 1e-7 of their size
    in float32, the steps are those of Adam for such gradients: as long as all others,
    unless eps is larger.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, and of L and R, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      precondition_frequency: the number of steps from one Q to the next, an integer
        >= 1.
      max_size: axes with more elements do not turn, an integer >= 1.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, an integer is not one, or
        update() lacks params. (To `optax.inject_hyperparams`, say
        `static_args=("precondition_frequency", "max_size")`.)

    Example: the second step, for gradients with one pair of singular vectors.

      >>> tx, params = soap(1e-3), jnp.zeros((2, 2))
      >>> state = tx.init(params)
      >>> for size in (1.0, 3.0):
      ...     grads = size * jnp.array([[0.0, 2.0], [1.0, 0.0]])
      ...     updates, state = tx.update(grads, state, params)
      >>> print(f"{updates[0, 1]:.6f} {updates[1, 0]:.6f}")
      -0.001000 -0.001000

    When: Its paper claims fewer steps than AdamW's on language models. Each axis takes
    two square matrices, and a QR every few steps: no help where the optimizer's step
    already takes much of the time or memory.

    Reference: Vyas et al. 2024 (arXiv:2409.11321), Algorithms 3 and 4.

    Differs from the authors' code, which sorts the vectors before each QR, adds eps to
    the uncorrected root, and decays after the step.
    """
    return chain(
        "soap",
        within(
            eigenbasis(
                check_decay("b2", b2),
                every=check_whole("precondition_frequency", precondition_frequency),
                max_size=max_size,
            ),
            scale_by_moments(
                b1=_one_later(check_decay("b1", b1)),
                b2=_one_later(check_decay("b2", b2)),
                mu_dtype=mu_dtype,
                nu_dtype=nu_dtype,
            ),
            bias_correct(),
            precondition(eps=_one_later(eps)),
        ),
        add_decayed_weights(_from_second_step(weight_decay), mask),
        scale_by_lr(learning_rate),
    )


def galore_adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    *,
    rank: int = 128,
    update_gap: int = 200,
    scale: Hyperparam = exact(0.25),
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build GaLore: AdamW in the span of a past gradient's largest singular vectors.

        P <- U[:, :rank] of G = U S V'          every `update_gap` steps
        N = mu_hat / (sqrt(nu_hat) + eps)       mu and nu gather P' G
        params <- params - learning_rate * (scale * P N + weight_decay * params)

    A matrix with more rows than columns is projected from the right: N gathers G P with
    P = V[:, :rank]. Moments of an m x n matrix have the shape (rank, n) or (m, rank).
    All other leaves go by AdamW, without `scale`.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      rank: the number of singular vectors, an integer >= 1; in effect at most the
        shorter side.
      update_gap: the number of steps from one P to the next, an integer >= 1.
      scale: the factor of the updates of matrices, >= 0.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, an integer is not one (to
        `optax.inject_hyperparams`, say `static_args=("rank", "update_gap")`), or
        update() lacks params.

    Example: of two singular values, the larger moves.

      >>> tx, params = galore_adamw(1e-3, rank=1), jnp.zeros((2, 2))
      >>> grads = jnp.diag(jnp.array([2.0, 9.0]))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(*(f"{x:.6f}" for x in updates.diagonal()))
      -0.000000 -0.000250

    When: Moments of large matrices in little memory. What lies outside of the subspace
    is not followed until the next P: no help where a few directions do not dominate
    the gradients.

    Reference: Zhao et al. 2024 (arXiv:2403.03507), Algorithm 2.

    Differs from `optax.contrib.galore`, which projects the longer side.
    """
    return chain(
        "galore_adamw",
        within(
            subspace(rank, every=check_whole("update_gap", update_gap), scale=scale),
            scale_by_moments(
                b1=check_decay("b1", b1),
                b2=check_decay("b2", b2),
                mu_dtype=mu_dtype,
                nu_dtype=nu_dtype,
            ),
            bias_correct(),
            precondition(eps=eps),
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def shampoo(
    learning_rate: Hyperparam,
    momentum: Hyperparam = exact(0.0),
    eps: Hyperparam = exact(1e-6),
    *,
    update_every: int = 1,
    max_size: int = 10_000,
    mu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Shampoo: AdaGrad with a matrix of sums for each axis of a leaf.

        L <- L + G G'                           R <- R + G' G
        mu <- momentum * mu + (1 - momentum) * G
        params <- params - learning_rate * L^(-1/4) mu R^(-1/4)

    Both start at eps times the identity. A leaf with k axes has k such sums, of power
    -1/(2k): a vector is divided by the root of one matrix, a scalar as in AdaGrad.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step).
      momentum: decay rate of mu, in [0, 1); takes what learning_rate takes.
      eps: where the eigenvalues of L and R start, >= 0, in units of the gradient
        squared: a float or a 0-d array.
      update_every: the number of steps from one root to the next, an integer >= 1.
      max_size: axes with more elements have no such matrix, an integer >= 1.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or an integer is not one (to
        `optax.inject_hyperparams`, say `static_args=("update_every", "max_size")`).
      TypeError: if eps is a schedule.

    Example: the second of two equal gradients, a diagonal.

      >>> tx, params = shampoo(1e-3), jnp.zeros((2, 2))
      >>> state, grads = tx.init(params), jnp.diag(jnp.array([2.0, -9.0]))
      >>> for _ in range(2):
      ...     updates, state = tx.update(grads, state, params)
      >>> print(*(f"{x:.6f}" for x in updates.diagonal()))  # 1 / sqrt(2)
      -0.000707 0.000707

    When: Fewer steps where rows or columns are correlated, for a root of a matrix as
    large as each axis. Its sums never decay, so steps only ever shrink, as AdaGrad's.

    Reference: Gupta, Koren & Singer 2018 (arXiv:1802.09568), Algorithms 1 and 2.

    Differs from PyTorch's old ports, whose momentum feeds back what L and R have
    divided.

    While a vector has had fewer gradients than elements, keep mu in float32: what a
    narrow mu is rounded to lies in directions that L divides by the root of eps alone.
    """
    return chain(
        "shampoo",
        within(
            inverse_roots(
                check_no_schedule("eps", check_non_negative("eps", eps)),
                every=check_whole("update_every", update_every),
                max_size=max_size,
            ),
            scale_by_moments(
                b1=check_decay("momentum", momentum), b2=None, mu_dtype=mu_dtype
            ),
            precondition(),
        ),
        scale_by_lr(learning_rate),
    )


def _one_later(value: Any) -> Any:
    """Return a hyperparameter for stages that do not see the first step."""
    return (lambda count: value(count + 1)) if callable(value) else value


def _from_second_step(weight_decay: Any) -> Any:
    """Return a decay that is 0 in the first step."""
    decay = check_non_negative("weight_decay", weight_decay, half_precision=True)
    return lambda count: jnp.where(
        count > 0, at(decay, count, jnp.result_type(float)), 0.0
    )
