"""Training bfloat16 parameters without a float32 copy of them.

bfloat16 keeps 8 bits: an update of 1e-3 to a parameter of 1.0 is lost, step after step.
The two transformations here wrap an optimizer, or come last in a chain. They choose the
new bfloat16 value of a parameter and emit the float32 difference to it, so that a plain
`optax.apply_updates` arrives at that value. It does so exactly, unless the new value is
smaller than 2^-16 times the old one: then the parameter is off by up to 2^-24 times the
old one.

As a wrapper, as in `round_to_params(adamw(1e-3))`, they pass the parameters to the
optimizer in float32, so that updates arrive in float32. Last in a chain, they receive
updates that `scale_by_lr` has already rounded to bfloat16. These are off by up to 2^-9
of themselves, and a weight decay that is smaller than the step by this factor is lost.

(`optax.apply_if_finite` refuses updates whose dtype is not that of the gradients. Use
`skip_nonfinite` instead.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import numerics, placement, randomness
from adam_jax.checks import check_inexact, check_like
from adam_jax.hyperparams import check_whole
from adam_jax.recipes.notes import note_line
from adam_jax.recipes.recipe import Rounding
from adam_jax.stages.flow import (
    expect_optimizer,
    expect_params,
    expect_state,
    expect_whole,
)
from adam_jax.states.reading import is_hole


class RoundToParamsState(NamedTuple):
    """State of `round_to_params`.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      count: int32 scalar, the number of steps taken; random bits are a hash of it.
    """

    inner_state: Any
    count: ArrayLike


def round_to_params(
    tx: optax.GradientTransformation | None = None, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Round `params + updates` stochastically to bfloat16.

    In expectation nothing is lost: an update of 1/8 of the last bit moves the parameter
    by that bit in one step out of eight. Leaves of float32 or wider are not rounded.

    Args:
      tx: the optimizer whose updates to round; None rounds the updates that arrive.
      seed: in [0, 2^32); random bits are a hash of (seed, step, leaf, element).

    Raises:
      ValueError: if update() is called without params.
      TypeError: for float16, integer or boolean parameters.
      AssertionError: if updates do not have the structure and shapes of the parameters.

    Example: 100 steps of 1e-3 from 1.0; Optax ends at 1.0.

      >>> import adam_jax
      >>> params = jnp.ones(1000, jnp.bfloat16)
      >>> tx = round_to_params(adam_jax.adam(1e-3))
      >>> state = tx.init(params)
      >>> step = jax.jit(lambda p, s: tx.update(jnp.ones_like(p), s, p))
      >>> for _ in range(100):
      ...     updates, state = step(params, state)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params.dtype, f"{params.astype(jnp.float32).mean():.2f}")
      bfloat16 0.90

    Reference: Zamirai et al. 2020 (arXiv:2010.06192), section 3.
    """
    seed = check_whole("seed", seed, 0)
    tx = optax.identity() if tx is None else tx
    expect_optimizer(tx, "round_to_params")
    inner = optax.with_extra_args_support(tx)

    def init_fn(params):
        check_inexact(params, "params")
        _refuse_float16(params, "round_to_params")
        inner_state = inner.init(jax.tree.map(_widen, params))
        return RoundToParamsState(inner_state, jnp.zeros([], jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        expect_state(state, RoundToParamsState, "round_to_params", can_wrap=True)
        params = _expect_params(updates, params, "round_to_params")
        before = jax.tree.map(_widen, params)
        updates, inner_state = inner.update(
            updates, state.inner_state, before, **extra_args
        )
        expect_whole(updates, "round_to_params")
        paths, structure = jax.tree_util.tree_flatten_with_path(params)
        leaf_numbers = structure.unflatten(range(structure.num_leaves))

        def round_leaf(update, param, old, i):
            if numerics.dtype_of(param) != jnp.bfloat16:
                return numerics.cast(update, numerics.dtype_of(param))
            words = seed, i, state.count
            bits = placement.at_leaf(
                paths[i][0], randomness.random_bits, param.shape, words, param
            )
            new = (old + update).astype(jnp.float32)
            return numerics.round_to_bfloat16(new, bits).astype(jnp.float32) - old

        emitted = jax.tree.map(round_leaf, updates, params, before, leaf_numbers)
        roundings = [
            Rounding(seed, state.count, i, param, wide, placement.cut_at(path))
            for i, ((path, param), wide) in enumerate(
                zip(paths, jax.tree.leaves(before), strict=True)
            )
        ]
        note_line("rounding", updates, emitted, roundings)
        count = optax.safe_increment(state.count)
        return emitted, RoundToParamsState(inner_state, count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class CompensateParamsState(NamedTuple):
    """State of `compensate_params`.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      residual: pytree like params, int16: the distance from the bfloat16 parameter to
        the float32 one, in units in the last place of float32. It is
        `optax.MaskedNode()` for leaves of other dtypes.
    """

    inner_state: Any
    residual: Any


def compensate_params(
    tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Round `params + updates` to the nearest bfloat16, and keep the remainder.

        master <- (params, residual) + updates        in float32
        params <- master rounded to bfloat16;  residual <- master - params

    A float32 has 16 more bits than a bfloat16, and the residual holds all of them. The
    parameters are those of float32 training with the same gradients, rounded. It is
    deterministic and needs 2 bytes of state per parameter; `round_to_params` needs
    none. Leaves of float32 or wider are not rounded.

    Args:
      tx: the optimizer whose updates to add; it receives the float32 parameters. None
        adds the updates that arrive.

    Raises:
      ValueError: if update() is called without params.
      TypeError: for float16, integer or boolean parameters.
      AssertionError: if updates do not have the structure and shapes of the parameters.

    Example: a thousand steps of 1e-4, each smaller than the last bit of 1.0.

      >>> import adam_jax
      >>> params, tx = jnp.ones((), jnp.bfloat16), compensate_params(adam_jax.sgd(1e-4))
      >>> state = tx.init(params)
      >>> for _ in range(1000):
      ...     updates, state = tx.update(-jnp.ones_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      1.10156

    Reference: Kahan 1965, compensated summation; here nothing is lost.
    """
    tx = optax.identity() if tx is None else tx
    expect_optimizer(tx, "compensate_params")
    inner = optax.with_extra_args_support(tx)

    def is_half(param):
        return numerics.dtype_of(param) == jnp.bfloat16

    def init_fn(params):
        check_inexact(params, "params")
        _refuse_float16(params, "compensate_params")

        def start(param):
            if not is_half(param):
                return optax.MaskedNode()
            return placement.beside(numerics.full_like(param, 0, jnp.int16), param)

        return CompensateParamsState(
            inner.init(jax.tree.map(_widen, params)), jax.tree.map(start, params)
        )

    def update_fn(updates, state, params=None, **extra_args):
        expect_state(state, CompensateParamsState, "compensate_params", can_wrap=True)
        params = _expect_params(updates, params, "compensate_params")
        _expect_fit(params, state.residual)

        def join(param, residual):
            if not is_half(param):
                return param
            return numerics.join_float32(param, placement.on_device(residual))

        master = jax.tree.map(join, params, state.residual)
        updates, inner_state = inner.update(
            updates, state.inner_state, master, **extra_args
        )
        expect_whole(updates, "compensate_params")

        def split(update, param, old):
            return numerics.split_float32((old + update).astype(jnp.float32))

        def emit(update, param, old):
            if not is_half(param):
                return numerics.cast(update, numerics.dtype_of(param))
            half, _ = split(update, param, old)
            return half.astype(jnp.float32) - param.astype(jnp.float32)

        def withhold(update, param, old, residual):
            if not is_half(param):
                return residual
            return placement.beside(split(update, param, old)[1], residual)

        emitted = jax.tree.map(emit, updates, params, master)
        residual = jax.tree.map(withhold, updates, params, master, state.residual)
        return emitted, CompensateParamsState(inner_state, residual)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _widen(param: Any) -> Any:
    """Return a parameter, which may be abstract, in float32 or wider."""
    if isinstance(param, jax.ShapeDtypeStruct):
        dtype = numerics.compute_dtype(param.dtype)
        return jax.ShapeDtypeStruct(param.shape, dtype, sharding=param.sharding)
    return numerics.widen(param)


def _refuse_float16(params: Any, name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if numerics.dtype_of(leaf) == jnp.float16:
            raise TypeError(
                f"{name}() rounds to bfloat16, but params"
                f"{jax.tree_util.keystr(path)} is float16: train it as bfloat16, or "
                "keep it in float32."
            )


def _expect_fit(params: Any, residual: Any) -> None:
    """Refuse parameters that another state was made for."""
    given = dict(jax.tree_util.tree_leaves_with_path(params))
    reference = jax.tree_util.tree_map_with_path(
        lambda path, x: given.get(path, 0.0) if is_hole(x) else x,
        residual,
        is_leaf=is_hole,
    )
    check_like(params, reference, "params", "the residual of the optimizer's state")


def _expect_params(updates: Any, params: Any, name: str) -> Any:
    params = expect_params(updates, params, name)
    _refuse_float16(params, name)
    return params
