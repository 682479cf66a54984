"""Momentum whose singular values are brought near 1: Muon and its relatives."""

from collections.abc import Sequence
from typing import Any

import optax

from adam_jax.family.both_moments import adamw
from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    check_decay,
    check_non_negative,
    derived,
    exact,
)
from adam_jax.moments.accumulators import Accumulator, ema, lion_average
from adam_jax.moments.sharing import mean_over
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.orthogonal import (
    QUINTIC,
    on_matrices,
    orthogonalize,
    scale_by_shape,
    set_rms,
)
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def muon(
    learning_rate: Hyperparam,
    ns_coeffs: Sequence[Any] | str = QUINTIC,
    ns_steps: int = 5,
    beta: Hyperparam = exact(0.95),
    eps: Hyperparam = exact(1e-8),
    weight_decay: Hyperparam = exact(0.0),
    weight_decay_mask: Mask = None,
    mu_dtype: Storage = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    adam_b1: Hyperparam = exact(0.9),
    adam_b2: Hyperparam = exact(0.999),
    adam_eps_root: Hyperparam = exact(0.0),
    adam_weight_decay: Hyperparam = exact(0.0),
    adam_learning_rate: Hyperparam | None = None,
    consistent_rms: Hyperparam | None = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Muon: momentum whose singular values are brought near 1.

        O = NS(mu_hat)                                  see `orthogonalize`
        scale = sqrt(max(1, columns / rows))
             or consistent_rms * sqrt(max(rows, columns))
        params <- params - learning_rate * (scale * O + weight_decay * params)

    With nesterov, mu_hat looks one step ahead, as in `nadam`. Leaves that have not
    exactly two axes go by `adamw(..., nesterov=nesterov)`.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). So may be the other numbers, but for
        eps and consistent_rms, which are no schedules.
      ns_coeffs: the three coefficients of NS, a sequence of such triples, one for each
        step, or "standard" or "dion".
      ns_steps: the number of steps of NS, an integer >= 1.
      beta: decay rate of mu, in [0, 1).
      eps: added to the norm of mu_hat in NS, and to the root of nu in AdamW, >= 0, in
        units of the gradient.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`
        from matrices.
      weight_decay_mask: which matrices decay: a function of params that returns a
        pytree of booleans, or such a pytree. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it
        `static_args="weight_decay_mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nesterov: whether mu_hat looks one step ahead.
      adaptive: whether to multiply O by its inner product with mu_hat.
      adam_b1: b1 of AdamW.
      adam_b2: b2 of AdamW.
      adam_eps_root: eps_root of AdamW.
      adam_weight_decay: weight decay of AdamW.
      adam_learning_rate: the learning rate of AdamW; None means learning_rate.
      consistent_rms: the root mean square of O, >= 0; None scales by the shape alone.
      nu_dtype: how nu of AdamW is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, ns_steps is not an integer (to
        `optax.inject_hyperparams`, say `static_args="ns_steps"`), or update() lacks
        params.

    Example: both singular values, 2 and 9, end near 1.

      >>> import jax.numpy as jnp
      >>> tx, params = muon(1e-3), jnp.zeros((2, 2))
      >>> grads = jnp.diag(jnp.array([2.0, -9.0]))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(*(f"{x:.6f}" for x in updates.diagonal()))
      -0.000694 0.000729

    When: Hidden matrices of transformers, in half of AdamW's state and, Liu et al.
    claim, fewer steps; for some matrix products a step. Embeddings and heads have two
    axes, too, and do not belong here: leave them to Adam, by `optax.partition`.

    Reference: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv:2502.16982).

    Differs from PyTorch, where rows are outputs, so that the scale is that of the
    transpose; where nesterov mixes g and mu uncorrected; where NS is in bfloat16; and
    where the default weight decay is 0.1.
    Differs from Optax, which has other norms than Frobenius' (`preconditioning`), and
    takes leaves of more axes for matrices by `muon_weight_dimension_numbers`.
    """
    if adam_learning_rate is not None:
        adam_learning_rate = check_non_negative(
            "adam_learning_rate", adam_learning_rate, half_precision=True
        )
    adam_eps_root = check_non_negative("adam_eps_root", adam_eps_root)
    adam_weight_decay = check_non_negative(
        "adam_weight_decay", adam_weight_decay, half_precision=True
    )
    return chain(
        "muon",
        on_matrices(
            scale_by_moments(
                b1=ema(check_decay("beta", beta), nesterov=nesterov),
                b2=None,
                mu_dtype=mu_dtype,
            ),
            bias_correct(),
            precondition(),
            orthogonalize(ns_coeffs, ns_steps, eps, adaptive=adaptive),
            scale_by_shape(consistent_rms),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_lr(learning_rate),
            others=adamw(
                learning_rate if adam_learning_rate is None else adam_learning_rate,
                b1=check_decay("adam_b1", adam_b1),
                b2=check_decay("adam_b2", adam_b2),
                eps=eps,
                eps_root=adam_eps_root,
                mu_dtype=mu_dtype,
                weight_decay=adam_weight_decay,
                nesterov=nesterov,
                nu_dtype=nu_dtype,
            ),
        ),
    )


def normuon(
    learning_rate: Hyperparam,
    beta: Hyperparam = exact(0.95),
    b2: Hyperparam = exact(0.95),
    eps: Hyperparam = exact(1e-8),
    ns_steps: int = 5,
    *,
    nesterov: bool = False,
    axes: int = -1,
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
    adam_b1: Hyperparam = exact(0.9),
    adam_b2: Hyperparam = exact(0.999),
) -> optax.GradientTransformation:
    """Build NorMuon: Muon with each row divided by the root of its second moment.

        O = NS(mu)                                    see `orthogonalize`
        nu <- b2 * nu + (1 - b2) * mean(O^2)          one number a row
        O <- O / (sqrt(nu) + eps)
        O <- 0.2 * sqrt(rows * columns) / norm(O) * O
        params <- params - learning_rate * (O + weight_decay * params)

    Leaves that have not exactly two axes go by AdamW.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). So may be the other numbers, but for
        eps, which is no schedule.
      beta: decay rate of mu, in [0, 1).
      b2: decay rate of nu, in [0, 1).
      eps: added to the norm in NS and to the root of nu, also in AdamW, >= 0.
      ns_steps: the number of steps of NS, an integer >= 1.
      nesterov: whether to use `beta * mu + (1 - beta) * g` in place of mu.
      axes: the axis over which the mean is taken. In the paper a row is a neuron of the
        output; where it is a column, as in kernels of Flax, say -2.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu of AdamW is stored; takes what mu_dtype takes.
      adam_b1: b1 of AdamW.
      adam_b2: b2 of AdamW.

    Raises:
      ValueError: if a hyperparameter is out of range, ns_steps or axes is not an
        integer (to `optax.inject_hyperparams`, say `static_args=("ns_steps", "axes")`),
        or update() lacks params.

    Example: both rows get the same length.

      >>> import jax.numpy as jnp
      >>> tx, params = normuon(1e-3), jnp.zeros((2, 2))
      >>> grads = jnp.diag(jnp.array([2.0, -9.0]))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(*(f"{x:.6f}" for x in updates.diagonal()))  # 0.2 * sqrt(2)
      -0.000283 0.000283

    When: Rows that learn at one speed, for one number a row: its paper claims fewer
    steps than Muon's. As with Muon, embeddings and heads are better left to Adam.

    Reference: Li et al. 2025 (NorMuon, arXiv:2510.05491), Algorithm 1.

    Differs from the authors' code, which has Nesterov's momentum and returns to the
    norm of NS(mu).
    """
    return chain(
        "normuon",
        on_matrices(
            scale_by_moments(b1=_momentum(beta, nesterov), b2=None, mu_dtype=mu_dtype),
            precondition(),
            orthogonalize(QUINTIC, ns_steps, eps),
            scale_by_moments(
                b1=None, b2=check_decay("b2", b2), nu_dtype=mean_over(axes)
            ),
            precondition(eps=eps),
            set_rms(0.2),
            others=_adam(adam_b1, adam_b2, eps, mu_dtype, nu_dtype),
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def adamuon(
    learning_rate: Hyperparam,
    beta: Hyperparam = exact(0.95),
    eps: Hyperparam = exact(1e-8),
    ns_steps: int = 5,
    *,
    nesterov: bool = False,
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
    adam_b1: Hyperparam = exact(0.9),
    adam_b2: Hyperparam = exact(0.999),
) -> optax.GradientTransformation:
    """Build AdaMuon: Muon with elements divided by roots of their second moments.

        O = NS(sign(mu))                              see `orthogonalize`
        nu <- beta * nu + (1 - beta) * O^2
        O <- O / (sqrt(nu) + eps)
        O <- 0.2 * sqrt(rows * columns) / norm(O) * O
        params <- params - learning_rate * (O + weight_decay * params)

    Leaves that have not exactly two axes go by AdamW.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). So may be the other numbers, but for
        eps, which is no schedule.
      beta: decay rate of mu and nu, in [0, 1).
      eps: added to the norm in NS and to the root of nu, also in AdamW, >= 0.
      ns_steps: the number of steps of NS, an integer >= 1.
      nesterov: whether to use `beta * mu + (1 - beta) * g` in place of mu.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.
      adam_b1: b1 of AdamW.
      adam_b2: b2 of AdamW.

    Raises:
      ValueError: if a hyperparameter is out of range, ns_steps is not an integer (to
        `optax.inject_hyperparams`, say `static_args="ns_steps"`), or update() lacks
        params.

    Example: only the signs count in the first step.

      >>> import jax.numpy as jnp
      >>> tx, params = adamuon(1e-3), jnp.zeros((2, 2))
      >>> grads = jnp.array([[3.0, 1.0], [-1.0, 5.0]])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(*(f"{x:.6f}" for x in updates.ravel()))
      -0.000200 -0.000200 0.000200 -0.000200

    When: Adam's element-wise division after Muon, at the price of a second moment: its
    paper claims fewer steps than Adam's. As with Muon, embeddings and heads are better
    left to Adam.

    Reference: Si, Zhang & Shen 2025 (AdaMuon, arXiv:2507.11005v3), Algorithm 1.

    Differs from the authors' code, which has Nesterov's momentum by default.

    A mu stored in few bits may lose the sign of elements near 0: single steps may then
    differ by half a learning rate.
    """
    return chain(
        "adamuon",
        on_matrices(
            scale_by_moments(b1=_momentum(beta, nesterov), b2=None, mu_dtype=mu_dtype),
            precondition(),
            optax.scale_by_sign(),
            orthogonalize(QUINTIC, ns_steps, eps),
            scale_by_moments(b1=None, b2=check_decay("beta", beta), nu_dtype=nu_dtype),
            precondition(eps=eps),
            set_rms(0.2),
            others=_adam(adam_b1, adam_b2, eps, mu_dtype, nu_dtype),
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def _momentum(beta: Any, nesterov: bool) -> Accumulator:
    """Return the average m of rate beta, or one read as `beta * m + (1 - beta) * g`."""
    beta = check_decay("beta", beta)
    if not nesterov:
        return ema(beta)
    return lion_average(derived(lambda rate: rate**2, beta), beta)


def _adam(
    b1: Any, b2: Any, eps: Any, mu_dtype: Storage, nu_dtype: Storage
) -> optax.GradientTransformation:
    """Return Adam without its learning rate."""
    return optax.chain(
        scale_by_moments(
            b1=check_decay("adam_b1", b1),
            b2=check_decay("adam_b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps),
    )
