"""From updates to updates: weight decay, the learning rate, a clip.

When `update` is given the parameters, updates stay in float32 or wider up to
`scale_by_lr`, which emits them in the parameters' dtype. Without parameters, every
stage emits the dtype of its input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from typing_extensions import TypeAliasType

from adam_jax import numerics
from adam_jax.checks import check_arrays, check_inexact, fit_params, resolve_mask
from adam_jax.hyperparams import Hyperparam, at, check_non_negative
from adam_jax.recipes.notes import note_line
from adam_jax.recipes.recipe import Decay
from adam_jax.stages.division import divide_moments, emit
from adam_jax.stages.flow import (
    Moments,
    cast_like,
    expect_params,
    expect_state,
    expect_updates,
)
from adam_jax.tracing import map_leaves

Mask = TypeAliasType("Mask", Any | Callable[[Any], Any] | None)
"""A pytree of booleans, a prefix of params, or a function from params to one."""


class ScheduledState(NamedTuple):
    """State of a stage whose hyperparameter may be a schedule.

    It exists for floats and arrays too: a run may continue with a schedule.

    Attributes:
      steps: int32 scalar, the steps taken, at which a schedule is evaluated.
    """

    steps: ArrayLike


def add_decayed_weights(
    weight_decay: Hyperparam = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformation:
    """Add `weight_decay * params` to the updates.

    After `precondition` this is AdamW's decoupled decay; before `scale_by_moments` it
    is L2 regularisation, which is not AdamW.

    Args:
      weight_decay: >= 0, a number, a 0-d array or a schedule.
      mask: a pytree of booleans, a prefix of params, or a function from params to one.
        True means decay.

    Raises:
      ValueError: if weight_decay is out of range, if mask is not a prefix of params, or
        if update() is not given params.
      TypeError: if a leaf of mask is not a boolean, if an update that is to decay is an
        integer or a boolean, or if the state belongs to another transformation.

    Example:

      >>> tx, param = add_decayed_weights(0.1), jnp.float32(5)
      >>> updates, _ = tx.update(jnp.float32(1), tx.init(param), param)
      >>> print(updates)
      1.5

    Reference: Loshchilov & Hutter 2017, Algorithm 2.

    Differs from `optax.add_decayed_weights`: it multiplies in float32 or wider, and its
    state is the same for a float and for a schedule.
    """
    weight_decay = check_non_negative("weight_decay", weight_decay, half_precision=True)

    def start(params):
        del params
        return ScheduledState(jnp.zeros([], jnp.int32))

    def add(updates, state, params=None):
        expect_state(state, ScheduledState, "add_decayed_weights")
        check_inexact(updates, "updates")

        def decay_leaf(update, param):
            dtypes = numerics.dtype_of(update), numerics.dtype_of(param)
            dtype = numerics.compute_dtype(*dtypes)
            decay = at(weight_decay, state.steps, numerics.real_dtype(dtype))
            return jnp.asarray(update, dtype) + decay * jnp.asarray(param, dtype)

        decayed = map_leaves(decay_leaf, updates, params)
        rate = at(weight_decay, state.steps, jnp.float32)
        decays = [Decay(rate, param) for param in jax.tree.leaves(params)]
        note_line("decay", updates, decayed, decays)
        return decayed, ScheduledState(optax.safe_increment(state.steps))

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "add_decayed_weights")
        if mask is not None:
            resolve_mask(mask, params)
            expect_state(state, optax.MaskedState, "add_decayed_weights")
        return inner.update(updates, state, params)

    inner = optax.GradientTransformation(start, add)
    if mask is not None:
        inner = optax.masked(inner, mask)

    def init_fn(params):
        # optax.tree.map_params asks with a tree of its own, without leaves.
        if mask is not None and jax.tree.leaves(params):
            resolve_mask(mask, params)
        return inner.init(params)

    return optax.GradientTransformation(init_fn, update_fn)


def scale_by_lr(
    learning_rate: Hyperparam | None, *, flip_sign: bool = True
) -> optax.GradientTransformation:
    """Multiply by minus the learning rate, and emit the parameters' dtype.

        updates <- -learning_rate * updates

    `Moments` are first divided as `precondition()` does by default.

    Args:
      learning_rate: >= 0; a number, a 0-d array or a schedule of the step count,
        which is 0 at the first step. None leaves scale and sign as they are.
      flip_sign: False multiplies by plus the learning rate.

    Raises:
      ValueError: if the learning rate is negative or not finite.
      TypeError: if the state belongs to another transformation.

    Example: the three-stage chain is Adam.

      >>> from adam_jax import bias_correct, scale_by_moments
      >>> tx = optax.chain(scale_by_moments(), bias_correct(), scale_by_lr(1e-3))
      >>> updates, _ = tx.update(jnp.float32(5), tx.init(jnp.float32(0)))
      >>> print(f"{updates:.6f}")
      -0.001000

    Differs from `optax.scale_by_learning_rate`, where a float32 scalar turns
    bfloat16 updates into float32 ones, and a schedule's value is cast to their dtype.
    """
    if learning_rate is not None:
        learning_rate = check_non_negative(
            "learning_rate", learning_rate, half_precision=True
        )

    def init_fn(params):
        check_inexact(params, "params")
        return ScheduledState(jnp.zeros([], jnp.int32))

    def factor_at(steps, dtype):
        """Return the factor of the updates."""
        if learning_rate is None:
            return 1.0
        rate = at(learning_rate, steps, dtype)
        return -rate if flip_sign else rate

    def update_fn(updates, state, params=None):
        expect_state(state, ScheduledState, "scale_by_lr")
        emitted = updates
        if isinstance(updates, Moments):
            emitted = updates.grads
            updates = divide_moments(updates, eps=1e-8, eps_root=0.0)
        check_inexact(updates, "updates")
        if params is not None:
            emitted = fit_params(params, updates)

        def scale(update):
            update = numerics.widen(update)
            return factor_at(state.steps, update.dtype) * update

        scaled = cast_like(map_leaves(scale, updates), emitted)
        rate = -factor_at(state.steps, jnp.float32)
        rates = [rate] * len(jax.tree.leaves(updates))
        note_line("learning_rate", updates, scaled, rates)
        return scaled, ScheduledState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init_fn, update_fn)


def clip_elements(limit: Hyperparam) -> optax.GradientTransformation:
    """Bound the size of each element of the updates.

    Complex elements keep their direction.

    Args:
      limit: the largest size, >= 0: a number, a 0-d array or a schedule.

    Raises:
      ValueError: if limit is out of range.
      TypeError: at the first trace, for `Moments`, or if the state belongs to another
        transformation.

    Example: a limit that grows with the step count, which is 0 at the first step.

      >>> tx = clip_elements(lambda count: count**0.25)
      >>> state, sizes = tx.init(jnp.float32(0)), []
      >>> for _ in range(17):
      ...     updates, state = tx.update(jnp.float32(-3), state)
      ...     sizes.append(float(updates))
      >>> print(sizes[0], sizes[1], sizes[16])
      -0.0 -1.0 -2.0

    Reference: Taniguchi et al. 2024 (ADOPT), section 4.

    Differs from `optax.clip`, which takes no schedule, and no complex updates.
    """
    limit = check_non_negative("limit", limit)

    def init_fn(params):
        check_inexact(params, "params")
        return ScheduledState(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None):
        expect_updates(updates, "clip_elements")
        expect_state(state, ScheduledState, "clip_elements")
        check_inexact(updates, "updates")

        def clip(update):
            update = numerics.widen(update)
            largest = at(limit, state.steps, numerics.real_dtype(update.dtype))
            if not jnp.iscomplexobj(update):
                return jnp.clip(update, -largest, largest)
            size = jnp.abs(update)
            return jnp.where(size > largest, update / size * largest, update)

        clipped = emit(jax.tree.map(clip, updates), updates, params)
        return clipped, ScheduledState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init_fn, update_fn)


def cast_to_params() -> optax.GradientTransformation:
    """Emit updates in the parameters' dtype, for chains not ending in `scale_by_lr`.

    Without parameters, updates pass unchanged.

    Raises:
      TypeError: if a leaf is not an array, or for `Moments`.
      AssertionError: if updates do not have the structure and shapes of the parameters.

    Example:

      >>> updates, params = jnp.float32(0.1), jnp.bfloat16(1)
      >>> tx = cast_to_params()
      >>> print(tx.update(updates, tx.init(params), params)[0].dtype)
      bfloat16
    """

    def cast(updates, params=None):
        check_arrays(updates, "updates")
        if params is None:
            return updates
        return cast_like(updates, fit_params(params, updates))

    return optax.stateless(cast)
