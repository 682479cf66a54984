"""Stages that hold a moment of their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax.checks import check_inexact
from adam_jax.hyperparams import Hyperparam
from adam_jax.moments.accumulators import Accumulator, trace
from adam_jax.moments.formats import Stored
from adam_jax.moments.moment import Moment
from adam_jax.moments.storage import Storage, as_format
from adam_jax.stages.division import emit
from adam_jax.stages.flow import (
    Moments,
    expect_moments,
    expect_state,
    expect_updates,
    widen,
)


class TraceState(NamedTuple):
    """State of `scale_by_trace`, and of every other stage made by `hold`.

    Attributes:
      count: int32 scalar, the steps taken.
      trace: the moment that the stage holds, a pytree like the parameters.
      trace_format: the reader of the trace, as in `Stored`.
    """

    count: ArrayLike
    trace: Any
    trace_format: Any


def hold(
    stage: str,
    accumulator: Accumulator,
    use: Callable[[Any, Any], Any],
    dtype: Storage = None,
    *,
    gather: Callable[[Moments], Any] | None = None,
    argument: str = "mu_dtype",
) -> optax.GradientTransformation:
    """Build a stage that gathers one value a step in a moment, and uses the moment.

    Args:
      stage: its name, for messages.
      accumulator: how values of either sign are gathered. Its `read` is told that the
        moment has the weight 1; where an average is to be corrected, chain
        `scale_by_moments`, which keeps weights.
      use: (incoming, held) -> outgoing. `incoming` is what the stage received, `held`
        what the accumulator reads after this step, float32 or wider.
      dtype: how the moment is stored, like `mu_dtype` in `scale_by_moments`.
      gather: Moments -> the tree to gather; the stage then takes and emits `Moments`.
        None means that it takes updates and emits updates, which it gathers.
      argument: the argument that sets `dtype`, for messages.

    Raises:
      ValueError: at the first trace, if the state was made with another dtype.
      TypeError: at the first trace, if the state belongs to another transformation, or
        for updates in place of `Moments`.

    Example: Adam's first moment, plus 5 times a slower average (as in AdEMAMix).

      >>> import jax
      >>> from adam_jax import ema, precondition, scale_by_moments
      >>> slow = hold(
      ...     "add_slow",
      ...     ema(0.99),
      ...     lambda m, held: m._replace(
      ...         mu=jax.tree.map(lambda mu, slow: mu + 5 * slow, m.mu, held)
      ...     ),
      ...     gather=lambda m: m.grads,
      ... )
      >>> tx = optax.chain(scale_by_moments(0.9, None), slow, precondition())
      >>> updates, _ = tx.update(jnp.float32(1), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.3f}")
      0.150
    """
    moment = Moment(accumulator, as_format(argument, dtype), 1, "trace", argument)

    def init_fn(params):
        check_inexact(params, "params")
        return TraceState(jnp.zeros([], jnp.int32), *moment.init(params))

    def update_fn(updates, state, params=None):
        if gather is None:
            expect_updates(updates, stage)
            values = updates
        else:
            values = gather(expect_moments(updates, stage))
        expect_state(state, TraceState, stage)
        check_inexact(values, "grads")
        stored = Stored(state.trace, state.trace_format)
        before = moment.read(stored, values)
        after = moment.step(stored, before, widen(values, before), state.count)
        used = use(updates, after.flows)
        emitted = emit(used, updates, params) if gather is None else used
        count = optax.safe_increment(state.count)
        return emitted, TraceState(count, *after.stored)

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_trace(
    decay: Hyperparam,
    nesterov: bool = False,
    accumulator_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Add up updates with decay (heavy-ball momentum): `trace <- decay * trace + u`.

    Args:
      decay: in [0, 1).
      nesterov: emit `decay * trace + u` instead of the trace.
      accumulator_dtype: how the trace is stored, like `mu_dtype` in `scale_by_moments`.

    Raises:
      ValueError: if decay is out of range; at the first trace, if the state was made
        with another accumulator_dtype.
      TypeError: if the state belongs to another transformation.

    Example: the second of two updates of 1, at decay 0.9.

      >>> tx = scale_by_trace(0.9)
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state)
      >>> print(f"{updates:.2f}")
      1.90

    Reference: Polyak 1964, equation 9; nesterov: Sutskever et al. 2013, section 2.

    Differs from `optax.trace`, which keeps its state in the parameters' dtype, even
    bfloat16, and changes it when the gradients have another one.
    """
    return hold(
        "scale_by_trace",
        trace(decay, nesterov=nesterov),
        lambda updates, held: held,
        accumulator_dtype,
        argument="accumulator_dtype",
    )
