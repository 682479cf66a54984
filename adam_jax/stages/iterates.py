"""Stages behind `scale_by_lr` that take the parameters elsewhere than its step.

Each takes the step that is to be made, and emits where the parameters shall be, minus
where they are. It needs the parameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from adam_jax import numerics, placement
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_no_schedule,
    check_non_negative,
    exact,
    shown,
)
from adam_jax.measures import map_leaves, root_mean_square
from adam_jax.stages.flow import cast_like, expect_params, expect_state, scalar_dtype


class ScheduleFreeState(NamedTuple):
    """State of `schedule_free`.

    `optax.contrib.schedule_free_eval_params` takes it.

    Attributes:
      b1: scalar, the weight of the average x in the parameters.
      weight_sum: scalar, the sum of the weights of the iterates in x.
      count: int32 scalar, the steps taken.
      max_lr: scalar, the largest learning rate so far.
      z: the iterate that the steps move, a pytree like the parameters.
    """

    b1: jax.Array
    weight_sum: jax.Array
    count: ArrayLike
    max_lr: jax.Array
    z: Any


def schedule_free(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    weight_lr_power: Hyperparam = exact(2.0),
    state_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Average the iterates instead of lowering the learning rate.

        z <- z + step
        x <- (1 - c) x + c z,   c = w / (sum of all w),  w = max_lr^weight_lr_power
        params <- b1 x + (1 - b1) z

    Gradients are those at the parameters. Evaluate the model at x, which is
    `optax.contrib.schedule_free_eval_params(state, params)`.

    Args:
      learning_rate: that of the steps, >= 0; w follows the largest so far.
      b1: how near to x the parameters are, in (0, 1): it stands for momentum.
      weight_lr_power: >= 0; 0 weighs all z alike.
      state_dtype: of z; None means the parameters', float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.
      TypeError: for a state_dtype that is no dtype, such as a `Format`; for a parameter
        that is neither floating-point nor complex; if the state belongs to another
        transformation.

    Example: two steps of -1. x is z at first, then the mean of both z.

      >>> tx, y = schedule_free(0.1, b1=0.5), jnp.float32(0)
      >>> state = tx.init(y)
      >>> for _ in range(2):
      ...     update, state = tx.update(jnp.float32(-1), state, y)
      ...     y = y + update
      >>> print(state.z, y, optax.contrib.schedule_free_eval_params(state, y))
      -2.0 -1.75 -1.5

    Reference: Defazio et al. 2024 (arXiv:2405.15682), equations 2 to 4.
    """
    learning_rate = check_non_negative(
        "learning_rate", learning_rate, half_precision=True
    )
    b1 = check_decay("b1", b1)
    if isinstance(b1, float) and not b1:
        raise ValueError("b1 must be > 0, got 0: params would not depend on x.")
    power = check_non_negative("weight_lr_power", weight_lr_power)
    if state_dtype is not None:
        try:
            jnp.dtype(state_dtype)
        except TypeError:
            raise TypeError(
                f"state_dtype must be a dtype, got {shown(state_dtype)}: z is where "
                "the steps have led, and no moment, so that it takes no format."
            ) from None

    def init_fn(params):
        check_inexact(params, "params")
        dtype = scalar_dtype(params)
        z = jax.tree.map(lambda p: copy_param(p, state_dtype), params)
        weight = jnp.asarray(at(b1, 0, dtype), dtype)
        weight_sum, max_lr = (jnp.zeros([], dtype) for _ in range(2))
        return ScheduleFreeState(
            weight, weight_sum, jnp.zeros([], jnp.int32), max_lr, z
        )

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "schedule_free")
        expect_state(state, ScheduleFreeState, "schedule_free")
        dtype, past = state.weight_sum.dtype, state.count
        max_lr = jnp.maximum(state.max_lr, at(learning_rate, past, dtype))
        weight = max_lr ** at(power, past, dtype)
        weight_sum = state.weight_sum + weight
        c = numerics.divide_or_zero(weight, weight_sum)
        near = jnp.asarray(at(b1, past, dtype), dtype)

        def move(update, z, y):
            # The definition, without x = (y - (1 - b1) z) / b1, which loses digits.
            z, y, update = map(numerics.widen, (z, y, update))
            real = numerics.real_dtype(z.dtype)
            pull, share = c.astype(real), (1 - near * (1 - c)).astype(real)
            return pull * (z - y) + share * update

        def step(update, z):
            return numerics.cast(numerics.widen(z) + numerics.widen(update), z.dtype)

        moved = jax.tree.map(move, updates, state.z, params)
        z = jax.tree.map(step, updates, state.z)
        count = optax.safe_increment(past)
        state = ScheduleFreeState(near, weight_sum, count, max_lr, z)
        return cast_like(moved, params), state

    return optax.GradientTransformation(init_fn, update_fn)


