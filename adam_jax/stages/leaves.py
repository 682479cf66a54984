"""Stages that measure each leaf as a whole, and scale it by what they find."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.checks import check_inexact
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_no_schedule,
    check_non_negative,
    exact,
)
from adam_jax.measures import map_leaves, mean, norm, root_mean_square
from adam_jax.stages.division import emit
from adam_jax.stages.flow import (
    expect_moments,
    expect_params,
    expect_second,
    expect_state,
    expect_updates,
    widen,
)
from adam_jax.stages.updates import ScheduledState


def clip_rms(threshold: Any) -> optax.GradientTransformation:
    """Scale each leaf down to a root mean square of at most `threshold`.

        u <- u / max(1, rms(u) / threshold)

    Args:
      threshold: > 0, a number or a 0-d array, not a schedule.

    Raises:
      ValueError: if it is negative or not finite.
      TypeError: if it is a schedule; for `Moments`.

    Example: 3 and 4 have the root mean square 3.5355.

      >>> updates, _ = clip_rms(1.0).update(jnp.array([3.0, 4.0]), optax.EmptyState())
      >>> print(updates)
      [0.84852815 1.1313709 ]

    Reference: Shazeer & Stern 2018 (Adafactor), section 6.

    Differs from `optax.clip_by_block_rms`: it computes in float32 or wider, its
    derivative is finite at 0, and in `in_shard_map` the leaf is the whole.
    """
    name = "clipping_threshold"
    threshold = check_no_schedule(name, check_non_negative(name, threshold))

    def clip(updates, params=None):
        expect_updates(updates, "clip_rms")

        def clip_leaf(update):
            rms = root_mean_square(update)
            return numerics.divide(update, jnp.maximum(1, rms / threshold))

        return emit(map_leaves(clip_leaf, widen(updates)), updates, params)

    return optax.stateless(clip)


def scale_by_param_rms(least: Any = 1e-3) -> optax.GradientTransformation:
    """Multiply the update of each leaf by the root mean square of its parameters.

        u <- u * max(rms(params), least)

    Args:
      least: what a leaf of smaller parameters, such as 0, is scaled by; >= 0, a number
        or a 0-d array, not a schedule.

    Raises:
      ValueError: if least is negative or not finite, or if update() is not given
        params.
      TypeError: if it is a schedule; for `Moments`.

    Example:

      >>> tx, params = scale_by_param_rms(), jnp.array([3.0, 4.0])
      >>> print(tx.update(jnp.ones(2), tx.init(params), params)[0])
      [3.535534 3.535534]

    Reference: Shazeer & Stern 2018 (Adafactor), section 8.

    Differs from `optax.scale_by_param_block_rms` as `clip_rms` does from Optax's.
    """
    least = check_no_schedule("least", check_non_negative("least", least))

    def scale_leaf(update, param):
        rms = root_mean_square(numerics.widen(param))
        return numerics.widen(update) * jnp.maximum(rms, least)

    return _with_params("scale_by_param_rms", scale_leaf)


def scale_to_params() -> optax.GradientTransformation:
    """Scale the update of each matrix to the norm of its parameters.

        u <- |params| * u / |u|

    The norm is that of all elements of the leaf. Leaves with fewer than two axes pass
    as they are. An update of 0 stays 0.

    Raises:
      ValueError: if update() is not given params.
      TypeError: for `Moments`.

    Example:

      >>> tx, params = scale_to_params(), jnp.array([[3.0, 4.0]])
      >>> print(tx.update(jnp.array([[2.0, 0.0]]), tx.init(params), params)[0])
      [[5. 0.]]

    Reference: Wen et al. 2025 (Hyperball; later arXiv:2606.16899).
    """

    def scale_leaf(update, param):
        if jnp.ndim(param) < 2:
            return update
        param, update = numerics.widen(param), numerics.widen(update)
        ratio = numerics.divide_or_zero(
            root_mean_square(param), root_mean_square(update)
        )
        return ratio * update

    return _with_params("scale_to_params", scale_leaf)


def scale_by_trust_ratio(
    trust_coefficient: Hyperparam = exact(1.0), eps: Hyperparam = exact(0.0)
) -> optax.GradientTransformation:
    """Scale the update of each leaf to the size of the leaf.

        updates <- updates * trust_coefficient * ||params|| / (||updates|| + eps)

    Where a norm is 0, updates stay as they are. Norms are over a leaf.

    Args:
      trust_coefficient: the factor, >= 0.
      eps: added to the norm of the updates, >= 0.

    Raises:
      ValueError: if a hyperparameter is out of range, or if update() is not given
        params.
      TypeError: for `Moments`, or if the state belongs to another transformation.

    Example: parameters of norm 5 and updates of norm 1.

      >>> tx, params = scale_by_trust_ratio(0.1), jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(params), params)
      >>> print(updates)
      [0.5 0. ]

    Reference: You, Gitman & Ginsburg 2017 (LARS), equation 6; You et al. 2020 (LAMB),
    Algorithm 2.

    Differs from `optax.scale_by_trust_ratio`, which takes norms of bfloat16 parameters
    in bfloat16.
    """
    trust_coefficient = check_non_negative("trust_coefficient", trust_coefficient)
    eps = check_non_negative("eps", eps)

    def init_fn(params):
        del params
        return ScheduledState(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "scale_by_trust_ratio")
        expect_state(state, ScheduledState, "scale_by_trust_ratio")

        def scale(update, param):
            length, size = norm(update), norm(param)
            factor = at(trust_coefficient, state.steps, size.dtype)
            divisor = length + at(eps, state.steps, size.dtype)
            ratio = numerics.divide_or_zero(factor * size, divisor)
            ratio = jnp.where((length == 0) | (size == 0), 1, ratio)
            return ratio.astype(update.dtype) * update

        scaled = map_leaves(scale, widen(updates), widen(params))
        return scaled, ScheduledState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init_fn, update_fn)


def _with_params(
    stage: str, scale_leaf: Callable[[Any, Any], Any]
) -> optax.GradientTransformation:
    """Return a stage that scales each update as its parameter says."""

    def scale(updates, params=None):
        params = expect_params(updates, params, stage)
        return map_leaves(scale_leaf, updates, params)

    return optax.stateless(scale)


def divide_by_rms(
    *stages: optax.GradientTransformation, eps: Hyperparam = exact(1e-8)
) -> optax.GradientTransformation:
    """Shorten the updates of a leaf whose gradients are larger than nu expects.

        rms = sqrt(mean(|g|^2 / max(nu, eps^2)))
        updates <- updates / max(1, rms)

    The mean is over a leaf.

    Args:
      *stages: the stages that turn `Moments` into the updates to shorten. With weight
        decay among them, it is shortened as well.
      eps: the root of the least nu, >= 0, in units of the gradient.

    Raises:
      ValueError: if eps is out of range; at the first trace, if there is no second
        moment.
      TypeError: at the first trace, for updates in place of `Moments`, or if `stages`
        emit `Moments`.

    Example: nu is 4.75 where the squared gradient is 9: the update would be 1.38.

      >>> from adam_jax import precondition, scale_by_moments
      >>> tx = optax.chain(
      ...     scale_by_moments(b1=None, b2=0.5), divide_by_rms(precondition())
      ... )
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 3.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      >>> print(f"{updates:.4f}")
      1.0000

    Reference: Wortsman et al. 2023 (StableAdamW), Algorithm 2; Shazeer & Stern 2018
    (Adafactor), section 6.
    """
    eps = check_non_negative("eps", eps)
    inner = optax.with_extra_args_support(optax.chain(*stages))

    def update_fn(updates, state, params=None, **extra_args):
        m = expect_moments(updates, "divide_by_rms")
        expect_second(m, "divide_by_rms")
        updates, state = inner.update(updates, state, params, **extra_args)
        expect_updates(updates, "divide_by_rms")

        def shorten(update, grad, nu):
            least = at(eps, m.count - 1, nu.dtype)
            grad = numerics.bound(numerics.widen(grad)).astype(update.dtype)
            squares = numerics.abs_sq(grad).astype(nu.dtype)
            ratio = numerics.divide_or_zero(squares, jnp.maximum(nu, least * least))
            rms = numerics.sqrt(mean(ratio))
            return numerics.divide(update, jnp.maximum(rms, 1))

        shortened = map_leaves(shorten, widen(updates), m.grads, m.nu)
        return emit(shortened, updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def adjust_leaves(
    measure: Callable[[jax.Array], jax.Array],
    use: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    stage: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Measure one number of each leaf, and adjust the leaf by what becomes of it.

    The numbers of all leaves are a pytree of scalars. They go through a stage of their
    own, which may average them.

    Args:
      measure: leaf -> a real scalar, like `largest` and `norm`.
      use: (leaf, measured, number) -> the adjusted leaf, like `shorten`, where `number`
        is what the stage makes of `measured`. All are float32 or wider.
      stage: from updates to updates; None takes the numbers as they are.

    Raises:
      TypeError: at the first trace, for `Moments`.

    Example: the leaf keeps its direction; its length is Adam's step for its norm.

      >>> from adam_jax import bias_correct, precondition, scale_by_moments
      >>> tx = adjust_leaves(
      ...     norm,
      ...     lambda leaf, size, number: leaf / size * number,
      ...     optax.chain(scale_by_moments(), bias_correct(), precondition()),
      ... )
      >>> leaf = jnp.array([30.0, 40.0])
      >>> print(tx.update(leaf, tx.init(leaf))[0].round(3))
      [0.6 0.8]

    Reference: Huang et al. 2025 (Stable-SPAM), Algorithm 1.
    """
    inner = stage or optax.identity()

    def init_fn(params):
        check_inexact(params, "params")

        def start(param):
            dtype = numerics.compute_dtype(numerics.dtype_of(param))
            return jnp.zeros([], numerics.real_dtype(dtype))

        return inner.init(jax.tree.map(start, params))

    def update_fn(updates, state, params=None):
        expect_updates(updates, "adjust_leaves")
        check_inexact(updates, "updates")
        wide = widen(updates)
        measured = map_leaves(measure, wide)
        numbers, state = inner.update(measured, state)
        adjusted = jax.tree.map(use, wide, measured, numbers)
        return emit(adjusted, updates, params), state

    return optax.GradientTransformation(init_fn, update_fn)


def shorten(leaf: jax.Array, size: jax.Array, same: jax.Array) -> jax.Array:
    """Return a leaf, whose norm is `size`, shortened to norm 1 if it is longer.

    For `adjust_leaves` without a stage: `same` is `size` again, and is not used.
    """
    del same
    return leaf / jnp.maximum(size, 1)


def resize(leaf: jax.Array, size: jax.Array, goal: jax.Array) -> jax.Array:
    """Return a leaf scaled from one `size` to another, the `goal`; 0 stays 0."""
    return numerics.divide_or_zero(leaf, size) * goal


def resize_spikes(leaf: jax.Array, size: jax.Array, limit: jax.Array) -> jax.Array:
    """Return a leaf in which elements beyond a limit shrink, the largest to the limit.

    The `size` is that of its largest element.
    """
    return jnp.where(jnp.abs(leaf) > limit, resize(leaf, size, limit), leaf)
