"""Adam with another way to divide its moments."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.accumulators import ema
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import rectified_precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import scale_by_lr


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
