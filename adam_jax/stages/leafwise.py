"""Stages that measure a whole leaf: trust ratios, root mean squares, counts."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import tree_map_with_path

from adam_jax import numerics, placement
from adam_jax.checks import fit_params
from adam_jax.hyperparams import Hyperparam, at, check_non_negative, exact
from adam_jax.stages.division import emit
from adam_jax.stages.flow import (
    expect_moments,
    expect_second,
    expect_state,
    expect_updates,
)
from adam_jax.stages.updates import ScheduledState


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map over leaves with elements, in which `mean` and `count` are of the whole leaf.

    Leaves of `tree` without elements stay as they are.

    Args:
      function: maps a leaf of each tree to one new leaf.
      tree: a pytree of arrays.
      *rest: pytrees like it.
    """

    def map_leaf(path, x, *others):
        return placement.at_leaf(path, function, x, *others) if x.size else x

    return tree_map_with_path(map_leaf, tree, *rest)


def mean(x: jax.Array) -> jax.Array:
    """Return the mean of the leaf at work, of which `x` may be a piece.

    Args:
      x: an array with elements.
    """
    return placement.reduce_pieces(lax.pmean, x.mean(), range(x.ndim))


def count(x: jax.Array) -> int:
    """Return the number of elements of the leaf at work, of which `x` may be a piece.

    Args:
      x: an array.
    """
    return math.prod(placement.whole_shape(x.shape, placement.current_cut()))


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
        if params is None:
            raise ValueError(
                "a trust ratio needs the parameters: call "
                "tx.update(grads, state, params), not tx.update(grads, state)."
            )
        expect_updates(updates, "scale_by_trust_ratio")
        expect_state(state, ScheduledState, "scale_by_trust_ratio")

        def norm(x):
            return numerics.sqrt(mean(numerics.abs_sq(x)) * count(x))

        def scale(update, param):
            length, size = norm(update), norm(param)
            factor = at(trust_coefficient, state.steps, size.dtype)
            divisor = length + at(eps, state.steps, size.dtype)
            ratio = numerics.divide_or_zero(factor * size, divisor)
            ratio = jnp.where((length == 0) | (size == 0), 1, ratio)
            return ratio.astype(update.dtype) * update

        wide = jax.tree.map(numerics.widen, updates)
        params = jax.tree.map(numerics.widen, fit_params(params, updates))
        scaled = map_leaves(scale, wide, params)
        return scaled, ScheduledState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init_fn, update_fn)


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

        wide = jax.tree.map(numerics.widen, updates)
        return emit(map_leaves(shorten, wide, m.grads, m.nu), updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
