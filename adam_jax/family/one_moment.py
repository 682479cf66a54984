"""Optimizers that keep one moment, or none: SGD, AdaGrad, RMSProp, Lion."""

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, check_non_negative, exact
from adam_jax.moments.accumulators import check_initial, ema, lion_average, total
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct, center
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import scale_by_trace
from adam_jax.stages.updates import (
    Mask,
    add_decayed_weights,
    cast_to_params,
    scale_by_lr,
)


def sgd(
    learning_rate: Hyperparam,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    accumulator_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build SGD, with heavy-ball momentum if `momentum` is given.

        trace <- momentum * trace + g
        params <- params - learning_rate * trace

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      momentum: decay rate of the trace, in [0, 1); None means no trace.
      nesterov: whether to step by `momentum * trace + g` instead.
      accumulator_dtype: how the trace is stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the second of two steps with a gradient of 1.

      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1, momentum=0.9)
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state)
      >>> print(f"{updates:.2f}")
      -0.19

    When: Least memory; with momentum and a tuned rate a good choice for
    convolutional networks on images. Poor where gradients differ by orders of
    magnitude, as in transformers.

    Reference: Robbins & Monro 1951; Sutskever et al. 2013 for nesterov.

    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    if momentum is not None:
        momentum = check_decay("momentum", momentum)
    return chain(
        "sgd",
        *(
            [scale_by_trace(momentum, nesterov, accumulator_dtype)]
            if momentum is not None
            else []
        ),
        scale_by_lr(learning_rate),
    )


def adagrad(
    learning_rate: Hyperparam,
    initial_accumulator_value: Hyperparam = exact(0.1),
    eps: Hyperparam = exact(1e-7),
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaGrad: divide by the root of the sum of all squared gradients.

        nu <- nu + g^2
        params <- params - learning_rate * g / sqrt(nu + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      initial_accumulator_value: nu before the first gradient, >= 0; not a schedule.
      eps: added inside the root, >= 0, in units of the gradient squared.
      nu_dtype: how nu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the first step is 2 / sqrt(0.1 + 4) learning rates.

      >>> import jax.numpy as jnp
      >>> tx = adagrad(0.1)
      >>> updates, _ = tx.update(jnp.float32(2), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.5f}")
      -0.09877

    When: Convex problems and sparse features. Its steps only ever shrink, so long
    training of deep networks stalls.

    Reference: Duchi, Hazan & Singer 2011, Figure 1.

    Differs from PyTorch, which starts nu at 0 and adds eps outside the root.
    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    initial = check_initial("initial_accumulator_value", initial_accumulator_value)
    return chain(
        "adagrad",
        scale_by_moments(b1=None, b2=total(initial), nu_dtype=nu_dtype),
        precondition(eps=0.0, eps_root=check_non_negative("eps", eps)),
        scale_by_lr(learning_rate),
    )


def rmsprop(
    learning_rate: Hyperparam,
    decay: Hyperparam = exact(0.9),
    eps: Hyperparam = exact(1e-8),
    initial_scale: Hyperparam = exact(0.0),
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyperparam | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build RMSProp: divide by the root of an average of squared gradients.

        nu <- decay * nu + (1 - decay) * g^2
        params <- params - learning_rate * g / sqrt(nu + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      decay: decay rate of nu, in [0, 1).
      eps: added to nu inside the root, or to the root itself, >= 0.
      initial_scale: nu before the first gradient, >= 0; not a schedule.
      eps_in_sqrt: whether eps is added inside the root; if not, to the root itself.
      centered: whether to divide by the standard deviation, sqrt(nu - mu^2).
      momentum: decay rate of a trace of the scaled updates, in [0, 1); None means no
        trace.
      nesterov: whether that trace looks ahead.
      bias_correction: whether to correct nu (and mu, if centered) as Adam does.
      mu_dtype: how mu, if centered, and the trace are stored: a dtype, a `Format` or
        the name of one ("float32", "bfloat16", "8bit"). None means the parameters'
        dtype, float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the first step is 1 / sqrt(1 - decay) learning rates.

      >>> import jax.numpy as jnp
      >>> tx = rmsprop(1e-3)
      >>> updates, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.003162

    When: Moving targets, as in reinforcement learning. Without correction its first
    steps are large.

    Reference: Tieleman & Hinton 2012, lecture 6e; centered: Graves 2013.

    Differs from PyTorch, whose defaults are decay 0.99 and `eps_in_sqrt=False`, and
    which applies the learning rate after the momentum.
    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    decay, eps = check_decay("decay", decay), check_non_negative("eps", eps)
    initial = check_initial("initial_scale", initial_scale)
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    if momentum is not None:
        momentum = check_decay("momentum", momentum)
    return chain(
        "rmsprop",
        scale_by_moments(
            b1=ema(decay) if centered else None,
            b2=ema(decay, initial=initial),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        *([bias_correct()] if bias_correction else []),
        *([center()] if centered else []),
        precondition(eps=outside, eps_root=inside),
        scale_by_lr(learning_rate),
        *(
            [
                scale_by_trace(momentum, nesterov, mu_dtype, argument="mu_dtype"),
                cast_to_params(),
            ]
            if momentum is not None
            else []
        ),
    )


def lion(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.99),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-3),
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Build Lion: step by the sign of a momentum.

        update = sign(b1 * mu + (1 - b1) * g);  mu <- b2 * mu + (1 - b2) * g
        params <- params - learning_rate * (update + weight_decay * params)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the average whose sign is taken, in [0, 1).
      b2: decay rate of the average that is kept, in [0, 1).
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then -0.05. The second one does not yet flip the sign.

      >>> import jax.numpy as jnp
      >>> tx, param = lion(1e-3, weight_decay=0.0), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, -0.05):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.4f}")  # 0.9 * 0.01 - 0.1 * 0.05 > 0
      -0.0010

    When: Adam's results on large models at half its state, with a rate 3 to 10 times
    smaller and a decay as much larger. Weaker with small batches.

    Reference: Chen et al. 2023, Algorithm 2.

    Differs from Optax in the dtypes of moments and hyperparameters, as `adam` does.
    """
    return chain(
        "lion",
        scale_by_moments(b1=lion_average(b1, b2), b2=None, mu_dtype=mu_dtype),
        precondition(),
        optax.scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )
