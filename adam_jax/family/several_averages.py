"""Adam, or momentum, with several averages of gradients."""

from typing import Any

import jax.numpy as jnp
import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    derived,
    exact,
    shown,
)
from adam_jax.moments.accumulators import trace
from adam_jax.moments.storage import Storage
from adam_jax.moments.variations import alternating, difference
from adam_jax.stages.branching import add_branches, take_gradients
from adam_jax.stages.correction import bias_correct, running_max
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.updates import Mask, add_decayed_weights, scale_by_lr


def adan(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.98),
    b2: Hyperparam = exact(0.92),
    b3: Hyperparam = exact(0.99),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(1e-8),
    weight_decay: Hyperparam = exact(0.0),
    mask: Mask = None,
    *,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build Adan: AdamW that also averages how much gradients change.

        d <- g - (g of the step before)
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * d
        nu <- b3 * nu + (1 - b3) * (g + b2 * d)^2
        params <- params - learning_rate * (
            (m_hat + b2 * v_hat) / (sqrt(nu_hat + eps_root) + eps)
            + weight_decay * params)

    At the first step d is 0.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the average of gradients, in [0, 1).
      b2: decay rate of the average of their changes, in [0, 1).
      b3: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      weight_decay: >= 0. Each step subtracts `learning_rate * weight_decay * params`.
      mask: which parameters decay: a pytree of booleans, a prefix of params, or a
        function of params that returns one. (`optax.inject_hyperparams` takes a
        function to be a schedule unless you pass it `static_args="mask"`.)
      mu_dtype: how m, v and the last gradient are stored: a dtype, a `Format` or the
        name of one ("float32", "bfloat16", "8bit"). None means the parameters' dtype,
        float32 or wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: gradients 1, then 2. Their change, 1, has the average 1 / 1.92.

      >>> import jax.numpy as jnp
      >>> tx, param = adan(1e-3), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for grad in (1.0, 2.0):
      ...     updates, state = tx.update(jnp.float32(grad), state, param)
      >>> print(f"{updates:.6f}")
      -0.000907

    When: Its paper claims fewer steps at large rates and batches, in vision above all.
    Two more buffers than Adam's and three decay rates to tune.

    Reference: Xie et al. 2022 (arXiv:2208.06677), Algorithm 1, whose betas are 1 minus
    ours.

    Differs from the paper, which divides by 1 + learning_rate * weight_decay to decay.
    Differs from the authors' code, whose eps_root is 0: 1e-8 shortens the steps where
    gradients are about 1e-4 or less.
    Differs from Optax in the factor of d and v_hat, 1 - b2 there, and as `adam` does.
    """
    return chain(
        "adan",
        scale_by_moments(difference(), None, mu_dtype=mu_dtype),
        add_branches(
            (
                1.0,
                optax.chain(
                    take_gradients(),
                    scale_by_moments(check_decay("b1", b1), None, mu_dtype=mu_dtype),
                    bias_correct(),
                ),
            ),
            (
                check_decay("b2", b2),
                optax.chain(
                    precondition(),
                    scale_by_moments(check_decay("b2", b2), None, mu_dtype=mu_dtype),
                    bias_correct(),
                ),
            ),
            (
                None,
                optax.chain(
                    add_branches(
                        (1.0, take_gradients()), (check_decay("b2", b2), precondition())
                    ),
                    scale_by_moments(None, check_decay("b3", b3), nu_dtype=nu_dtype),
                    bias_correct(),
                ),
            ),
        ),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_lr(learning_rate),
    )


def adapnm(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    b0: Hyperparam = exact(1.0),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build AdaPNM: AMSGrad whose mu is one average of gradients minus another.

        m_t <- b1^2 * m_(t-2) + (1 - b1^2) * g
        mu <- (1 + b0) * m_t - b0 * m_(t-1)
        nu_max <- max(nu_max, nu)
        params <- params - learning_rate / sqrt((1 + b0)^2 + b0^2) * (
            mu_hat / (sqrt(nu_max_hat + eps_root) + eps))

    nu is corrected after the maximum was taken.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b0: the factor of the average that is subtracted, >= 0.
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how both averages are stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.
      nu_dtype: how nu is stored; takes what mu_dtype takes.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: gradients 1, then -1. The two averages are 0.19 and -0.19.

      >>> import jax.numpy as jnp
      >>> tx = adapnm(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, -1.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.6f}")  # 1e-3 * (2 * 0.19 + 0.19) / 0.19 / sqrt(5)
      0.001342

    When: Amplifies the noise of gradients on purpose: its paper claims flatter minima
    on images. Early progress is slower, and noise that is large already, as with small
    batches, grows further.

    Reference: Xie et al. 2021 (arXiv:2103.17182), Algorithm 2.
    """
    return chain(
        "adapnm",
        add_branches(
            (
                _factor(b0, turn=0),
                scale_by_moments(
                    alternating(check_decay("b1", b1), turn=0),
                    check_decay("b2", b2),
                    mu_dtype=mu_dtype,
                    nu_dtype=nu_dtype,
                ),
            ),
            (
                _factor(b0, turn=1),
                scale_by_moments(
                    alternating(check_decay("b1", b1), turn=1), None, mu_dtype=mu_dtype
                ),
            ),
        ),
        running_max(),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        add_branches(
            (
                derived(
                    lambda b0: ((1 + b0) ** 2 + b0**2) ** -0.5,
                    check_non_negative("b0", b0),
                ),
                optax.identity(),
            )
        ),
        scale_by_lr(learning_rate),
    )


