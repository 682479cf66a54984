"""The stages that emit updates: preconditioning, momentum, decay, the learning rate.

When `update` is given the parameters, updates stay in float32 at least up to
`scale_by_lr`, which emits them in the parameters' dtype; without parameters every
stage emits the dtype that it was given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import gathering, numerics
from adam_jax.accumulators import trace
from adam_jax.checks import check_inexact, check_like
from adam_jax.formats import Storage, Stored, as_format
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    exact,
)
from adam_jax.transforms import Moments, expect_moments, expect_updates

Mask = Any | Callable[[Any], Any] | None
"""Booleans in a pytree, a prefix of params, or a function of params that gives one."""


def precondition(
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
) -> optax.GradientTransformation:
    """Divide the first moment by the root of the second: `Moments` become updates.

        updates = mu / (sqrt(nu + eps_root) + eps)

    Where the denominator is 0 so is the update; its derivative is finite everywhere.
    Without a second moment the updates are mu.

    Args:
      eps: added outside the root, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.

    Example: the first corrected step has size 1 whatever the gradient's scale.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(scale_by_moments(), bias_correct(), precondition())
      >>> updates, _ = tx.update(jnp.float32(-7), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -1.000000

    Reference: Kingma & Ba 2014, Algorithm 1, line 11.
    """
    eps = check_non_negative("eps", eps)
    eps_root = check_non_negative("eps_root", eps_root)

    def divide(moments: Any, params=None):
        m = expect_moments(moments, "precondition")
        return _emit(divide_moments(m, eps, eps_root), m.grads, params)

    return optax.stateless(divide)


def divide_moments(m: Moments, eps: Any, eps_root: Any) -> Any:
    """Return mu / (sqrt(nu + eps_root) + eps), or mu where there is no nu, uncast."""
    if m.nu is None:
        return m.mu
    past = m.count - 1

    def divide_leaf(mu, nu):
        inside = nu + at(eps_root, past, nu.dtype)
        if isinstance(eps, float) and eps == 0:  # one rounding less
            return mu * numerics.rsqrt_or_zero(inside).astype(mu.dtype)
        root = numerics.sqrt(inside)
        return numerics.divide_or_zero(mu, root + at(eps, past, nu.dtype))

    return jax.tree.map(divide_leaf, m.mu, m.nu)


def rectified_precondition(
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    threshold: Hyperparam = exact(5.0),
) -> optax.GradientTransformation:
    """Divide as `precondition` does, once the second moment has seen enough.

        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 t b2^t / (1 - b2^t)
        r = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))
        updates = r * mu / (sqrt(nu + eps_root) + eps)   if rho >= threshold, else mu

    Args:
      b2: the decay of the second moment, as given to `scale_by_moments`.
      eps: as in `precondition`.
      eps_root: as in `precondition`.
      threshold: the number of gradients, rho, from which nu is trusted.

    Reference: Liu et al. 2020 (RAdam), Algorithm 2, where the threshold is 4.
    """
    b2 = check_decay("b2", b2)
    eps = check_non_negative("eps", eps)
    eps_root = check_non_negative("eps_root", eps_root)
    threshold = check_non_negative("threshold", threshold)

    def divide(moments: Any, params=None):
        m = expect_moments(moments, "rectified_precondition")
        dtype = m.nu_weight.dtype
        decay = at(b2, m.count - 1, dtype)
        rho_inf = 2 / (1 - decay) - 1
        rho = (
            rho_inf - 2 * jnp.asarray(m.count, dtype) * (1 - m.nu_weight) / m.nu_weight
        )
        # Below 4 there is no r, whatever the threshold.
        trusted = (rho > 4) & (rho >= at(threshold, m.count - 1, dtype))
        rho, rho_max = jnp.where(trusted, rho, 5), jnp.where(trusted, rho_inf, 5)
        r = jnp.sqrt(
            ((rho - 4) * (rho - 2) * rho_max) / ((rho_max - 4) * (rho_max - 2) * rho)
        )
        updates = jax.tree.map(
            lambda divided, mu: jnp.where(trusted, r.astype(mu.dtype) * divided, mu),
            divide_moments(m, eps, eps_root),
            m.mu,
        )
        return _emit(updates, m.grads, params)

    return optax.stateless(divide)


class TraceState(NamedTuple):
    """State of `scale_by_trace`.

    Attributes:
      count: int32 scalar, the steps taken.
      trace: a pytree like the parameters.
      scales: what the format of the trace keeps beside it, or None.
    """

    count: ArrayLike
    trace: Any
    scales: Any = None


def scale_by_trace(
    decay: Hyperparam,
    nesterov: bool = False,
    accumulator_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Add up updates with decay (heavy-ball momentum): `trace <- decay * trace + u`.

    Args:
      decay: in [0, 1).
      nesterov: emit `decay * trace + u` in place of the trace.
      accumulator_dtype: as `mu_dtype` in `scale_by_moments`.

    Differs from `optax.trace`, which keeps its state in the parameters' dtype,
    bfloat16 too, and changes it when the gradients have another one.
    """
    accumulator = trace(decay, nesterov=nesterov)
    format = as_format("accumulator_dtype", accumulator_dtype)

    def init_fn(params):
        check_inexact(params, "params")
        start = gathering.start(params, accumulator.initial, format, True)
        return TraceState(jnp.zeros([], jnp.int32), *start)

    def update_fn(updates, state, params=None):
        expect_updates(updates, "scale_by_trace")
        check_inexact(updates, "grads")
        stored = Stored(state.trace, state.scales)
        grads = gathering.widen(updates, gathering.load(format, stored))
        gathered = gathering.gather(
            accumulator,
            format,
            True,
            stored,
            grads,
            grads,
            jnp.array([1, 0], jnp.float32),
            state.count,
        )
        count = optax.safe_increment(state.count)
        return (
            _emit(gathered.flows, updates, params),
            TraceState(count, *gathered.stored),
        )

    return optax.GradientTransformation(init_fn, update_fn)


