"""`optax.MultiSteps`, taken apart so that the step inside of it can be fused."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.recipes.notes import note_gate


def take_apart(update: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same update; that of a MultiSteps with its optimizer outside of it.

    Optax runs the optimizer inside a branch, where nobody can see what it does. Here a
    MultiSteps around nothing gathers the gradients, and then the optimizer takes its
    step where they are complete.

    Args:
      update: of a transformation, or of an `optax.MultiSteps`.
    """
    multi = getattr(update, "__self__", None)
    if not isinstance(multi, optax.MultiSteps):
        return update
    if vars(multi).get("_opt") is not multi.inner_opt:
        return update  # an Optax that keeps it elsewhere
    gathering: Any = copy.copy(multi)
    gathering._opt = optax.with_extra_args_support(optax.identity())

    def update_apart(updates, state, params=None, **extra_args):
        before = state.inner_opt_state
        outside = state._replace(inner_opt_state=optax.EmptyState())
        grads, after = gathering.update(updates, outside, params, **extra_args)
        complete = after.gradient_step != state.gradient_step
        stepped, new = multi.inner_opt.update(grads, before, params, **extra_args)
        emitted = jax.tree.map(lambda u: complete * u, stepped)
        kept = jax.tree.map(lambda n, o: jnp.where(complete, n, o), new, before)
        note_gate((stepped, emitted), (new, before, kept), complete)
        return emitted, after._replace(inner_opt_state=kept)

    return update_apart
