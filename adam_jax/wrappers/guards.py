"""Guards: skip a step that would do harm.

`skip_nonfinite` and `skip_spikes` wrap an optimizer. A skipped step emits zero updates,
leaves the state of what they wrap as it was, bit for bit, and is counted. Nothing that
is not finite ever reaches the moments: unlike `optax.apply_if_finite`, they have no
limit past which it is let in. `check_skips` raises on the host when a run is stuck.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax import numerics
from adam_jax.recipes.notes import all_finite, note_gate
from adam_jax.stages.flow import expect_state, expect_updates, expect_whole
from adam_jax.states.reading import find_nodes


class SkipState(NamedTuple):
    """State of a guard.

    Attributes:
      inner_state: of the wrapped optimizer.
      skipped: int32 scalar, the steps skipped so far.
      in_a_row: int32 scalar, the steps skipped since the last one taken.
      taken: int32 scalar, the steps taken so far.
      mean_norm: float32 scalar, the running average of the gradient norms of the steps
        taken; 0 for `skip_nonfinite`, which keeps none.
    """

    inner_state: Any
    skipped: Any
    in_a_row: Any
    taken: Any
    mean_norm: Any


def skip_nonfinite(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradients, or whose updates, are not all finite.

    Args:
      tx: the optimizer to guard; extra arguments of `update` reach it.

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
    """
    return _guard("skip_nonfinite", tx, threshold=math.inf, warmup=0, decay=None)


def skip_spikes(
    tx: optax.GradientTransformation,
    threshold: float = 5.0,
    warmup: int = 100,
    decay: float = 0.98,
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradient norm exceeds `threshold` times its average.

    The norm is the global L2 norm; its average, over the steps taken, is exponential.
    Gradients that are not finite, or whose norm overflows (above 1.8e19), are skipped
    from the first step on. A gradient that stays large is skipped for as long as it
    does: see `check_skips`.

    Args:
      tx: the optimizer to guard; extra arguments of `update` reach it.
      threshold: how many times the average is a spike, > 1.
      warmup: the number of steps taken before a spike can be told, >= 0.
      decay: of the average, in [0, 1); 0.98 averages about 50 steps.

    Raises:
      ValueError: if an argument is out of range.

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
    if not threshold > 1:
        raise ValueError(f"threshold must be greater than 1, got {threshold}.")
    if not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"warmup must be a number of steps >= 0, got {warmup!r}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be a decay rate in [0, 1), got {decay}.")
    return _guard("skip_spikes", tx, threshold, warmup, decay)


def _guard(
    name: str,
    tx: optax.GradientTransformation,
    threshold: float,
    warmup: int,
    decay: float | None,
) -> optax.GradientTransformationExtraArgs:
    inner = optax.with_extra_args_support(tx)

    def init_fn(params):
        # Three arrays, not one: a buffer cannot be donated twice.
        skipped, in_a_row, taken = (jnp.zeros([], jnp.int32) for _ in range(3))
        return SkipState(inner.init(params), skipped, in_a_row, taken, jnp.zeros([]))

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, name)
        expect_state(state, SkipState, name)
        norm = _global_norm(updates)
        sane = all_finite(updates)
        mean = state.mean_norm
        if decay is not None:
            weight = numerics.constant_weight(decay, state.taken, "float32")
            usual = mean / jnp.where(weight > 0, weight, 1)
            known = (state.taken >= warmup) & (state.taken > 0)
            sane &= jnp.isfinite(norm) & (~known | (norm <= threshold * usual))
            mean = decay * mean + (1 - decay) * norm
        stepped, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        expect_whole(stepped, name)
        sane &= all_finite(stepped, params)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(sane, n, o), new, old)

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


def check_skips(state: Any, limit: int) -> None:
    """Raise if a guard has skipped more than `limit` steps in a row.

    Call it on the host, now and then: it waits for the step.

    Args:
      state: an optimizer state that holds a guard's, anywhere.
      limit: the steps in a row that are still tolerated.

    Raises:
      RuntimeError: if there were more.
    """
    for guard in find_nodes(state, SkipState):
        check_skips(guard.inner_state, limit)
        if guard.in_a_row > limit:
            raise RuntimeError(
                f"{guard.in_a_row} steps in a row were skipped ({guard.skipped} in "
                f"all, {guard.taken} taken), more than {limit}: the gradients are "
                "not finite, or far larger than they were. Look at the loss and "
                "the data, and lower the learning rate."
            )


def _global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm of all leaves, float32; inf where squares overflow."""
    squares = [
        jnp.sum(numerics.abs_sq(numerics.widen(leaf))).astype(jnp.float32)
        for leaf in jax.tree.leaves(tree)
    ]
    return jnp.sqrt(sum(squares, start=jnp.zeros([])))