def add_decayed_weights(
    weight_decay: Any = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Add `weight_decay * params` to the updates.

    After `precondition` this is AdamW's decoupled decay; before `scale_by_moments` it
    is L2 regularisation, which is not AdamW.

    Args:
      weight_decay: >= 0, a number, a 0-d array or a schedule.
      mask: pytree of booleans, a prefix of params, or a function of params that
        returns one: True where to decay.

    Reference: Loshchilov & Hutter 2017, Algorithm 2.

    Differs from `optax.add_decayed_weights`, which does the work here, only in
    multiplying in float32 at least.
    """
    weight_decay = check_non_negative("weight_decay", weight_decay, half_precision=True)
    inner = optax.add_decayed_weights(weight_decay, mask)

    def update_fn(updates, state, params=None):
        if params is None:
            raise ValueError(
                "weight decay needs the parameters: call "
                "tx.update(grads, state, params), not tx.update(grads, state)."
            )
        expect_updates(updates, "add_decayed_weights")
        check_like(updates, params, "updates", "params")
        return inner.update(updates, state, jax.tree.map(numerics.widen, params))

    return optax.GradientTransformation(inner.init, update_fn)


def scale_by_lr(
    learning_rate: Hyperparam | None, *, flip_sign: bool = True
) -> optax.GradientTransformation:
    """Multiply by minus the learning rate, and emit the parameters' dtype.

        updates <- -learning_rate * updates

    `Moments` that arrive here are divided as `precondition()` does by default.

    Args:
      learning_rate: >= 0; a number, a 0-d array or a schedule of the step count,
        which is 0 at the first step. None multiplies by nothing, nor flips the sign.
      flip_sign: False multiplies by plus the learning rate.

    Example: the three-stage chain is Adam.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(scale_by_moments(), bias_correct(), scale_by_lr(1e-3))
      >>> updates, _ = tx.update(jnp.float32(5), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.001000

    Differs from `optax.scale_by_learning_rate`, where a float32 scalar turns
    bfloat16 updates into float32 ones, and a schedule's value takes their dtype.
    """
    if learning_rate is not None:
        learning_rate = check_non_negative(
            "learning_rate", learning_rate, half_precision=True
        )

    def init_fn(params):
        check_inexact(params, "params")
        if callable(learning_rate):
            return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        emitted = updates
        if isinstance(updates, Moments):
            emitted = updates.grads
            updates = divide_moments(updates, eps=1e-8, eps_root=0.0)
        check_inexact(updates, "updates")
        if params is not None:
            check_like(updates, params, "updates", "params")
            emitted = params
        scheduled = isinstance(state, optax.ScaleByScheduleState)
        count = state.count if scheduled else jnp.zeros([], jnp.int32)

        def scale(update):
            update = numerics.widen(update)
            if learning_rate is None:
                return update
            rate = at(learning_rate, count, update.dtype)
            return (-rate if flip_sign else rate) * update

        updates = gathering.cast_like(jax.tree.map(scale, updates), emitted)
        if scheduled:
            state = optax.ScaleByScheduleState(optax.safe_increment(count))
        return updates, state

    return optax.GradientTransformation(init_fn, update_fn)


def cast_to_params() -> optax.GradientTransformation:
    """Emit updates in the parameters' dtype, where `scale_by_lr` is not the last stage.

    Without parameters updates pass as they are.
    """

    def cast(updates, params=None):
        return updates if params is None else gathering.cast_like(updates, params)

    return optax.stateless(cast)


def _emit(updates: Any, received: Any, params: Any) -> Any:
    """Return `updates` as they are if params will set the dtype, else as received."""
    return gathering.cast_like(updates, received) if params is None else updates
