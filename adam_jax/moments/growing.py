"""A sum in which later values weigh more, for dual averaging."""

import jax.numpy as jnp

from adam_jax.hyperparams import Hyperparam, at, check_non_negative
from adam_jax.moments.accumulators import Accumulator


def growing_total(learning_rate: Hyperparam, eps: Hyperparam = 0.0) -> Accumulator:
    """Sum with growing weights: `m <- m + (learning_rate + eps) * sqrt(t) * value`.

    Args:
      learning_rate: >= 0; a number, a 0-d array or a schedule of the step count. A
        second moment, too, has it as a factor, not its square.
      eps: added to the learning rate, >= 0.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: two gradients of 1: 0.1 + 0.1 * sqrt(2).

      >>> from adam_jax import scale_by_moments
      >>> tx = scale_by_moments(growing_total(0.1), None)
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(2):
      ...     moments, state = tx.update(jnp.float32(1), state)
      >>> print(f"{moments.mu:.4f}")
      0.2414

    Reference: Defazio & Jelassi 2021 (MADGRAD), Algorithm 1.
    """
    rate = check_non_negative("learning_rate", learning_rate, half_precision=True)
    return Accumulator(
        {
            # A rate from optax.inject_hyperparams has the parameters' dtype.
            "rate": lambda count: jnp.asarray(at(rate, count, jnp.result_type(float))),
            "eps": check_non_negative("eps", eps),
            "root": lambda count: jnp.sqrt(jnp.asarray(count, float) + 1),
        },
        lambda moment, value, h: moment + (h.rate + h.eps) * h.root * value,
    )
