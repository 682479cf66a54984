"""Checks of an optimizer's invariants, in every step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from adam_jax import numerics
from adam_jax.checks import check_like, prune
from adam_jax.stages.flow import expect_optimizer, expect_updates, expect_whole
from adam_jax.states.reading import read_moments


def checked(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Check the invariants of an optimizer in every step.

    Updates must be finite and have the shapes and dtypes of the parameters. Moments
    must be finite, and second moments >= 0. Either count grows by one, or no step is
    taken and the moments stay the same. The error names the leaf.

    The checks are checkify's, so you must wrap the step that uses `checked(tx)`, as in
    `chex.chexify(jax.jit(step))` or `checkify.checkify(step)`. Without it, JAX refuses
    to compile the step: "Cannot abstractly evaluate a checkify.check which was not
    functionalized".

    Args:
      tx: the optimizer to check; it receives the extra arguments of `update`.

    Raises:
      AssertionError: at the first trace, if the structure, shapes or dtypes of the
        updates are not those of the parameters.
      TypeError: at the first trace, if `tx` takes or emits `Moments`.

    Example: the second element of a gradient is NaN.

      >>> import adam_jax
      >>> tx = checked(adam_jax.adam(1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> update = checkify.checkify(jax.jit(tx.update))
      >>> error, _ = update({"w": jnp.array([1, jnp.nan])}, tx.init(params), params)
      >>> print(error.get().splitlines()[0].split(" (")[0])
      updates['w'] has 1 elements that are not finite
    """
    expect_optimizer(tx, "checked")
    inner = optax.with_extra_args_support(tx)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "checked")
        params = prune(params, updates)
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
                        f"parameter is {own}: end the chain with scale_by_lr() or "
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
