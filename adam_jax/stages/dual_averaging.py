"""A stage that remembers where the parameters started."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from adam_jax import numerics, placement
from adam_jax.checks import check_inexact, check_like
from adam_jax.hyperparams import Hyperparam, at, check_decay
from adam_jax.stages.flow import expect_params, expect_state
from adam_jax.stages.iterates import copy_param


class StartState(NamedTuple):
    """State of `average_from_start`.

    Attributes:
      steps: int32 scalar, the steps taken, at which a schedule is evaluated.
      start: the parameters at `init`, a copy.
    """

    steps: ArrayLike
    start: Any


def average_from_start(momentum: Hyperparam = 0.9) -> optax.GradientTransformation:
    """Take updates from where the parameters started, and average the results.

        goal = start - updates
        params <- momentum * params + (1 - momentum) * goal

    What is emitted is to be subtracted from the parameters, as other updates are: a
    chain ends in `scale_by_lr(1.0)`.

    Args:
      momentum: the weight of the parameters as they are, in [0, 1).

    Raises:
      ValueError: if momentum is out of range, or if update() is not given params.
      TypeError: for `Moments`, or if the state belongs to another transformation.

    Example: a parameter went from 5 to 4, and is to go to 5 - 2.

      >>> tx = average_from_start(momentum=0.9)
      >>> state = tx.init(jnp.float32(5))
      >>> updates, _ = tx.update(jnp.float32(2), state, jnp.float32(4))
      >>> print(f"{updates:.1f}")
      0.1

    Reference: Defazio & Jelassi 2021 (MADGRAD), Algorithm 1; Nesterov 2009 (dual
    averaging).
    """
    momentum = check_decay("momentum", momentum)

    def init_fn(params):
        check_inexact(params, "params")

        def copy(param):  # in the memory that the parameter is in
            kept = copy_param(param, numerics.dtype_of(param))
            return placement.beside(kept, param)

        return StartState(jnp.zeros([], jnp.int32), jax.tree.map(copy, params))

    def update_fn(updates, state, params=None):
        params = expect_params(updates, params, "average_from_start")
        expect_state(state, StartState, "average_from_start")
        check_like(updates, state.start, "updates", "start of the optimizer's state")

        def move(update, start, param):
            kinds = map(numerics.dtype_of, (update, start, param))
            dtype = numerics.compute_dtype(*kinds)
            arrays = update, placement.on_device(start), param
            update, start, param = (jnp.asarray(x, dtype) for x in arrays)
            kept = at(momentum, state.steps, numerics.real_dtype(dtype))
            return (1 - kept) * ((param - start) + update)

        moved = jax.tree.map(move, updates, state.start, params)
        return moved, StartState(optax.safe_increment(state.steps), state.start)

    return optax.GradientTransformation(init_fn, update_fn)
