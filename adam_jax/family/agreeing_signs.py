"""AdamW that compares the signs of updates, gradients and parameters."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.storage import Storage
from adam_jax.stages.agreement import (
    add_cautious_decay,
    keep_agreeing,
    take_sign_of_gradient,
)
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def cautious_adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    weight_decay: Hyperparam = exact(1e-2),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build cautious AdamW: it steps only where the update agrees with the gradient.

        u = mu_hat / (sqrt(nu_hat + eps_root) + eps)
        agree = 1 where u * g > 0, else 0
        u <- u * agree * n / (sum(agree) + 1)
        params <- params - learning_rate * (u + weight_decay * params)

    The sum is over a leaf, and n is its number of elements.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: one element of two agrees, so the factor is 2 / 2.

      >>> import jax.numpy as jnp
      >>> tx, params = cautious_adamw(1e-3), jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for grads in ([1.0, 1.0], [1.0, -0.5]):
      ...     updates, state = tx.update(jnp.array(grads), state, params)
      >>> print(updates)
      [-0.001 -0.   ]

    When: A small change to AdamW, for which its paper claims fewer steps. Momentum no
    longer carries an element on against its gradient, so with small batches much of its
    smoothing of noise is lost.

    Reference: Liang et al. 2024 (arXiv:2411.16085), Algorithm 2.

    Differs from the authors' code, which divides by the mean of agree, 1e-3 or more.
    """
    return chain(
        "cautious_adamw",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        keep_agreeing(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def grams(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    weight_decay: Hyperparam = exact(1e-2),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Grams: AdamW whose updates have the signs of the gradients.

        u = sign(g) * |mu_hat| / (sqrt(nu_hat + eps_root) + eps)
        params <- params - learning_rate * (u + weight_decay * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then -1/2. AdamW's second update would be -0.000266.

      >>> import jax.numpy as jnp
      >>> tx, param = grams(1e-3), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")
      0.000266

    When: The gradient gives the direction, momentum only the size: its paper claims
    fewer steps than AdamW's. With small batches, noise goes straight into the signs.

    Reference: Cao et al. 2024 (arXiv:2412.17107), Algorithm 1.
    """
    return chain(
        "grams",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        take_sign_of_gradient(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def cautious_decay_adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    weight_decay: Hyperparam = exact(1e-2),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdamW with cautious decay: only of what the update, too, moves towards 0.

        u = mu_hat / (sqrt(nu_hat + eps_root) + eps)
        agree = 1 where u * params >= 0, else 0
        params <- params - learning_rate * (u + weight_decay * agree * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the first steps of two parameters; the second moves away from 0.

      >>> import jax.numpy as jnp
      >>> tx = cautious_decay_adamw(1e-3, weight_decay=0.1)
      >>> grads, params = jnp.array([7.0, -7.0]), jnp.array([10.0, 10.0])
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates)
      [-0.002  0.001]

    When: Decay that does not oppose the update: its paper claims a lower loss at the
    rate and decay of AdamW. Weights decay less, so it is no help where AdamW needs more
    decay.

    Reference: Chen et al. 2025 (arXiv:2510.12402), Algorithm 1.

    Differs from the paper, as `adamw` does: eps_root may be given.
    """
    return chain(
        "cautious_decay_adamw",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_cautious_decay(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
