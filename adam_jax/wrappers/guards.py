"""Guards: skip a step that would do harm.

`skip_nonfinite` and `skip_spikes` wrap an optimizer. A skipped step emits zero updates,
leaves the state of the wrapped optimizer as it was, bit for bit, and is counted.
Infinities and NaN never reach the moments. (`optax.apply_if_finite` lets them in after
a number of skipped steps; these guards have no such limit.) `check_skips` raises on the
host when a run is stuck.

To look at updates takes another pass over parameters and moments. So a guard does not
look at those that Adam's own lines make of finite gradients, which are finite. It does
not see that moments or parameters were infinite or NaN before it came.
"""

import inspect
import math
from types import CodeType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adam_jax import numerics, placement
from adam_jax.checks import prune
from adam_jax.hyperparams import shown
from adam_jax.placement import AxisName
from adam_jax.recipes.notes import all_finite, are_finite, collecting, note_gate
from adam_jax.stages.flow import (
    expect_optimizer,
    expect_state,
    expect_updates,
    expect_values,
    expect_whole,
)
from adam_jax.states.reading import find_nodes


class SkipState(NamedTuple):
    """State of a guard.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      skipped: int32 scalar, the number of steps skipped so far.
      in_a_row: int32 scalar, the number of steps skipped since the last one taken.
      taken: int32 scalar, the number of steps taken so far.
      mean_norm: float32 scalar, the running average of the gradient norms of the steps
        taken, corrected for its start; 0 for `skip_nonfinite`, which does not need it.
    """

    inner_state: Any
    skipped: Any
    in_a_row: Any
    taken: Any
    mean_norm: Any


