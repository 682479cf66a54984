"""`optax.MultiSteps`, taken apart so that the step inside it can be fused."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.recipes.notes import note_gate


def take_apart(update: Callable[..., Any]) -> Callable[..., Any]:
    """Move the optimizer of an `optax.MultiSteps` out of it, and return its update.

    Optax runs the optimizer inside a branch, where its recipes cannot be noted. Here a
    MultiSteps around an identity gathers the gradients, and the optimizer takes its
    step when they are complete. Any other update is returned as it is.

    Args:
      update: the `update` of a transformation or of an `optax.MultiSteps`.
    """
    multi = getattr(update, "__self__", None)
    if not isinstance(multi, optax.MultiSteps):
        return update
    if getattr(update, "__func__", None) is not optax.MultiSteps.update:
        return update  # of a subclass, which may do more
    if vars(multi).get("_opt") is not multi.inner_opt:
        return update  # this Optax keeps its optimizer elsewhere
    gathering: Any = copy.copy(multi)
    gathering._opt = optax.GradientTransformationExtraArgs(_not_yet, _pass_on)

    def update_apart(updates, state, params=None, **extra_args):
        before = state.inner_opt_state
        outside = state._replace(inner_opt_state=_not_yet(params))
        grads, after = gathering.update(updates, outside, params, **extra_args)
        complete = after.inner_opt_state
        stepped, new = multi.inner_opt.update(grads, before, params, **extra_args)
        emitted = jax.tree.map(
            lambda u: jnp.where(complete, u, jnp.zeros_like(u)), stepped
        )
        kept = jax.tree.map(
            lambda n, o: jnp.where(complete, n, o).astype(o.dtype), new, before
        )
        note_gate((stepped, emitted), (new, before, kept), complete)
        return emitted, after._replace(inner_opt_state=kept)

    return update_apart


def _not_yet(params: Any) -> jax.Array:
    """Return the state of an identity that has not been called: false."""
    del params
    return jnp.zeros([], bool)


def _pass_on(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
    """Return the updates; the state then tells that they are complete."""
    del state, params, extra_args
    return updates, jnp.ones([], bool)
