"""Stages that hold a moment of their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import Hyperparam, check_non_negative, exact
from adam_jax.moments.accumulators import Accumulator, average, ema, trace
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
    """State of `scale_by_trace`, and of other stages made by `hold`.

    Attributes:
      count: int32 scalar, the steps taken.
      trace: the moment that the stage holds, a pytree like the parameters.
      trace_format: the reader of the trace, as in `Stored`.
    """

    count: ArrayLike
    trace: Any
    trace_format: Any


class NuTraceState(NamedTuple):
    """State of stages made by `hold` whose moment is a second moment.

    Attributes:
      count: int32 scalar, the steps taken.
      nu_trace: the moment that the stage holds, real and never negative, a pytree like
        the parameters.
      nu_trace_format: the reader of the moment, as in `Stored`.
    """

    count: ArrayLike
    nu_trace: Any
    nu_trace_format: Any


def hold(
    stage: str,
    accumulator: Accumulator,
    use: Callable[[Any, Any], Any] | None = None,
    dtype: Storage = None,
    *,
    gather: Callable[[Moments], Any] | None = None,
    argument: str = "mu_dtype",
) -> optax.GradientTransformation:
    """Build a stage that gathers one value a step in a moment, and uses the moment.

    Args:
      stage: its name, for messages.
      accumulator: how values are gathered. If its order is 2, the moment is real and
        never negative; else values have either sign. Its `read` is told that the
        moment has the weight 1; where an average is to be corrected, chain
        `scale_by_moments`, which keeps weights.
      use: (incoming, held) -> outgoing. `incoming` is what the stage received, `held`
        what the accumulator reads after this step, float32 or wider. None emits `held`
        itself.
      dtype: how the moment is stored, like `mu_dtype` in `scale_by_moments`.
      gather: Moments -> the tree to gather; the stage then takes and emits `Moments`.
        None means that it takes updates and emits updates, which it gathers.
      argument: the argument that sets `dtype`, for messages.

    Raises:
      ValueError: at the first trace, if the state was made with another dtype.
      TypeError: at the first trace, if the state belongs to another transformation, or
        for updates in place of `Moments`.

    Example: Adam's first moment, plus 5 times a slower average (as in AdEMAMix).

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
    if accumulator.order == 2:
        order, kind, name = 2, NuTraceState, "nu_trace"
    else:
        order, kind, name = 1, TraceState, "trace"
    moment = Moment(accumulator, as_format(argument, dtype), order, name, argument)

    def init_fn(params):
        check_inexact(params, "params")
        return kind(jnp.zeros([], jnp.int32), *moment.init(params))

    def update_fn(updates, state, params=None):
        if gather is None:
            expect_updates(updates, stage)
            values = updates
        else:
            values = gather(expect_moments(updates, stage))
        expect_state(state, kind, stage)
        check_inexact(values, "grads")
        stored = Stored(*state[1:])
        before = moment.read(stored, values)
        after = moment.step(stored, before, widen(values, before), state.count)
        used = use(updates, after.flows) if use else after.flows
        emitted = emit(used, updates, params) if gather is None else used
        count = optax.safe_increment(state.count)
        return emitted, kind(count, *after.stored)

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_trace(
    decay: Hyperparam,
    nesterov: bool = False,
    accumulator_dtype: Storage = None,
    *,
    argument: str = "accumulator_dtype",
) -> optax.GradientTransformation:
    """Add up updates with decay (heavy-ball momentum): `trace <- decay * trace + u`.

    Args:
      decay: in [0, 1).
      nesterov: emit `decay * trace + u` instead of the trace.
      accumulator_dtype: how the trace is stored, like `mu_dtype` in `scale_by_moments`.
      argument: what the optimizer calls accumulator_dtype, for messages.

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
        dtype=accumulator_dtype,
        argument=argument,
    )


def scale_by_friction(dtype: Storage = None) -> optax.GradientTransformation:
    """Shorten the first moment where the gradient stays as it was.

        mu <- mu / (1 + exp(-|g - g_before|))

    The factor lies between 1/2 and 1. Before the first step, g_before is 0.

    Args:
      dtype: how g_before is stored, like `mu_dtype` in `scale_by_moments`.

    Raises:
      ValueError: at the first trace, if the state was made with another dtype.
      TypeError: at the first trace, for updates in place of `Moments`, or if the state
        belongs to another transformation.

    Example: the gradient does not change in the second step.

      >>> from adam_jax import scale_by_moments
      >>> tx = optax.chain(scale_by_moments(b1=0.0), scale_by_friction())
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 1.0):
      ...     moments, state = tx.update(jnp.float32(grad), state)
      ...     print(f"{moments.mu:.4f}")
      0.7311
      0.5000

    Reference: Dubey et al. 2019 (diffGrad), equations 8 and 9.
    """
    change = Accumulator(
        {},
        lambda moment, value, h: value,
        read=lambda new, old, grad, weight, h: grad - old,
        order=1,
    )

    def shorten(m: Moments, held: Any) -> Any:
        def shorten_leaf(mu, change):
            factor = jax.nn.sigmoid(jnp.abs(change))
            return factor.astype(mu.dtype) * mu

        mu = jax.tree.map(shorten_leaf, m.mu, held)
        return m._replace(mu=mu, has_mu=False)

    return hold("scale_by_friction", change, shorten, dtype, gather=lambda m: m.grads)


def scale_by_past_updates(
    decay: Hyperparam = exact(0.9),
    eps: Hyperparam = exact(1e-6),
    dtype: Storage = None,
) -> optax.GradientTransformation:
    """Multiply updates by the root of the average square of those emitted before.

        updates <- sqrt(average + eps) * u
        average <- decay * average + (1 - decay) * updates^2

    The average starts at 0.

    Args:
      decay: in [0, 1).
      eps: added inside the root, >= 0, in units of the updates squared.
      dtype: how the average is stored, like `nu_dtype` in `scale_by_moments`.

    Raises:
      ValueError: if a hyperparameter is out of range; at the first trace, if the state
        was made with another dtype.
      TypeError: if the state belongs to another transformation.

    Example: updates grow from sqrt(eps).

      >>> tx = scale_by_past_updates(eps=1e-4)
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.float32(1), state)
      ...     print(f"{updates:.5f}")
      0.01000
      0.01049
      0.01095

    Reference: Zeiler 2012 (ADADELTA), Algorithm 1.
    """
    past_updates = Accumulator(
        {"decay": decay, "eps": check_non_negative("eps", eps)},
        lambda moment, value, h: average(moment, (moment + h.eps) * value, h),
        read=lambda new, old, grad, weight, h: (
            numerics.sqrt(old + h.eps).astype(grad.dtype) * grad
        ),
        order=2,
    )
    return hold(
        "scale_by_past_updates",
        past_updates,
        dtype=dtype,
        argument="nu_dtype",
    )


def average_updates(
    decay: Hyperparam,
    accumulator_dtype: Storage = None,
    *,
    argument: str = "accumulator_dtype",
) -> optax.GradientTransformation:
    """Average updates, without bias correction: `avg <- decay * avg + (1 - decay) * u`.

    Args:
      decay: in [0, 1).
      accumulator_dtype: how the average is stored, like `mu_dtype` in
        `scale_by_moments`.
      argument: what the optimizer calls accumulator_dtype, for messages.

    Raises:
      ValueError: if decay is out of range; at the first trace, if the state was made
        with another accumulator_dtype.
      TypeError: if the state belongs to another transformation.

    Example: the second of two updates of 1, at decay 0.9.

      >>> tx = average_updates(0.9)
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.float32(1), state)
      >>> print(f"{updates:.2f}")
      0.19

    Reference: Shazeer & Stern 2018 (Adafactor), whose momentum it is in Optax; Anil et
    al. 2019 (SM3).
    """
    return hold(
        "average_updates",
        ema(decay),
        dtype=accumulator_dtype,
        argument=argument,
    )
