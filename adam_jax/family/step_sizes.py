"""Optimizers that find a step size of their own: SWATS, Prodigy."""

from typing import Any

import optax
from jax.typing import ArrayLike

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    check_decay,
    check_non_negative,
    exact,
    shown,
)
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.distance import scale_by_distance
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.switching import switch_to_sgd
from adam_jax.stages.updates import scale_by_lr


def swats(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-9),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    tolerance: Hyperparam = exact(1e-9),
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build SWATS: Adam that becomes SGD once it knows SGD's step size.

        Adam: params <- params - learning_rate * u,  u = mu_hat / (sqrt(nu_hat) + eps)
              rate <- corrected average of <u, u> / <u, g>; SGD once it has settled
        SGD:  trace <- b1 * trace + g
              params <- params - learning_rate * rate * (1 - b1) * trace

    All leaves switch together, and never back. `switch_to_sgd` says when.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
        It scales both phases.
      b1: decay rate of the first moment, and of SGD's trace, in [0, 1).
      b2: decay rate of the second moment and of SGD's rate, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu and the trace are stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.
      tolerance: how near `learning_rate * <u, u> / <u, g>` must come to its average,
        >= 0.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients of 2. Adam's steps are 0.1; SGD's momentum starts at 0.

      >>> import jax.numpy as jnp
      >>> tx = swats(0.1, tolerance=1e-3)
      >>> state, sizes = tx.init(jnp.float32(0)), []
      >>> for _ in range(4):
      ...     updates, state = tx.update(jnp.float32(2), state)
      ...     sizes.append(f"{updates:.3f}")
      >>> print(*sizes)
      -0.100 -0.100 -0.010 -0.019

    When: Adam's start and SGD's end, for which its paper claims better generalisation
    on images. When the switch comes depends on the noise. No help where SGD does
    poorly.

    Reference: Keskar & Socher 2017 (arXiv:1712.07628), Algorithm 1.

    Differs from the paper: its rate includes the learning rate, a constant there, and
    its eps is added to the root that is not corrected. A rate that is not positive is
    not taken.
    """
    return chain(
        "swats",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        switch_to_sgd(learning_rate, b1, eps, eps_root, tolerance, mu_dtype),
        scale_by_lr(learning_rate),
    )


def prodigy(
    learning_rate: Hyperparam = exact(1.0),
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.999),
    beta3: Hyperparam | None = None,
    eps: Hyperparam = exact(1e-8),
    estim_lr0: ArrayLike = exact(1e-6),
    estim_lr_coef: Hyperparam = exact(1.0),
    weight_decay: Hyperparam = exact(0.0),
    safeguard_warmup: bool = False,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Prodigy: AdamW whose step size is an estimated distance to the solution.

        params <- params - d * learning_rate * sqrt(1 - b2^t) / (1 - b1^t)
                  * (mu / (sqrt(nu) + d * eps) + weight_decay * params)

    mu and nu are those of d g. For the estimate d, which only grows, see
    `scale_by_distance`.

    Args:
      learning_rate: by which d is multiplied, >= 0: a float, a 0-d array or a schedule
        (a function of the step count, 0 at the first step). 1 is usual. The other
        numbers, but for estim_lr0, may be any of these.
      betas: the decay rates of the first and of the second moment, in [0, 1).
      beta3: the decay rate of the sums from which d is estimated, in [0, 1); None means
        the root of the second of betas.
      eps: added to the root of nu, times d, >= 0, in units of the gradient.
      estim_lr0: the first estimate, > 0, in units of the parameters; rather too small
        than too large. Not a schedule.
      estim_lr_coef: by which estimates are multiplied, >= 0.
      weight_decay: >= 0. Each step subtracts this much of the parameters, times d, the
        learning rate and the correction.
      safeguard_warmup: whether gradients weigh in the estimate without the learning
        rate, as a long warmup requires.
      mu_dtype: how mu and the sum of gradients are stored: a dtype, a `Format` or the
        name of one ("float32", "bfloat16", "8bit"). None means the parameters' dtype,
        float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the minimum of (x - 3)^2, from 0, without a learning rate.

      >>> import jax.numpy as jnp
      >>> tx, x = prodigy(), jnp.float32(0)
      >>> state = tx.init(x)
      >>> for _ in range(200):
      ...     updates, state = tx.update(2 * (x - 3), state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> print(f"{x:.1f}")
      3.0

    When: No learning rate to find: leave it at 1, or at a schedule from 1 to 0. Two
    more buffers. The estimate never falls, and short runs may end before it has grown.

    Reference: Mishchenko & Defazio 2023 (arXiv:2306.06101), Algorithm 4.

    Differs from the authors' code, which by default corrects no bias. For that, let
    learning_rate be (1 - b1^t) / sqrt(1 - b2^t), where t is the step count plus 1. The
    first steps are then several times as long, and d grows sooner.
    Differs from Optax as `adam` does.
    """
    b1, b2 = _pair(betas)
    if beta3 is not None:
        beta3 = check_decay("beta3", beta3)
    return chain(
        "prodigy",
        scale_by_distance(
            learning_rate,
            b1,
            b2,
            beta3,
            eps,
            check_non_negative("estim_lr0", estim_lr0),
            check_non_negative("estim_lr_coef", estim_lr_coef),
            weight_decay,
            safeguard_warmup=safeguard_warmup,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        scale_by_lr(learning_rate),
    )


def _pair(betas: Any) -> list[Any]:
    """Return the two decay rates, checked."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(
            "betas must be a pair of decay rates, as in betas=(0.9, 0.999), got "
            f"{shown(betas)}."
        )
    return [check_decay("betas", beta) for beta in betas]
