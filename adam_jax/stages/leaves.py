"""From updates to updates, by the root mean squares of whole leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

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
            rms = placement.at_leaf(path, root_mean_square, update)
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

    def scale_leaf(path, update, param):
        rms = placement.at_leaf(path, root_mean_square, numerics.widen(param))
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

    Reference: Wen et al. 2025 (Hyperball).
    """

    def scale_leaf(path, update, param):
        if jnp.ndim(param) < 2:
            return update
        norms = (
            placement.at_leaf(path, root_mean_square, numerics.widen(x))
            for x in (param, update)
        )
        return numerics.divide_or_zero(*norms) * numerics.widen(update)

    return _with_params("scale_to_params", scale_leaf)


def _with_params(
    stage: str, scale_leaf: Callable[[Any, Any, Any], Any]
) -> optax.GradientTransformation:
    """Return a stage that scales each update as its parameter says."""

    def scale(updates, params=None):
        params = expect_params(updates, params, stage)
        return tree_map_with_path(scale_leaf, updates, params)

    return optax.stateless(scale)


def expect_params(updates: Any, params: Any, stage: str) -> Any:
    """Return the parameters that have updates.

    Args:
      updates: the input of a stage.
      params: the parameters, if `update` was given any.
      stage: the stage's name, for messages.

    Raises:
      ValueError: if there are none.
      TypeError: for `Moments`, or a leaf that no optimizer can step.
      AssertionError: if structures or shapes differ.
    """
    if params is None:
        raise ValueError(
            f"{stage}() needs the parameters: call tx.update(grads, state, params), "
            "not tx.update(grads, state)."
        )
    expect_updates(updates, stage)
    return fit_params(params, updates)


def root_mean_square(x: jax.Array) -> jax.Array:
    """Return the root mean square of the leaf at work, of which `x` may be a piece.

    Args:
      x: an array, float32 or wider.
    """
    squares = numerics.abs_sq(numerics.bound(x))
    if not x.size:  # the mean of nothing is NaN
        return jnp.zeros([], squares.dtype)
    return numerics.sqrt(mean_of_whole(squares, tuple(range(x.ndim)))).reshape([])


def sum_leaves(tree: Any, dtype: Any) -> jax.Array:
    """Return the sum over all leaves of what was summed over each.

    Args:
      tree: a pytree like the parameters, of real scalars. Where leaves are in pieces,
        each is of its piece, and the result of the whole.
      dtype: that of the result.
    """
    paths = [path for path, _ in tree_leaves_with_path(tree)]
    sums, _ = placement.sum_pieces(jax.tree.leaves(tree), None, paths)
    return sum((x.astype(dtype) for x in sums), jnp.zeros([], dtype))