def aggmo(
    learning_rate: Hyperparam,
    decays: tuple[float, ...] = (0.0, 0.9, 0.99),
    *,
    mu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build aggregated momentum: the mean of several heavy balls of different decay.

        trace_k <- decays[k] * trace_k + g
        params <- params - learning_rate * mean(trace_1, ..., trace_K)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step).
      decays: decay rates of the traces, floats in [0, 1). A decay of 0 needs no state.
      mu_dtype: how the traces are stored: a dtype, a `Format` or the name of one
        ("float32", "bfloat16", "8bit"). None means the parameters' dtype, float32 or
        wider.

    Raises:
      ValueError: if a decay is out of range, or there is none.
      TypeError: if decays is not a tuple of floats.

    Example: the second of two gradients of 1.

      >>> import jax.numpy as jnp
      >>> tx = aggmo(1e-3)
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state)
      >>> print(f"{updates:.6f}")  # -1e-3 * (1 + 1.9 + 1.99) / 3
      -0.001630

    When: Momentum of 0.99 and above, whose oscillations the other traces damp. A buffer
    for each decay rate but 0. Like SGD, poor where gradients differ by orders of
    magnitude.

    Reference: Lucas et al. 2019 (arXiv:1804.00325), equation 2.
    """
    return chain(
        "aggmo",
        add_branches(
            *(
                (1 / len(decays), scale_by_moments(decay, None, mu_dtype=mu_dtype))
                for decay in _traces(decays)
            )
        ),
        scale_by_lr(learning_rate),
    )


def _factor(b0: Any, turn: int) -> Any:
    """Return the factor of an average of AdaPNM: is it its turn, or the other's?"""
    b0 = check_non_negative("b0", b0)

    def factor(count):
        value = at(b0, count, jnp.result_type(float))
        return jnp.where((count + turn) % 2 == 0, 1 + value, -value)

    return factor


def _traces(decays: Any) -> list[Any]:
    """Return an accumulator for each decay, None for 0."""
    if not isinstance(decays, tuple | list) or not decays:
        raise TypeError(
            "decays must be a tuple of decay rates, as in decays=(0.0, 0.9), got "
            f"{shown(decays)}."
        )
    return [trace(check_decay("decays", x)) if x != 0 else None for x in decays]
