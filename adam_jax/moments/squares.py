"""Accumulators of squares, for second moments that many elements share."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from adam_jax import numerics, placement
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    check_number,
)
from adam_jax.moments.accumulators import Accumulator, average


def floored_average(
    decay: Hyperparam, floor: Hyperparam = 1e-30, *, residual: bool = False
) -> Accumulator:
    """Average |g|^2 + floor, as second moment.

    `factored` divides by means of rows and columns: the floor keeps them above 0.

    Args:
      decay: in [0, 1).
      floor: added to each square, >= 0, in units of the gradient squared.
      residual: whether to average |g - mu|^2 + floor instead, with the first moment of
        this step.

    Example: the first gradient is averaged at a decay of 0.

      >>> import optax
      >>> from adam_jax import rising_decay, scale_by_moments
      >>> tx = scale_by_moments(None, floored_average(rising_decay(0.8), 0.5))
      >>> moments, _ = tx.update(jnp.float32(2), tx.init(jnp.float32(0)))
      >>> print(moments.nu)
      4.5

    Reference: Shazeer & Stern 2018 (Adafactor), Algorithm 4; residual: Luo et al. 2023
    (CAME), Algorithm 2.
    """

    def measure(grad, mu, h):
        return numerics.abs_sq(grad - mu if residual else grad) + h.floor

    floor = check_non_negative("floor", floor)
    return Accumulator(
        {"decay": decay, "floor": floor}, average, averages=True, measure=measure
    )


def rising_decay(
    exponent: Hyperparam = 0.8, offset: Hyperparam = 0.0
) -> Callable[[Any], Any]:
    """Return the schedule of a decay rate, 1 - (t - offset)^-exponent at step t.

    It is 0 up to the step 1 + offset. So an average at this rate has always seen the
    weight 1, and needs no bias correction, unless offset < 0.

    Args:
      exponent: >= 0. At 1 all past values weigh alike.
      offset: the number of steps before the first one that counts.

    Example:

      >>> print(f"{rising_decay(0.8)(9):.4f}")  # 1 - 10^-0.8
      0.8415

    Reference: Shazeer & Stern 2018 (Adafactor), section 7.2.
    """
    exponent = check_non_negative("exponent", exponent)
    offset = check_number("offset", offset)

    def decay(count):
        dtype = jnp.result_type(float)
        step = jnp.asarray(count, dtype) + 1 - at(offset, count, dtype)
        power = jnp.maximum(step, 1) ** -at(exponent, count, dtype)
        return jnp.minimum(1 - power, 1 - jnp.finfo(dtype).epsneg)

    return decay


def squared_norm(decay: Hyperparam) -> Accumulator:
    """Average the squared norm of a leaf, from that of the first gradient on.

    Stored by `mean_over()`, it keeps the mean of the squares, which does not overflow,
    and is read as their sum.

    Args:
      decay: in [0, 1); the first step does not use it.

    Example: a gradient of norm 5.

      >>> from adam_jax import mean_over, scale_by_moments
      >>> tx = scale_by_moments(None, squared_norm(0.25), nu_dtype=mean_over())
      >>> grads = jnp.array([3.0, 4.0])
      >>> moments, _ = tx.update(grads, tx.init(grads))
      >>> print(moments.nu)
      [25. 25.]

    Reference: Ginsburg et al. 2019 (NovoGrad), Algorithm 1.
    """
    decay = check_decay("decay", decay)
    return Accumulator(
        {"decay": lambda count: jnp.where(count == 0, 0, at(decay, count, float))},
        average,
        averages=True,
        read=lambda new, old, grad, weight, h: new * placement.whole_size(new),
        order=2,
    )