class LookaheadState(NamedTuple):
    """State of `step_back`.

    Attributes:
      count: int32 scalar, the steps taken.
      slow: the slow weights, a pytree like the parameters, float32 or wider.
    """

    count: ArrayLike
    slow: Any


def step_back(
    sync_period: ArrayLike = 6, slow_step_size: Hyperparam = exact(0.5)
) -> optax.GradientTransformation:
    """Go back, after some steps, part of the way to where they began.

        every sync_period steps:  slow <- slow + slow_step_size * (params - slow)
                                  params <- slow

    Args:
      sync_period: the number of steps, an integer >= 1.
      slow_step_size: how much of the way remains, >= 0; at 1 nothing changes.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.
      TypeError: as `schedule_free`.

    Example: of two steps of -1, one remains.

      >>> tx, param = step_back(sync_period=2), jnp.float32(0)
      >>> state = tx.init(param)
      >>> for _ in range(2):
      ...     update, state = tx.update(jnp.float32(-1), state, param)
      ...     param = param + update
      >>> print(param)
      -1.0

    Reference: Zhang et al. 2019 (arXiv:1907.08610), Algorithm 1 (Lookahead).
    """
    period = check_no_schedule(
        "sync_period", check_non_negative("sync_period", sync_period)
    )
    if isinstance(period, float) and (period < 1 or period != int(period)):
        raise ValueError(f"sync_period must be an integer >= 1, got {sync_period!r}.")
    size = check_non_negative("slow_step_size", slow_step_size)

    def init_fn(params):
        check_inexact(params, "params")
        return LookaheadState(
            jnp.zeros([], jnp.int32), jax.tree.map(copy_param, params)
        )

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "step_back")
        expect_state(state, LookaheadState, "step_back")
        past = state.count
        syncs = (past + 1) % jnp.asarray(period, jnp.int32) == 0

        def slow_after(update, slow, param):
            part = at(size, past, numerics.real_dtype(slow.dtype))
            fast = numerics.widen(param) + numerics.widen(update)
            return jnp.where(syncs, slow + part * (fast - slow), slow)

        slow = jax.tree.map(slow_after, updates, state.slow, params)
        moved = jax.tree.map(
            lambda u, slow, p: jnp.where(
                syncs, slow - numerics.widen(p), numerics.widen(u)
            ),
            updates,
            slow,
            params,
        )
        count = optax.safe_increment(past)
        return cast_like(moved, params), LookaheadState(count, slow)

    return optax.GradientTransformation(init_fn, update_fn)


class RadiusState(NamedTuple):
    """State of `keep_radius`.

    Attributes:
      radius: the root mean square of each leaf at the start, a pytree of scalars.
    """

    radius: Any


def keep_radius() -> optax.GradientTransformation:
    """Put each matrix back on the sphere of its first norm, after the step.

        params <- |params_0| * (params + step) / |params + step|

    The norm is that of all elements of the leaf. Leaves with fewer than two axes, such
    as biases, take the step as it is. A matrix that starts at 0 stays there.

    Raises:
      ValueError: if update() lacks params.
      TypeError: as `schedule_free`.

    Example: from (3, 4), a step along the first axis.

      >>> tx, params = keep_radius(), jnp.array([[3.0, 4.0]])
      >>> update, _ = tx.update(jnp.array([[-3.0, 0.0]]), tx.init(params), params)
      >>> print(params + update)
      [[0. 5.]]

    Reference: Wen et al. 2025 (Hyperball; later arXiv:2606.16899).
    """

    def start(param):
        if isinstance(param, jax.ShapeDtypeStruct):
            dtype = numerics.compute_dtype(param.dtype)
            return jnp.zeros([], numerics.real_dtype(dtype))
        return root_mean_square(numerics.widen(param))

    def init_fn(params):
        check_inexact(params, "params")
        return RadiusState(map_leaves(start, params))

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "keep_radius")
        expect_state(state, RadiusState, "keep_radius")

        def move(update, radius, param):
            if jnp.ndim(param) < 2:
                return update
            param = numerics.widen(param)
            moved = param + numerics.widen(update)
            ratio = numerics.divide_or_zero(radius, root_mean_square(moved))
            return ratio * moved - param

        moved = map_leaves(move, updates, state.radius, params)
        return cast_like(moved, params), state

    return optax.GradientTransformation(init_fn, update_fn)


def copy_param(param: Any, dtype: Any = None) -> jax.Array:
    """Return a copy of a parameter; of an abstract one, zeros.

    Args:
      param: the parameter.
      dtype: of the copy; None means the parameter's, float32 or wider.
    """
    dtype = dtype or numerics.compute_dtype(numerics.dtype_of(param))
    if isinstance(param, jax.ShapeDtypeStruct):
        return numerics.full_like(param, 0, dtype)
    return placement.copy_beside(param, param, dtype)
