"""From gradients to updates in units of an estimated distance to the solution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import Hyperparam, at, check_decay, check_non_negative, exact
from adam_jax.measures import sum_leaves
from adam_jax.moments.accumulators import Accumulator
from adam_jax.moments.formats import Stored
from adam_jax.moments.moment import Moment
from adam_jax.moments.storage import Storage, as_format
from adam_jax.stages.division import divide_moments
from adam_jax.stages.flow import expect_params, expect_state, scalar_dtype, widen
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import TraceState
from adam_jax.stages.iterates import copy_param


class DistanceState(NamedTuple):
    """State of `scale_by_distance`.

    Attributes:
      inner_state: the moments of the gradients, times the estimates of their steps;
        and the weighted sum of gradients.
      distance: scalar, the estimate.
      numerator: scalar, the weighted sum of how far the parameters went downhill.
      start: the parameters at the start, a pytree like them, float32 or wider.
    """

    inner_state: tuple[Any, TraceState]
    distance: jax.Array
    numerator: jax.Array
    start: Any


def scale_by_distance(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    b3: Hyperparam | None = None,
    eps: Hyperparam = exact(1e-8),
    initial: Hyperparam = exact(1e-6),
    scale: Hyperparam = exact(1.0),
    weight_decay: Hyperparam = exact(0.0),
    *,
    safeguard_warmup: bool = False,
    mu_dtype: Storage = None,
    nu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Scale Adam's updates by an estimate d of the distance to the solution.

        mu <- b1 * mu + (1 - b1) * d g,   nu <- b2 * nu + (1 - b2) * |d g|^2
        k = d * learning_rate * sqrt(1 - b2^t) / (1 - b1^t),   w = k d / d_0
        r <- b3 * r + w * <g, params_0 - params>
        s <- b3 * s + w * g
        d_new = max(d, scale * r / |s|_1)
        updates = k / learning_rate * (mu / (sqrt(nu) + d_new * eps) + weight_decay
                  * params)

    Products and norms are over all leaves. `scale_by_lr` has to follow.

    Args:
      learning_rate: that of `scale_by_lr`: 1, or a schedule around it.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b3: decay rate of the sums r and s, in [0, 1); None means sqrt(b2).
      eps: added to the root of nu, times d_new, >= 0, in units of the gradient.
      initial: d_0, the first estimate, > 0, in units of the parameters; rather too
        small than too large. Not a schedule.
      scale: by which the estimate is multiplied, >= 0.
      weight_decay: >= 0; how much of the parameters is added to the updates.
      safeguard_warmup: whether the weight of g in s is d^2 / d_0, without learning rate
        and correction.
      mu_dtype: how mu and s are stored, as in `scale_by_moments`.
      nu_dtype: how nu is stored.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.
      TypeError: if the state belongs to another transformation.

    Example: from 0 to 1 by a gradient of -1, d grows from step to step.

      >>> tx, param = scale_by_distance(1.0, initial=1e-3), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for _ in range(8):
      ...     update, state = tx.update(jnp.float32(-1), state, param)
      ...     param = param - update
      >>> print(f"{state.distance:.5f}")
      0.00767

    Reference: Mishchenko & Defazio 2023 (arXiv:2306.06101), Algorithm 4 (Prodigy).
    """
    rate = check_non_negative("learning_rate", learning_rate, half_precision=True)
    b2 = check_decay("b2", b2)
    b3 = None if b3 is None else check_decay("b3", b3)
    eps = check_non_negative("eps", eps)
    initial = check_non_negative("initial", initial)
    scale = check_non_negative("scale", scale)
    weight_decay = check_non_negative("weight_decay", weight_decay, half_precision=True)
    moments = scale_by_moments(
        b1=check_decay("b1", b1), b2=b2, mu_dtype=mu_dtype, nu_dtype=nu_dtype
    )
    # The decay of this sum may follow b2: it is applied to the values.
    weighted = Accumulator({}, lambda moment, value, h: value, order=1)
    total = Moment(weighted, as_format("mu_dtype", mu_dtype), 1, "trace", "mu_dtype")

    def init_fn(params):
        check_inexact(params, "params")
        dtype = scalar_dtype(params)
        return DistanceState(
            (
                moments.init(params),
                TraceState(jnp.zeros([], jnp.int32), *total.init(params)),
            ),
            jnp.asarray(at(initial, 0, dtype), dtype),
            jnp.zeros([], dtype),
            jax.tree.map(copy_param, params),
        )

    def update_fn(updates, state, params=None):
        params = widen(expect_params(updates, params, "scale_by_distance"))
        expect_state(state, DistanceState, "scale_by_distance")
        check_inexact(updates, "grads")
        own, old = state.inner_state
        past, dtype = old.count, state.distance.dtype

        def now(value):
            return jnp.asarray(at(value, past, dtype), dtype)

        d, first = state.distance, now(initial)
        stored = Stored(old.trace, old.trace_format)
        sums = total.read(stored, updates)
        grads = jax.tree.map(numerics.bound, widen(updates, sums))
        scaled = jax.tree.map(lambda g: _as(d, g) * g, grads)
        m: Any
        m, own = moments.update(scaled, own)
        step = d * (jnp.sqrt(m.nu_weight) / m.mu_weight).astype(dtype)
        weight = d / first * (d if safeguard_warmup else step * now(rate))
        decay = jnp.sqrt(now(b2)) if b3 is None else now(b3)
        sums = jax.tree.map(
            lambda s, g: _as(decay, g) * s + _as(weight, g) * g, sums, grads
        )
        after = total.step(stored, sums, sums, past)

        way = jax.tree.map(
            lambda g, x, y: (g.conj() * (x - y)).real.sum(), grads, state.start, params
        )
        downhill = sum_leaves(way, dtype)
        factor = d / first * step * now(rate)
        numerator = decay * state.numerator + factor * downhill
        size = sum_leaves(jax.tree.map(lambda s: jnp.abs(s).sum(), after.flows), dtype)
        estimate = now(scale) * numerics.divide_or_zero(numerator, size)
        distance = jnp.maximum(d, estimate)

        divided = divide_moments(m, distance * now(eps), 0.0)
        emitted = jax.tree.map(
            lambda u, p: _as(step, u) * (u + _as(now(weight_decay), u) * p),
            divided,
            params,
        )
        count = optax.safe_increment(past)
        inner = own, TraceState(count, *after.stored)
        return emitted, DistanceState(inner, distance, numerator, state.start)

    return optax.GradientTransformation(init_fn, update_fn)


def _as(scalar: jax.Array, x: jax.Array) -> jax.Array:
    return scalar.astype(numerics.real_dtype(x.dtype))