def skip_nonfinite(
    tx: optax.GradientTransformation, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradients or updates are not all finite.

    Updates that Adam's own lines make are not looked at. They are finite if the
    gradients are, and moments and parameters were finite before the step.

    Around `optax.MultiSteps` it leaves out single gradients, and others are gathered
    in their place.

    Args:
      tx: the optimizer to guard; it receives the extra arguments of `update`.
      axis_name: in a `jax.shard_map` (or a vmap with named axes), the axes whose
        devices skip together: a NaN on one of them skips the step on all. Without it,
        each device decides for itself, and copies of a parameter part; `in_shard_map`
        names them all. Elsewhere, XLA sees whole arrays, and needs no name.

    Raises:
      TypeError: at the first trace, if the state is not a `SkipState`.
      ValueError: at init, inside an `optax.MultiSteps` that gathers infinities and NaN.

    Example: the second of three gradients is infinite.

      >>> import adam_jax
      >>> tx = skip_nonfinite(adam_jax.adam(1e-3))
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, jnp.inf, 1.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      ...     print(f"{updates:.4f}, skipped so far {state.skipped}")
      -0.0010, skipped so far 0
      0.0000, skipped so far 1
      -0.0010, skipped so far 1

    Differs from `optax.apply_if_finite`, which checks only the gradients, and lets
    infinities and NaN in after a number of skipped steps.
    """
    name = "skip_nonfinite"
    return _guard(name, tx, math.inf, warmup=0, decay=None, axis_name=axis_name)


def skip_spikes(
    tx: optax.GradientTransformation,
    threshold: float = 5.0,
    warmup: int = 100,
    decay: float = 0.98,
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradient norm exceeds `threshold` times its average.

    The norm is the global L2 norm. Its average is exponential, over the steps taken.
    Steps are skipped from the first one on if their gradients are not finite or their
    norm overflows (above 1.8e19). If gradients stay large, every step is skipped: see
    `check_skips`. In the state of a `skip_nonfinite`, the average starts anew.

    Args:
      tx: the optimizer to guard; it receives the extra arguments of `update`.
      threshold: a norm above this multiple of the average is a spike; > 1.
      warmup: how many steps must be taken before a norm can count as a spike, >= 0.
      decay: decay rate of the average, in [0, 1); 0.98 averages about 50 steps.
      axis_name: as in `skip_nonfinite`. The norm is that of the whole gradient, of
        which devices along these axes hold pieces. (Where all hold the same, it counts
        once, if the shard_map checks what varies.)

    Raises:
      ValueError: if an argument is out of range; at init, inside an `optax.MultiSteps`
        that gathers infinities and NaN.
      TypeError: if an argument is not a number; at the first trace, if the state is not
        a `SkipState`.

    Example: the third of four gradients is a hundred times the first.

      >>> import adam_jax
      >>> tx = skip_spikes(adam_jax.sgd(0.1), warmup=2)
      >>> state = tx.init(jnp.float32(0))
      >>> for grad in (1.0, 1.0, 100.0, 2.0):
      ...     updates, state = tx.update(jnp.float32(grad), state)
      ...     print(f"{updates:.1f}")
      -0.1
      -0.1
      0.0
      -0.2
    """
    for name, value in (("threshold", threshold), ("decay", decay)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, got {value!r}.")
    if not threshold > 1:
        raise ValueError(f"threshold must be greater than 1, got {threshold}.")
    if not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"warmup must be a number of steps >= 0, got {warmup!r}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be a decay rate in [0, 1), got {decay}.")
    return _guard("skip_spikes", tx, threshold, warmup, decay, axis_name)


def _guard(
    name: str,
    tx: optax.GradientTransformation,
    threshold: float,
    warmup: int,
    decay: float | None,
    axis_name: AxisName | None,
) -> optax.GradientTransformationExtraArgs:
    expect_optimizer(tx, name)
    inner = optax.with_extra_args_support(tx)

    def init_fn(params):
        _expect_finite_sums(name, init_fn.__code__)
        # Three arrays instead of one: a buffer cannot be donated twice.
        skipped, in_a_row, taken = (jnp.zeros([], jnp.int32) for _ in range(3))
        return SkipState(inner.init(params), skipped, in_a_row, taken, jnp.zeros([]))

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, name)
        expect_state(state, SkipState, name, can_wrap=True)
        params = prune(params, updates)
        mean, axes = state.mean_norm, axis_name or placement.cut_axes()
        if decay is None:
            sane = are_finite(jax.tree.leaves(updates))
        else:
            norm = _global_norm(updates, axis_name)
            known = mean > 0  # not at the first step, nor behind skip_nonfinite
            usual = ~known | (state.taken < warmup) | (norm <= threshold * mean)
            sane = jnp.isfinite(norm) & usual
            weight = numerics.constant_weight(decay, state.taken + 1, "float32")
            mean = jnp.where(known, mean + (1 - decay) / weight * (norm - mean), norm)
        with collecting() as notes:
            stepped, inner_state = inner.update(
                updates, state.inner_state, params, **extra_args
            )
        expect_whole(stepped, name)
        sane &= all_finite(notes, stepped, updates)
        if axes:
            sane = lax.pmin(sane.astype(jnp.int32), axes) > 0

        def keep(new, old):
            def choose(new, old):
                chosen = jnp.where(sane, *map(placement.on_device, (new, old)))
                return placement.beside(chosen, old)

            return jax.tree.map(choose, new, old)

        emitted = keep(stepped, jax.tree.map(jnp.zeros_like, stepped))
        kept = keep(inner_state, state.inner_state)
        note_gate((stepped, emitted), (inner_state, state.inner_state, kept), sane)
        one = jnp.where(sane, 0, 1).astype(jnp.int32)
        return emitted, SkipState(
            inner_state=kept,
            skipped=jnp.where(sane, state.skipped, optax.safe_increment(state.skipped)),
            in_a_row=(state.in_a_row + one) * one,
            taken=jnp.where(sane, optax.safe_increment(state.taken), state.taken),
            mean_norm=jnp.where(sane, mean, state.mean_norm),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _expect_finite_sums(name: str, guard: CodeType) -> None:
    """Refuse to be initialized by an `optax.MultiSteps` that gathers everything.

    It clears its sum of gradients with a product by zero, which leaves a NaN in it for
    ever. The guard inside cannot mend that, and would skip every later step. There is
    no harm with a guard outside as well.

    Args:
      name: the guard's name, for the message.
      guard: the code of the `init` of guards.

    Raises:
      ValueError: if that is so.
    """
    frame = inspect.currentframe()
    while frame and frame.f_code is not optax.MultiSteps.init.__code__:
        frame = frame.f_back
    if frame is None:
        return
    steps = frame.f_locals["self"]
    outer = frame.f_back
    while outer and outer.f_code is not guard:
        outer = outer.f_back
    skips = getattr(steps, "_should_skip_update_fn", None)
    default = getattr(skips, "__qualname__", "").startswith("MultiSteps.__init__.")
    overridden = type(steps).update is not optax.MultiSteps.update
    if default and not overridden and not outer:
        raise ValueError(
            f"{name}() inside optax.MultiSteps comes too late: a NaN stays in the sum "
            f"of gradients for ever. Write {name}(optax.MultiSteps(tx, n)), or give "
            "MultiSteps should_skip_update_fn=optax.skip_not_finite."
        )


def check_skips(state: Any, limit: int) -> None:
    """Raise if a guard has skipped more than `limit` steps in a row.

    Call it on the host, now and then: it waits for the step to finish.

    Args:
      state: an optimizer state that contains the state of a guard, at any depth.
      limit: how many steps in a row may be skipped.

    Raises:
      RuntimeError: if more were skipped.
      TypeError: if limit is not an integer, or inside a jitted function.

    Example: all three gradients are NaN.

      >>> import adam_jax
      >>> tx = skip_nonfinite(adam_jax.adam(1e-3))
      >>> state = tx.init(jnp.float32(0))
      >>> for _ in range(3):
      ...     _, state = tx.update(jnp.float32(jnp.nan), state)
      >>> check_skips(state, limit=3)
      >>> try:
      ...     check_skips(state, limit=2)
      ... except RuntimeError as error:
      ...     print(str(error).split(":")[0])
      3 steps in a row were skipped (3 in all, 0 taken), more than 2
    """
    if not isinstance(limit, int | np.integer):
        raise TypeError(
            f"check_skips(state, limit) takes a number of steps, got {shown(limit)}."
        )
    for guard in find_nodes(state, SkipState):
        expect_values(guard.in_a_row, "skipped steps")
        check_skips(guard.inner_state, limit)
        if guard.in_a_row > limit:
            raise RuntimeError(
                f"{guard.in_a_row} steps in a row were skipped ({guard.skipped} in "
                f"all, {guard.taken} taken), more than {limit}: the gradients are "
                "not finite, or far larger than before. Look at the loss and "
                "the data, and lower the learning rate."
            )


def _global_norm(tree: Any, axis_name: AxisName | None) -> jax.Array:
    """Return the L2 norm of all leaves in float32, inf if their squares overflow."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    squares = [
        jnp.sum(numerics.abs_sq(numerics.widen(leaf))).astype(jnp.float32)
        for _, leaf in leaves
    ]
    paths = [path for path, _ in leaves]
    squares, _ = placement.sum_pieces(squares, axis_name, paths)
    return jnp.sqrt(sum(squares, start=jnp.zeros([])))
