"""From updates to updates, by the root mean squares of whole leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_map_with_path

from adam_jax import numerics, placement
from adam_jax.checks import fit_params
from adam_jax.hyperparams import check_no_schedule, check_non_negative
from adam_jax.moments.sharing import mean_of_whole
from adam_jax.stages.division import emit
from adam_jax.stages.flow import expect_updates


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

        def clip_leaf(path, update):
            update = numerics.widen(update)
            rms = placement.at_leaf(path, _rms, update)
            return numerics.divide(update, jnp.maximum(1, rms / threshold))

        return emit(tree_map_with_path(clip_leaf, updates), updates, params)

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

    def scale(updates, params=None):
        if params is None:
            raise ValueError(
                "scale_by_param_rms() needs the parameters: call "
                "tx.update(grads, state, params), not tx.update(grads, state)."
            )
        expect_updates(updates, "scale_by_param_rms")

        def scale_leaf(path, update, param):
            rms = placement.at_leaf(path, _rms, numerics.widen(param))
            return numerics.widen(update) * jnp.maximum(rms, least)

        return tree_map_with_path(scale_leaf, updates, fit_params(params, updates))

    return optax.stateless(scale)


def _rms(x: jax.Array) -> jax.Array:
    """Return the root mean square of the leaf at work, of which `x` may be a piece."""
    squares = numerics.abs_sq(numerics.bound(x))
    if not x.size:  # the mean of nothing is NaN
        return jnp.zeros([], squares.dtype)
    return numerics.sqrt(mean_of_whole(squares, tuple(range(x.ndim)))).reshape([])
