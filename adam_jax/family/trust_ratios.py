"""Optimizers whose steps are as long as the leaf that they change."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import scale_by_trace
from adam_jax.stages.leaves import scale_by_trust_ratio
from adam_jax.stages.updates import (
    Mask,
    add_decayed_weights,
    cast_to_params,
    scale_by_lr,
)


def lamb(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-6),
    eps_root: Hyperparam = exact(0.0),
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build LAMB: AdamW with steps scaled to the norm of each leaf's parameters.

        update = adamw's update
        params <- params - learning_rate * ||params|| / ||update|| * update

    Norms are over a leaf. Where one of them is 0, so that there is no ratio, the step
    is AdamW's.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the first step is the learning rate times the norm.

      >>> import jax.numpy as jnp
      >>> tx, params = lamb(0.1), jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([7.0, 0.0]), tx.init(params), params)
      >>> print(updates[0])
      -0.5

    When: Very large batches, such as the tens of thousands with which its paper trains
    BERT. At small ones there is little reason to prefer it to AdamW.

    Reference: You et al. 2020 (arXiv:1904.00962), Algorithm 2; phi is the identity.

    Differs from timm's, which clips gradients to a global norm of 1 first, and takes
    AdamW's step where nothing decays; its default weight decay is 1e-2.
    Differs from Optax as `adam` does, and norms are taken in float32 or wider.
    """
    return chain(
        "lamb",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_lr(learning_rate),
    )


def lars(
    learning_rate: Hyperparam,
    weight_decay: Hyperparam = exact(0.0),
    weight_decay_mask: Mask = True,
    trust_coefficient: Hyperparam = exact(0.001),
    eps: Hyperparam = exact(0.0),
    trust_ratio_mask: Mask = True,
    momentum: Hyperparam = exact(0.9),
    nesterov: bool = False,
    *,
    mu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build LARS: momentum of gradients, scaled to the norm of each leaf's parameters.

        g <- g + weight_decay * params
        g <- g * trust_coefficient * ||params|| / (||g|| + eps)
        trace <- momentum * trace + learning_rate * g
        params <- params - trace

    Norms are over a leaf. Where one of them is 0, g stays as it is.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      weight_decay: >= 0: L2 regularisation, added to the gradient.
      weight_decay_mask: which parameters decay: a pytree of booleans, a prefix of
        params, or a function of params that returns one. (`optax.inject_hyperparams`
        takes a function to be a schedule unless its name is in `static_args`.)
      trust_coefficient: the factor of the trust ratio, >= 0.
      eps: added to the norm of the gradient, >= 0, in units of the gradient.
      trust_ratio_mask: which gradients are scaled; takes what weight_decay_mask takes.
      momentum: decay rate of the trace, in [0, 1).
      nesterov: whether the trace looks ahead.
      mu_dtype: how the trace is stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the first step is learning rate times trust coefficient times norm.

      >>> import jax.numpy as jnp
      >>> tx, params = lars(1.0), jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([7.0, 0.0]), tx.init(params), params)
      >>> print(f"{updates[0]:.4f}")
      -0.0050

    When: Very large batches of images: its paper trains ResNet-50 with 32,000. At small
    ones there is little reason to prefer it to SGD.

    Reference: You, Gitman & Ginsburg 2017 (arXiv:1708.03888), Algorithm 1.

    Differs from the paper, as Optax does: the norm is that of the decayed gradient.
    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does, and
    norms are taken in float32 or wider.
    """
    return chain(
        "lars",
        add_decayed_weights(weight_decay, weight_decay_mask),
        optax.masked(scale_by_trust_ratio(trust_coefficient, eps), trust_ratio_mask),
        scale_by_lr(learning_rate),
        scale_by_trace(
            check_decay("momentum", momentum), nesterov, mu_dtype, argument="mu_dtype"
        ),
        cast_to_params(),
    )
