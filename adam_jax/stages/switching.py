"""From `Moments` to updates: Adam's, until SGD takes over for good."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import Hyperparam, at, check_decay, check_non_negative, exact
from adam_jax.measures import sum_leaves
from adam_jax.moments.storage import Storage
from adam_jax.stages.division import divide_moments, emit
from adam_jax.stages.flow import (
    expect_both,
    expect_moments,
    expect_state,
    scalar_dtype,
    widen,
)
from adam_jax.stages.holding import TraceState, scale_by_trace


class SwitchState(NamedTuple):
    """State of `switch_to_sgd`.

    Attributes:
      inner_state: SGD's momentum, 0 as long as Adam steps.
      rate: scalar, SGD's step size in learning rates; 0 as long as Adam steps.
      average: scalar, the average of what SGD's step size would be.
    """

    inner_state: TraceState
    rate: jax.Array
    average: jax.Array


def switch_to_sgd(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    eps: Hyperparam = exact(1e-9),
    eps_root: Hyperparam = exact(0.0),
    tolerance: Hyperparam = exact(1e-9),
    accumulator_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Divide as `precondition` does, until SGD's equivalent step size has settled.

        Adam: u = mu / (sqrt(nu + eps_root) + eps)
              gamma = <u, u> / <u, g>,  average <- b2 * average + (1 - b2) * gamma
              if t > 1 and learning_rate * |average / (1 - b2^t) - gamma| < tolerance:
                rate = average / (1 - b2^t), if that is > 0; then SGD for good
        SGD:  trace <- b1 * trace + g,  u = rate * (1 - b1) * trace

    Products are over all leaves. Where <u, g> is 0 nothing is averaged. b2 is
    that of the second moment. `scale_by_lr` has to follow.

    Args:
      learning_rate: that of `scale_by_lr`, >= 0.
      b1: decay rate of SGD's trace, in [0, 1).
      eps: as in `precondition`.
      eps_root: as in `precondition`.
      tolerance: how near the step sizes must come, >= 0.
      accumulator_dtype: how the trace is stored, like `mu_dtype` in `scale_by_moments`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if a moment
        is missing, or nu is no average.
      TypeError: if the state belongs to another transformation.

    Example: gradients of 2. Adam's steps are 1, as SGD's would be at a rate of 1/2.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(), bias_correct(), switch_to_sgd(0.1, tolerance=1e-3)
      ... )
      >>> state, sizes = tx.init(jnp.float32(0)), []
      >>> for _ in range(4):
      ...     updates, state = tx.update(jnp.float32(2), state)
      ...     sizes.append(f"{updates:.2f}")
      >>> print(*sizes)  # 0.1 and 0.19 of the step, until the trace is full
      1.00 1.00 0.10 0.19

    Reference: Keskar & Socher 2017 (arXiv:1712.07628), Algorithm 1 (SWATS).

    Differs from it where the average is not positive: SGD would climb.
    """
    learning_rate = check_non_negative(
        "learning_rate", learning_rate, half_precision=True
    )
    eps = check_non_negative("eps", eps)
    eps_root = check_non_negative("eps_root", eps_root)
    tolerance = check_non_negative("tolerance", tolerance)
    velocity: Any = scale_by_trace(b1, accumulator_dtype=accumulator_dtype)
    b1 = check_decay("decay", b1)

    def init_fn(params):
        check_inexact(params, "params")
        dtype = scalar_dtype(params)
        rate, average = (jnp.zeros([], dtype) for _ in range(2))
        return SwitchState(velocity.init(params), rate, average)

    def update_fn(updates, state, params=None):
        m = expect_moments(updates, "switch_to_sgd")
        expect_both(m, "switch_to_sgd")
        expect_state(state, SwitchState, "switch_to_sgd")
        if m.nu_decay is None:
            raise ValueError(
                "switch_to_sgd() needs a second moment that is an average: give "
                "scale_by_moments() a b2."
            )
        past, dtype = state.inner_state.count, state.rate.dtype
        switched = state.rate > 0
        grads = widen(m.grads, m.mu)
        added = jax.tree.map(lambda g: jnp.where(switched, g, 0), grads)
        # Given parameters, or what stands for them, it emits what is wide.
        sgd, inner = velocity.update(added, state.inner_state, grads)
        adam = divide_moments(m, eps, eps_root)

        size, slope = _dot(adam, adam, dtype), _dot(adam, grads, dtype)
        gamma = numerics.divide_or_zero(size, slope)
        b2 = at(m.nu_decay, past, dtype)
        average = jnp.where(
            switched | (slope == 0),
            state.average,
            b2 * state.average + (1 - b2) * gamma,
        )
        settled = average / m.nu_weight.astype(dtype)
        distance = at(learning_rate, past, dtype) * jnp.abs(settled - gamma)
        near = (past > 0) & (slope != 0) & (distance < at(tolerance, past, dtype))
        rate = jnp.where(~switched & near & (settled > 0), settled, state.rate)

        share = state.rate * (1 - at(b1, past, dtype))
        used = jax.tree.map(
            lambda u, v: jnp.where(
                switched, share.astype(numerics.real_dtype(v.dtype)) * v, u
            ),
            adam,
            sgd,
        )
        return emit(used, m.grads, params), SwitchState(inner, rate, average)

    return optax.GradientTransformation(init_fn, update_fn)


def _dot(tree: Any, other: Any, dtype: Any) -> jax.Array:
    """Return the real part of the product of two trees."""
    products = jax.tree.map(lambda x, y: (x.conj() * y).real.sum(), tree, other)
    return sum_leaves(products, dtype)
