"""Accumulators made from others, and those that remember single gradients."""

import dataclasses

import jax.numpy as jnp

from adam_jax import numerics
from adam_jax.hyperparams import Hyperparam, check_number, check_whole
from adam_jax.moments.accumulators import Accumulator, average


def mixture(
    accumulator: Accumulator,
    moment: Hyperparam,
    gradient: Hyperparam | None = None,
    *,
    order: int = 1,
) -> Accumulator:
    """Read a moment mixed with what it has just gathered: `moment * m + gradient * g`.

    What is gathered is weighted like the moment, so that after bias correction this is
    `moment * m_hat + gradient * g`.

    Args:
      accumulator: how values are gathered.
      moment: the factor of the moment, a number.
      gradient: the factor of the gradient, a number; None means 1 - moment.
      order: 1 for a first moment; 2 for a second one, where |g|^2 stands for g.

    Raises:
      ValueError: if a factor is not finite; for a second moment that does not gather
        |g|^2.

    Example: half the average of two gradients at rate 1/2, and half the last one.

      >>> import optax
      >>> from adam_jax import bias_correct, ema, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(mixture(ema(0.5), 0.5), None), bias_correct()
      ... )
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 4.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{moments.mu:.4f}")  # ((1 + 2 * 4) / 3 + 4) / 2
      3.5000

    Reference: Ma & Yarats 2019 (QHAdam), where `moment` is called nu.
    """
    if order == 2 and (accumulator.measure or accumulator.power == 1):
        raise ValueError(
            "a mixture() of order 2 needs an Accumulator that gathers |g|^2, as ema() "
            "does: leave out its measure, and its power of 1."
        )
    read = accumulator.read or (lambda new, old, grad, weight, h: new)

    def read_mixed(new, old, grad, weight, h):
        share = 1 - h.moment if gradient is None else h.gradient
        value = numerics.abs_sq(grad) if order == 2 else grad
        return h.moment * read(new, old, grad, weight, h) + share * (weight * value)

    factors = {"moment": check_number("moment", moment)}
    if gradient is not None:
        factors["gradient"] = check_number("gradient", gradient)
    return dataclasses.replace(
        accumulator,
        hyperparams={**accumulator.hyperparams, **factors},
        read=read_mixed,
        order=order,
    )


def difference() -> Accumulator:
    """Keep the gradient, and read how much it has changed since the last step.

    At the first step this is 0.

    Example: gradients 1, then 3.

      >>> from adam_jax import scale_by_moments
      >>> tx = scale_by_moments(difference(), None)
      >>> state, changes = tx.init(jnp.float32(0)), []
      >>> for grad in (1.0, 3.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      ...     changes.append(f"{moments.mu:.1f}")
      >>> print(*changes)
      0.0 2.0

    Reference: Xie et al. 2022 (Adan), Algorithm 1, line 4.
    """
    return Accumulator(
        {"known": lambda count: jnp.minimum(count, 1)},
        lambda moment, value, h: value,
        read=lambda new, old, grad, weight, h: jnp.where(h.known != 0, grad - old, 0),
        order=1,
    )


def delayed(accumulator: Accumulator, first: float) -> Accumulator:
    """Read the moment as it was before this step, with the weight that it had.

    Args:
      accumulator: how values are gathered. A `read` of its own is not used.
      first: what is read at the first step, with the weight 1. A second moment of
        infinity makes the first update 0.

    Example: gradients 2 and 7. The second is divided by the first.

      >>> import optax
      >>> from adam_jax import bias_correct, ema, precondition, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(None, delayed(ema(0.9), first=1.0)),
      ...     bias_correct(),
      ...     precondition(),
      ... )
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (2.0, 7.0):
      ...     update, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{update:.4f}")
      3.5000

    Reference: Zhuang et al. 2021 (ACProp), Algorithm 2.
    """
    return dataclasses.replace(accumulator, first=float(first))


def restarted(accumulator: Accumulator, every: int) -> Accumulator:
    """Forget moment and weight every so many steps, and start anew.

    Hyperparameters that are schedules go on.

    Args:
      accumulator: how values are gathered.
      every: the number of steps after which the moment starts anew, >= 1.

    Raises:
      ValueError: if `every` is not a positive integer.

    Example: gradients 1, 1 and 5. The third meets an empty moment.

      >>> import optax
      >>> from adam_jax import bias_correct, ema, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(restarted(ema(0.9), every=2), None), bias_correct()
      ... )
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 1.0, 5.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{moments.mu:.4f} {moments.mu_weight:.4f}")
      5.0000 0.1000

    Reference: Huang et al. 2025 (SPAM), Algorithm 1.
    """
    return dataclasses.replace(accumulator, restart_every=check_whole("every", every))


def average_from_first(decay: Hyperparam) -> Accumulator:
    """Average exponentially, from the first value on: it needs no bias correction.

    `m <- value` at the first step, `m <- decay * m + (1 - decay) * value` later.

    Args:
      decay: decay rate of the average, in [0, 1).

    Example: gradients 1, then 2: 0.9 * 1 + 0.1 * 2.

      >>> from adam_jax import scale_by_moments
      >>> tx = scale_by_moments(average_from_first(0.9), None)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 2.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{moments.mu:.2f}")
      1.10

    Reference: Taniguchi et al. 2024 (ADOPT), Algorithm 2.
    """
    return Accumulator(
        {"decay": decay, "known": lambda count: jnp.minimum(count, 1)},
        lambda moment, value, h: jnp.where(
            h.known != 0, average(moment, value, h), value
        ),
    )


def alternating(decay: Hyperparam, turn: int) -> Accumulator:
    """Average every second value: `m <- decay^2 * m + (1 - decay^2) * value`.

    Two of them, with turns 0 and 1, share the values among them. Both have the weight
    of an average of all values at rate `decay`.

    Args:
      decay: decay rate of the average, in [0, 1).
      turn: 0 gathers the first value, the third and so on; 1 the second, the fourth
        and so on.

    Example: of the gradients 1 and 5, the first is gathered: (1 - 0.9^2) * 1.

      >>> from adam_jax import scale_by_moments
      >>> tx = scale_by_moments(alternating(0.9, turn=0), None)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 5.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{moments.mu:.2f}")
      0.19

    Reference: Xie et al. 2021 (positive-negative momentum), equation 4.
    """

    def add(moment, value, h):
        square = h.decay * h.decay
        gathered = square * moment + (1 - square) * value
        return jnp.where(h.turn == 0, gathered, moment)

    return Accumulator(
        {"decay": decay, "turn": lambda count: (count + turn) % 2},
        add,
        averages=True,
        order=1,
    )
