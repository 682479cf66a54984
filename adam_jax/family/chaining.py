"""A whole optimizer: an `optax.chain` with a name."""

from typing import Any

import optax

from adam_jax.hyperparams import a_type
from adam_jax.stages.flow import not_a_state
from adam_jax.states.buffers import PackedState


def chain(
    name: str, *stages: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Chain stages, and refuse a state that was made by another chain.

    Args:
      name: the optimizer's name, for the error message.
      *stages: the transformations, as in `optax.chain`.

    Raises:
      TypeError: at the first trace, if the state belongs to another chain.
    """
    inner = optax.chain(*stages)

    def update_fn(updates, state, params=None, **extra_args):
        plain = isinstance(state, tuple | list) and not hasattr(state, "_fields")
        if not plain or len(state) != len(stages):
            if cure := not_a_state(state):
                found = a_type(type(state))
                raise TypeError(f"{name}() was given {found} for its state: {cure}.")
            names = [type(part).__name__ for part in state] if plain else []
            found = f"({', '.join(names)})" if plain else type(state).__name__
            raise TypeError(
                f"{name}() was given the state of another optimizer: {found}. Its own "
                f"is a tuple with a state for each stage, {len(stages)} in all: start "
                "from tx.init(params), or restore into jax.eval_shape(tx.init, params)"
                f"{_taken_off(state)}."
            )
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _taken_off(state: Any) -> str:
    """Return how to go on if a wrapper was taken off an optimizer."""
    if isinstance(state, PackedState):
        return "; without packed(), go on from adam_jax.unpack(state)"
    if hasattr(state, "inner_state"):
        return "; if a wrapper was taken off, go on from state.inner_state"
    return ""
