"""Adam with another way to divide its moments."""

import math

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_between, check_decay, exact
from adam_jax.moments.accumulators import ema
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct, running_max, temper
from adam_jax.stages.division import (
    atan2_precondition,
    precondition,
    rectified_precondition,
)
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import scale_by_friction
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def radam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    threshold: Hyperparam = exact(5.0),
    *,
    nesterov: bool = False,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build RAdam: momentum until nu has seen enough gradients, and Adam from then on.

        params <- params - learning_rate * r * (adam's update)   if rho >= threshold
        params <- params - learning_rate * mu_hat                if not

    For rho and r see `rectified_precondition`.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      threshold: the number of gradients, rho, from which nu is trusted; 4 in the paper.
      nesterov: whether the first moment looks one step ahead.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: steps 5 and 6; all gradients are 1. In the sixth step rho exceeds 5.

      >>> import jax.numpy as jnp
      >>> tx = radam(1e-3)
      >>> state, sizes = tx.init(jnp.float32(0)), []
      >>> for _ in range(6):
      ...     updates, state = tx.update(jnp.float32(1), state)
      ...     sizes.append(f"{updates:.6f}")
      >>> print(*sizes[4:])
      -0.001000 -0.000026

    When: Takes the place of a warm-up. With one, it is Adam.

    Reference: Liu et al. 2020, Algorithm 2.

    Differs from PyTorch, which adds eps to the root of nu before it corrects the bias.
    Differs from Optax as `adam` does.
    """
    return chain(
        "radam",
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        rectified_precondition(eps, eps_root, threshold),
        scale_by_lr(learning_rate),
    )


def padam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    partial: Hyperparam = exact(0.125),
    eps: Hyperparam = exact(1e-8),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Padam: AMSGrad that divides by a smaller power of the second moment.

        nu_max <- max(nu_max, nu)
        params <- params - learning_rate * mu / (sqrt(nu_max) + eps)^(2 * partial)

    Moments are not corrected. The smaller the power, the more steps depend on the scale
    of the gradients, so that learning rates near those of SGD fit, such as 0.1. The
    maximum is kept in float32, as in `amsgrad`.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      partial: the power of nu to divide by, in [0, 1/2]: 1/2 is AMSGrad, 0 momentum.
      eps: added to the root of nu, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1/2. AMSGrad, not corrected, would step by -0.00113.

      >>> import jax.numpy as jnp
      >>> tx = padam(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # 0.04 / 0.001249^(1/8)
      -0.000092

    When: Between SGD and Adam by one number: for images, on which its paper claims that
    Adam generalises less well. One more number to tune, and the rate is far larger than
    Adam's.

    Reference: Chen et al. 2018 (arXiv:1806.06763), Algorithm 1.

    Differs from the paper, as the authors' code does, in having an eps.
    Differs from the authors' code, which corrects the bias in the step size.
    """
    return chain(
        "padam",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        running_max(),
        temper(check_between("partial", partial, 0, 0.5), eps),
        precondition(eps=0.0),
        scale_by_lr(learning_rate),
    )


def adam_atan2(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    a: Hyperparam = exact(4 / math.pi),
    b: Hyperparam = exact(1.0),
    mu_dtype: Storage = None,
    *,
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Adam-atan2: Adam that divides by atan2, which needs no eps.

        update = a * atan2(mu_hat, b * sqrt(nu_hat))
        params <- params - learning_rate * (update + weight_decay * params)

    Its steps do not depend on the scale of the gradients, however small they are. (In
    float32, elements whose gradients stay below 3e-18 step by the sign of mu.)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      a: the factor, >= 0. By default, an update has size 1 if gradients are constant.
      b: the scale of Adam's updates below which atan2 is nearly linear, >= 0.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then -1/2.

      >>> import jax.numpy as jnp
      >>> tx, param = adam_atan2(1e-3), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")  # -1e-3 * 4 / pi * atan2(0.04 / 0.19, 0.7905)
      -0.000331

    When: No eps to choose: updates do not depend on the scale of the loss. Where eps is
    meant to shorten the steps of tiny gradients, it is no help: they are as long as all
    others.

    Reference: Everett et al. 2024 (arXiv:2407.05872).
    """
    return chain(
        "adam_atan2",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        atan2_precondition(a, b),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def diffgrad(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build diffGrad: Adam with shorter steps where the gradient stays as it was.

        xi = 1 / (1 + exp(-|g - g_before|))
        params <- params - learning_rate * xi * mu_hat / (sqrt(nu_hat + eps_root) + eps)

    xi lies between 1/2 and 1. At the first step, g_before is 0.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu and g_before are stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1/2. Adam's second update would be -0.000266.

      >>> import jax.numpy as jnp
      >>> tx = diffgrad(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # -0.000266 / (1 + exp(-1.5))
      -0.000218

    When: Shorter steps, down to half, where gradients hardly change: its paper claims
    better results on images. Changes are compared with 1, so where all gradients are
    small it only halves Adam's steps. One more buffer.

    Reference: Dubey et al. 2019 (arXiv:1909.11015), equations 3 to 10.

    Differs from the authors' code, which adds eps to the root of nu before it corrects
    the bias.
    """
    return chain(
        "diffgrad",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        scale_by_friction(mu_dtype),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )
