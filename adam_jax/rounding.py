"""Training bfloat16 parameters without a float32 copy of them.

bfloat16 keeps 8 bits: added to 1.0, an update of 1e-3 is lost, step after step. The
stages here come last in a chain. They choose the bfloat16 value that a parameter shall
have and emit the float32 difference to it, so that a plain `optax.apply_updates` lands
on that value. It does exactly, unless the new value is smaller than 2^-16 of the old:
then the parameter is off by up to 2^-24 of the old value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import numerics
from adam_jax.checks import check_like
from adam_jax.transforms import expect_updates


class RoundToParamsState(NamedTuple):
    """State of `round_to_params`: int32 count, of which the random bits are a hash."""

    count: ArrayLike


def round_to_params(seed: int = 0) -> optax.GradientTransformation:
    """Round `params + updates` stochastically to bfloat16.

    In expectation nothing is lost: an update of 1/8 of the last bit moves the parameter
    by that bit in one step of eight. Leaves of float32 and wider pass unchanged.

    Args:
      seed: of the random bits, a hash of (seed, step, leaf, element).

    Raises:
      ValueError: if update() is not given the parameters.
      TypeError: for float16 parameters.

    Example: 100 steps of 1e-3 from 1.0; Optax ends at 1.0.

      >>> import adam_jax
      >>> params = jnp.ones(1000, jnp.bfloat16)
      >>> tx = optax.chain(adam_jax.adam(1e-3), round_to_params())
      >>> state = tx.init(params)
      >>> step = jax.jit(lambda p, s: tx.update(jnp.ones_like(p), s, p))
      >>> for _ in range(100):
      ...     updates, state = step(params, state)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params.dtype, f"{params.astype(jnp.float32).mean():.2f}")
      bfloat16 0.90

    Reference: Zamirai et al. 2020 (arXiv:2010.06192), section 3.
    """

    def init_fn(params):
        _check_dtypes(params, "round_to_params")
        return RoundToParamsState(jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None):
        params = _expect_params(updates, params, "round_to_params")
        leaf_numbers = _number_leaves(params)

        def round_leaf(update, param, i):
            if param.dtype != jnp.bfloat16:
                return update
            before = param.astype(jnp.float32)
            bits = numerics.random_bits(param.shape, (seed, state.count, i))
            after = numerics.round_to_bfloat16(before + update, bits)
            return after.astype(jnp.float32) - before

        rounded = jax.tree.map(round_leaf, updates, params, leaf_numbers)
        return rounded, RoundToParamsState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init_fn, update_fn)


class CompensateParamsState(NamedTuple):
    """State of `compensate_params`: what rounding withheld, bfloat16 like params."""

    residual: Any


def compensate_params() -> optax.GradientTransformation:
    """Round `params + updates` to the nearest bfloat16, and remember what was lost.

        wanted = params + (updates + residual)
        params <- round(wanted);  residual <- wanted - params

    Deterministic, at 2 bytes of state a parameter, where `round_to_params` has none.
    Leaves of float32 and wider pass unchanged; their residual stays 0.

    Raises:
      ValueError: if update() is not given the parameters.
      TypeError: for float16 parameters.

    Reference: Kahan 1965; Zamirai et al. 2020 (arXiv:2010.06192), section 3.
    """

    def init_fn(params):
        _check_dtypes(params, "compensate_params")
        # Not a constant: as in the moments, it is to be sharded like the parameter.
        return CompensateParamsState(
            jax.tree.map(lambda p: jnp.where(p == p, 0, 0).astype(jnp.bfloat16), params)
        )

    def update_fn(updates, state, params=None):
        params = _expect_params(updates, params, "compensate_params")

        def move(update, param, residual):
            """Return the difference to emit."""
            if param.dtype != jnp.bfloat16:
                return update
            before = param.astype(jnp.float32)
            wanted = before + (update + residual.astype(jnp.float32))
            return wanted.astype(jnp.bfloat16).astype(jnp.float32) - before

        def withhold(update, param, residual, moved):
            if param.dtype != jnp.bfloat16:
                return residual
            # In this order small numbers are subtracted from small ones.
            lost = (update + residual.astype(jnp.float32)) - moved
            return lost.astype(jnp.bfloat16)

        moved = jax.tree.map(move, updates, params, state.residual)
        residual = jax.tree.map(withhold, updates, params, state.residual, moved)
        return moved, CompensateParamsState(residual)

    return optax.GradientTransformation(init_fn, update_fn)


def _check_dtypes(params: Any, stage: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if numerics.dtype_of(leaf) == jnp.float16:
            raise TypeError(
                f"{stage}() rounds to bfloat16, but params"
                f"{jax.tree_util.keystr(path)} is float16: train it as bfloat16, or "
                "keep it in float32."
            )


def _expect_params(updates: Any, params: Any, stage: str) -> Any:
    if params is None:
        raise ValueError(
            f"{stage}() rounds the parameters, so update() needs them: call "
            "tx.update(grads, state, params)."
        )
    expect_updates(updates, stage)
    check_like(updates, params, "updates", "params")
    return params


def _number_leaves(tree: Any) -> Any:
    structure = jax.tree.structure(tree)
    return structure.unflatten(range(structure.num_leaves))
