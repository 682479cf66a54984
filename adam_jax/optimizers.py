"""Adam and its relatives, each body one chain: the algorithm box of its paper.

Names, positional order and defaults are Optax's, so that `adam_jax.adam` can stand
where `optax.adam` stood; what we add is keyword-only. The arguments, wherever they
appear:

  learning_rate: the step size, >= 0. As any hyperparameter: a float, a 0-d array or
    a schedule, a function of the step count (0 at the first step).
  b1, b2: decay rates of the first and the second moment, in [0, 1).
  eps: added to the root of the second moment, in units of the gradient.
  eps_root: added inside the root, in units of the gradient squared.
  mu_dtype, nu_dtype: how the moments are stored: a dtype, a `Format` or the name of
    one ("float32", "bfloat16", "8bit"); None: the parameters' dtype, float32 at least.
  weight_decay: the decay is `learning_rate * weight_decay * params` a step.
  mask: which parameters decay: a pytree of booleans, a prefix of params, or a
    function of params that returns one. (`optax.inject_hyperparams` takes a function
    for a schedule, unless it is given `static_args="mask"`.)
  nesterov: let the first moment look one step ahead.

Every optimizer returns a `GradientTransformation`; its `update` needs `params` where
weights decay, and emits updates in the parameters' dtype where it is given them.

Raises, at construction: ValueError for a hyperparameter out of its range. At the
first trace: TypeError for integer or boolean leaves, AssertionError (chex) for
gradients whose structure or shapes are not the parameters'.
"""

from collections.abc import Callable

import optax

from adam_jax.accumulators import ema
from adam_jax.ancestors import adagrad, rmsprop, sgd
from adam_jax.followups import (
    adabelief,
    adamax,
    adamaxw,
    amsgrad,
    lion,
    radam,
    yogi,
)
from adam_jax.formats import Storage
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.transforms import bias_correct, scale_by_moments
from adam_jax.updates import Mask, add_decayed_weights, precondition, scale_by_lr


def adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = False,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam.

        mu <- b1 * mu + (1 - b1) * g;    mu_hat = mu / (1 - b1^t)
        nu <- b2 * nu + (1 - b2) * g^2;  nu_hat = nu / (1 - b2^t)
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat) + eps)

    Example: two steps, the second against a gradient of the other sign.

      >>> import jax.numpy as jnp
      >>> tx = adam(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1, -2):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")
      0.000366

    Reference: Kingma & Ba 2014, Algorithm 1.
    """
    return optax.chain(
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=b2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )


def simplified_adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam without bias correction: `mu / (sqrt(nu) + eps)`.

    Its first step is (1 - b1) / sqrt(1 - b2) = 3.16 times the learning rate at the
    defaults.
    """
    return optax.chain(
        scale_by_moments(b1=b1, b2=b2, mu_dtype=mu_dtype, nu_dtype=nu_dtype),
        precondition(eps=eps),
        scale_by_lr(learning_rate),
    )


def adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-4),
    mask: Mask = None,
    *,
    nesterov: bool = False,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam with weight decay decoupled from the gradient.

        params <- params - learning_rate * (adam's update + weight_decay * params)

    For Adam with L2 regularisation, which is not AdamW, put
    `add_decayed_weights(weight_decay)` before `adam(...)` in a chain.

    Reference: Loshchilov & Hutter 2017, Algorithm 2.

    Differs from PyTorch in its default weight decay, 1e-4 and not 1e-2; from the
    paper, as PyTorch and Optax do, in multiplying the decay by the learning rate.
    """
    return optax.chain(
        scale_by_moments(
            b1=ema(check_decay("b1", b1), nesterov=nesterov),
            b2=b2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def nadam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = True,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Adam whose first moment looks one step ahead: `adam(..., nesterov=True)`.

        mu_hat = b1 * mu / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t)

    Reference: Dozat 2016, Algorithm 2.

    Differs from PyTorch, where b1 follows a schedule (momentum_decay).
    """
    return adam(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nesterov=nesterov,
        nu_dtype=nu_dtype,
    )


def nadamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-4),
    mask: Mask = None,
    *,
    nesterov: bool = True,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """AdamW whose first moment looks ahead, as in `nadam`.

    Reference: Dozat 2016, Algorithm 2; Loshchilov & Hutter 2017, Algorithm 2.
    """
    return adamw(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay,
        mask,
        nesterov=nesterov,
        nu_dtype=nu_dtype,
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "simplified_adam": simplified_adam,
    "adamw": adamw,
    "nadam": nadam,
    "nadamw": nadamw,
    "amsgrad": amsgrad,
    "adamax": adamax,
    "adamaxw": adamaxw,
    "adabelief": adabelief,
    "radam": radam,
    "yogi": yogi,
    "lion": lion,
}
"""Every optimizer by name: what the command line offers and the tests run over."""
