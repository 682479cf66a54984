"""Heirs of AdaGrad: ADADELTA and MADGRAD."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, check_non_negative, exact
from adam_jax.moments.growing import growing_total
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import temper
from adam_jax.stages.division import precondition
from adam_jax.stages.dual_averaging import average_from_start
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import scale_by_past_updates
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def adadelta(
    learning_rate: Hyperparam | None = None,
    rho: Hyperparam = exact(0.9),
    eps: Hyperparam = exact(1e-6),
    weight_decay: Hyperparam = exact(0.0),
    weight_decay_mask: Mask = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build ADADELTA: RMSProp whose step size is the root mean square of past steps.

        g <- g + weight_decay * params
        nu <- rho * nu + (1 - rho) * g^2
        update = sqrt(average + eps) / sqrt(nu + eps) * g
        average <- rho * average + (1 - rho) * update^2
        params <- params - learning_rate * update

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
        It is 1 in the paper. None emits the update itself, which climbs, as in Optax.
      rho: decay rate of both averages, in [0, 1).
      eps: added inside both roots, >= 0: in units of the gradient squared, and of the
        parameters squared.
      weight_decay: >= 0: L2 regularisation, added to the gradient.
      weight_decay_mask: which parameters decay: a pytree of booleans, a prefix of
        params, or a function of params that returns one. (`optax.inject_hyperparams`
        takes a function to be a schedule unless its name is in `static_args`.)
      nu_dtype: how both averages are stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then -1/2.

      >>> import jax.numpy as jnp
      >>> tx, param = adadelta(1.0), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")  # sqrt(2e-6) / sqrt(0.115) / 2
      0.002085

    When: No learning rate to choose. Its first steps are as short as eps makes them, so
    it starts far more slowly than a tuned Adam.

    Reference: Zeiler 2012 (arXiv:1212.5701), Algorithm 1.

    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    return chain(
        "adadelta",
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_moments(b1=None, b2=check_decay("rho", rho), nu_dtype=nu_dtype),
        precondition(eps=0.0, eps_root=check_non_negative("eps", eps)),
        scale_by_past_updates(rho, eps, nu_dtype),
        scale_by_lr(learning_rate),
    )


def madgrad(
    learning_rate: Hyperparam,
    momentum: Hyperparam = exact(0.9),
    weight_decay: Hyperparam = exact(0.0),
    eps: Hyperparam = exact(1e-6),
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build MADGRAD: sums of gradients, subtracted from the initial parameters.

        g <- g + weight_decay * params;  weight = (learning_rate + eps) * sqrt(t)
        mu <- mu + weight * g
        nu <- nu + weight * g^2
        goal = start - mu / (cbrt(nu) + eps)
        params <- momentum * params + (1 - momentum) * goal

    Its state has a copy of the parameters, as they were at `init`.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      momentum: the weight of the parameters in the average, in [0, 1).
      weight_decay: >= 0: L2 regularisation, added to the gradient. The paper advises
        against it, or a small one.
      eps: added to the cube root of nu and to the learning rate, >= 0.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then -1/2.

      >>> import jax.numpy as jnp
      >>> tx, param = madgrad(1e-2, eps=0.0), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")  # 0.1 * (0.01 - 0.01 / sqrt(2)) / cbrt(0.0135)
      -0.001229

    When: Its paper claims results as good as SGD's on images and as Adam's on text.
    Needs a rate of its own and does not go well with decay. Keeps the initial
    parameters.

    Reference: Defazio & Jelassi 2021 (arXiv:2101.11075), Algorithm 1.

    Differs from the paper, as Optax does: eps is added to the learning rate, too. The
    authors' code adds it only where the rate is not 0: here a rate of 0 moves params.
    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    return chain(
        "madgrad",
        add_decayed_weights(weight_decay),
        scale_by_moments(
            b1=growing_total(learning_rate, eps),
            b2=growing_total(learning_rate, eps),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        temper(1 / 3),
        precondition(eps=eps),
        average_from_start(momentum),
        scale_by_lr(1.0),
    )
