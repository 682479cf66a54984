"""Optimizers that step by the sign of an average."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.storage import Storage, as_format
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def signum(
    learning_rate: Hyperparam,
    beta: Hyperparam = exact(0.9),
    accumulator_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Signum: SGD that steps by the sign of an average of gradients.

        mu <- beta * mu + (1 - beta) * g
        params <- params - learning_rate * sign(mu)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      beta: decay rate of the average, in [0, 1); with 0 this is signSGD.
      accumulator_dtype: how mu is stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the sign is still that of the first gradient.

      >>> import jax.numpy as jnp
      >>> tx = signum(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.4f}")
      -0.0010

    When: Every element moves at one speed, for half of Adam's state. Noise near a
    minimum does not shrink its steps, so the rate has to decay.

    Reference: Bernstein et al. 2018 (arXiv:1802.04434), Algorithm 2, on one worker.

    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    accumulator_dtype = as_format("accumulator_dtype", accumulator_dtype)
    return chain(
        "signum",
        scale_by_moments(
            b1=check_decay("beta", beta), b2=None, mu_dtype=accumulator_dtype
        ),
        precondition(),
        optax.scale_by_sign(),
        scale_by_lr(learning_rate),
    )


def tiger(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.965),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-2),
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Build Tiger: Signum with weight decay decoupled from the gradient.

        mu <- b1 * mu + (1 - b1) * g
        params <- params - learning_rate * (sign(mu) + weight_decay * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the second step of a parameter with the value 10.

      >>> import jax.numpy as jnp
      >>> tx, param = tiger(1e-3), jnp.float32(10)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.5):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.4f}")  # -1e-3 * (1 + 0.01 * 10)
      -0.0011

    When: Lion with one decay rate fewer to choose, made for gradient accumulation in
    little memory. As with Signum, the rate has to decay.

    Reference: Su 2023 (the blog post that introduces Tiger, kexue.fm/archives/9512).

    Differs from the author's code, which scales the learning rate of each leaf by its
    root mean square, and shrinks decay rates at the start.
    """
    return chain(
        "tiger",
        scale_by_moments(b1=check_decay("b1", b1), b2=None, mu_dtype=mu_dtype),
        precondition(),
        optax.scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
