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
    """State of `compensate_params`.

    Attributes:
      residual: pytree like params, int16: the float32 parameter is the bfloat16 one,
        this many float32 last places away. 0 for leaves of other dtypes.
    """

    residual: Any


def compensate_params() -> optax.GradientTransformation:
    """Round `params + updates` to the nearest bfloat16, and keep what is cut off.

        master <- (params, residual) + updates        in float32
        params <- master rounded to bfloat16;  residual <- master - params

    A float32 has 16 bits more than a bfloat16, and the residual holds all of them:
    the parameters are those of float32 training with the same updates, rounded. It is
    deterministic, for 2 bytes of state a parameter, where `round_to_params` has none.
    Leaves of float32 and wider pass unchanged.

    Raises:
      ValueError: if update() is not given the parameters.
      TypeError: for float16 parameters.

    Example: a thousand updates of 1e-4, each below the last bit of 1.0.

      >>> params, tx = jnp.ones((), jnp.bfloat16), compensate_params()
      >>> state = tx.init(params)
      >>> for _ in range(1000):
      ...     updates, state = tx.update(jnp.float32(1e-4), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      1.10156

    Reference: the compensated summation of Kahan 1965, with nothing lost.
    """

    def init_fn(params):
        _check_dtypes(params, "compensate_params")
        # Not a constant: as the moments, it is to be sharded like the parameter.
        return CompensateParamsState(
            jax.tree.map(lambda p: jnp.where(p == p, 0, 0).astype(jnp.int16), params)
        )

    def update_fn(updates, state, params=None):
        params = _expect_params(updates, params, "compensate_params")

        def move(update, param, residual):
            master = numerics.join_float32(param, residual) + update
            return numerics.split_float32(master)

        def emit(update, param, residual):
            if param.dtype != jnp.bfloat16:
                return update
            after, _ = move(update, param, residual)
            return after.astype(jnp.float32) - param.astype(jnp.float32)

        def withhold(update, param, residual):
            if param.dtype != jnp.bfloat16:
                return residual
            return move(update, param, residual)[1]

        emitted = jax.tree.map(emit, updates, params, state.residual)
        residual = jax.tree.map(withhold, updates, params, state.residual)
        return emitted, CompensateParamsState(residual)

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
