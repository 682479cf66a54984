"""Adam whose lines come in another order."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, check_non_negative, exact
from adam_jax.moments.accumulators import ema, residual_variance
from adam_jax.moments.storage import Storage
from adam_jax.moments.variations import average_from_first, delayed, mixture
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import floor_nu, precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import hold
from adam_jax.stages.updates import (
    Mask,
    add_decayed_weights,
    clip_elements,
    scale_by_lr,
)


def _fourth_root(count: Any) -> jax.Array:
    return jnp.asarray(count, jnp.result_type(float)) ** 0.25


def laprop(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build LaProp: Adam that divides each gradient before it averages, not after.

        n <- g / (sqrt(nu_hat + eps_root) + eps)
        mu <- b1 * mu + (1 - b1) * n
        params <- params - learning_rate * mu_hat

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then 0. Adam's second update would be -0.000670.

      >>> import jax.numpy as jnp
      >>> tx = laprop(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 0.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # -1e-3 * 0.09 / 0.19
      -0.000474

    When: A b2 that is small beside b1: its paper claims that it stays stable there,
    where Adam diverges. At the usual decay rates it is close to Adam.

    Reference: Ziyin, Wang & Ueda 2020 (arXiv:2002.04839), Algorithm 1.

    Differs from the authors' code, where eps stands inside the root.
    """
    return chain(
        "laprop",
        scale_by_moments(b1=None, b2=check_decay("b2", b2), nu_dtype=nu_dtype),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_moments(b1=check_decay("b1", b1), b2=None, mu_dtype=mu_dtype),
        bias_correct(),
        scale_by_lr(learning_rate),
    )


def adopt(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.9999),
    eps: Hyperparam = exact(1e-6),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Hyperparam = _fourth_root,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build ADOPT: Adam that divides by the nu of the step before, and then averages.

        c <- clip(g / max(sqrt(nu), eps), -clip_value_fn(count), clip_value_fn(count))
        mu <- b1 * mu + (1 - b1) * c
        params <- params - learning_rate * mu
        nu <- b2 * nu + (1 - b2) * g^2

    The first step only sets nu to g^2. Nothing is corrected for a bias.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: the least divisor, >= 0, in units of the gradient.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nesterov: whether the first moment looks one step ahead.
      use_clipping: whether to clip what is averaged.
      clip_value_fn: the largest size of an element of c, >= 0: a function of the step
        count, 0 at the first step, or a number.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then 4. The second is clipped to 1.

      >>> import jax.numpy as jnp
      >>> tx = adopt(1e-3)
      >>> state, sizes = tx.init(jnp.float32(0)), []
      >>> for grad in (1.0, 4.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      ...     sizes.append(f"{updates:.6f}")
      >>> print(*sizes)
      -0.000000 -0.000100

    When: Its paper proves convergence for any b2; Adam needs one that is large enough.
    If Adam converges there is little to gain, and the first step moves nothing.

    Reference: Taniguchi et al. 2024 (arXiv:2411.02853), Algorithm 2.

    Differs from Optax as `adam` does.
    """
    return chain(
        "adopt",
        scale_by_moments(
            b1=None,
            b2=delayed(average_from_first(check_decay("b2", b2)), first=math.inf),
            nu_dtype=nu_dtype,
        ),
        floor_nu(eps),
        precondition(eps=0.0),
        *(
            [clip_elements(check_non_negative("clip_value_fn", clip_value_fn))]
            if use_clipping
            else []
        ),
        hold("adopt", ema(check_decay("b1", b1), nesterov=nesterov), dtype=mu_dtype),
        scale_by_lr(learning_rate),
    )


def acprop(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-16),
    eps_root: Hyperparam = exact(1e-16),
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build ACProp: AdaBelief that divides the gradient by the nu of the step before.

        params <- params - learning_rate * (g / (sqrt(nu_hat) + eps)
                                            + weight_decay * params)
        mu <- b1 * mu + (1 - b1) * g
        nu <- b2 * nu + (1 - b2) * (g - mu)^2 + eps_root

    The first step divides by 1.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added to nu in each step, >= 0, in units of the gradient squared.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then 1. The first nu is (b1 * 1)^2.

      >>> import jax.numpy as jnp
      >>> tx, param = acprop(1e-3), jnp.float32(0)
      >>> state, sizes = tx.init(param), []
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state, param)
      ...     sizes.append(f"{updates:.6f}")
      >>> print(*sizes)
      -0.001000 -0.001111

    When: No gradient shortens its own step: its paper proves convergence under weaker
    conditions than Adam's, and claims better results on images and GANs. For the same
    reason a sudden large gradient makes a step that nothing bounds.

    Reference: Zhuang et al. 2021 (arXiv:2110.05454), Algorithm 2. By what the first
    step divides, the paper leaves open.

    Differs from Optax, whose nu averages (g - mu)^2 with the mu of the step before: the
    paper and Optax's documentation have the new mu. Differs from Optax as `adam` does.
    """
    return chain(
        "acprop",
        scale_by_moments(
            b1=mixture(ema(check_decay("b1", b1)), moment=0.0),
            b2=delayed(residual_variance(check_decay("b2", b2), eps_root), first=1.0),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
