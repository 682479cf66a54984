"""The step in one pass for Flax: TrainState and NNX."""

from typing import Any

from adam_jax.fused.stepping import step


def apply_gradients(train_state: Any, grads: Any) -> Any:
    """Step a `flax.training.train_state.TrainState`.

    As `train_state.apply_gradients(grads=grads)`, in one pass where `step` can. Donate
    the state to the jitted training step, so that it happens in place.

    Args:
      train_state: the TrainState, with any optimizer.
      grads: a pytree like its parameters.

    Returns:
      The new TrainState.
    """
    params, opt_state = step(train_state.tx)(
        train_state.params, grads, train_state.opt_state
    )
    return train_state.replace(
        step=train_state.step + 1, params=params, opt_state=opt_state
    )


def update_model(optimizer: Any, model: Any, grads: Any) -> None:
    """Step an NNX model, in place.

    As `optimizer.update(model, grads)`, in one pass where `step` can.

    Args:
      optimizer: an `nnx.Optimizer`, with any optimizer.
      model: the NNX module that it was made for.
      grads: what `nnx.grad` returned.
    """
    from flax import nnx  # only who trains NNX models needs it

    params, grads, state = (
        nnx.as_pure(tree)
        for tree in (
            nnx.state(model, optimizer.wrt),
            nnx.state(grads, optimizer.wrt),
            optimizer.opt_state,
        )
    )
    params, state = step(optimizer.tx)(params, grads, state)
    nnx.update(model, params)
    nnx.update(optimizer.opt_state, nnx.state(state))
    optimizer.step[...] += 1
