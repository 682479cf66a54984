"""What must always hold of an optimizer, checked at every step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from adam_jax import numerics
from adam_jax.checks import check_like
from adam_jax.stages.flow import expect_updates, expect_whole
from adam_jax.states.reading import read_moments


def checked(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Check at every step what must always hold of an optimizer.

    It checks that updates are finite, and shaped and typed like the parameters; that
    moments are finite and second moments >= 0; and that count grows by one, or that no
    step is taken and the moments stay. An error names the leaf.

    The checks are checkify's: a step that uses `checked(tx)` must be wrapped, as in
    `chex.chexify(jax.jit(step))` or `checkify.checkify(step)`.

    Args:
      tx: the optimizer to check; extra arguments of `update` reach it.

    Example:

      >>> import adam_jax
      >>> tx = checked(adam_jax.adam(1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> update = checkify.checkify(jax.jit(tx.update))
      >>> error, _ = update({"w": jnp.array([1, jnp.nan])}, tx.init(params), params)
      >>> print(error.get().splitlines()[0].split(" (")[0])
      updates['w'] has 1 elements that are not finite
    """
    inner = optax.with_extra_args_support(tx)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "checked")
        updates, new_state = inner.update(updates, state, params, **extra_args)
        expect_whole(updates, "checked")
        if params is not None:
            check_like(updates, params, "updates", "params")
            for (path, update), param in zip(
                jax.tree_util.tree_leaves_with_path(updates),
                jax.tree.leaves(params),
                strict=True,
            ):
                own = numerics.dtype_of(param)
                # round_to_params() emits float32 for bfloat16 parameters.
                if numerics.dtype_of(update) not in (own, numerics.compute_dtype(own)):
                    raise AssertionError(
                        f"updates{jax.tree_util.keystr(path)} is {update.dtype}, its "
                        f"parameter {own}: end the chain with scale_by_lr() or "
                        "cast_to_params()."
                    )
        before = read_moments(state, updates)
        after = read_moments(new_state, updates)
        for old, new in zip(before, after, strict=True):
            for path, nu in jax.tree_util.tree_leaves_with_path(new.nu):
                name, negative = f"nu{jax.tree_util.keystr(path)}", jnp.sum(nu < 0)
                checkify.check(
                    negative == 0, name + " has {n} negative elements", n=negative
                )
            grown = new.count == optax.safe_increment(old.count)
            same = [new.count == old.count]
            for moments in ((old.mu, new.mu), (old.nu, new.nu)):
                pairs = zip(*map(jax.tree.leaves, moments), strict=True)
                same += [jnp.array_equal(x, y) for x, y in pairs]
            checkify.check(
                grown | jnp.all(jnp.array(same)),  # or no step was taken
                "count went from {a} to {b}",
                a=old.count,
                b=new.count,
            )
        _check_finite(updates, "updates")
        for new in after:
            _check_finite(new.mu, "mu")
            _check_finite(new.nu, "nu")
        return updates, new_state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _check_finite(tree: Any, name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        bad = jnp.sum(~jnp.isfinite(leaf))
        text = f"{name}{jax.tree_util.keystr(path)}"
        checkify.check(bad == 0, text + " has {n} elements that are not finite", n=bad)
