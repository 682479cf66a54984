"""The fused step for Flax: TrainState and NNX."""

from typing import Any

from adam_jax.fused.stepping import step
from adam_jax.hyperparams import a_type


def apply_gradients(train_state: Any, grads: Any) -> Any:
    """Step a `flax.training.train_state.TrainState`.

    It does what `train_state.apply_gradients(grads=grads)` does, in one pass where
    `step` can. Donate the state to the jitted training step to make it work in place.

    Args:
      train_state: the TrainState, with any optimizer.
      grads: a pytree like its parameters.

    Returns:
      The new TrainState.

    Raises:
      TypeError: if `train_state` is not a TrainState.

    Example: a parameter of 10 with AdamW; its weight decay is 0.1.

      >>> import adam_jax, jax.numpy as jnp
      >>> from flax.training.train_state import TrainState
      >>> tx = adam_jax.adamw(1e-3, weight_decay=0.1)
      >>> params, grads = {"w": jnp.float32(10)}, {"w": jnp.float32(7)}
      >>> state = TrainState.create(apply_fn=None, params=params, tx=tx)
      >>> state = apply_gradients(state, grads)
      >>> print(f"{state.params['w']:.3f} after step {state.step}")
      9.998 after step 1
    """
    if not all(hasattr(train_state, x) for x in ("tx", "opt_state", "replace")):
        raise TypeError(
            "fused.apply_gradients(train_state, grads) takes a TrainState first, got "
            f"{a_type(type(train_state))}: make one with TrainState.create(), or use "
            "fused.step or fused.update_model."
        )
    params, opt_state = step(train_state.tx)(
        train_state.params, grads, train_state.opt_state
    )
    return train_state.replace(
        step=train_state.step + 1, params=params, opt_state=opt_state
    )


def update_model(optimizer: Any, model: Any, grads: Any) -> None:
    """Step an NNX model, in place.

    It does what `optimizer.update(model, grads)` does, in one pass where `step` can.

    Args:
      optimizer: an `nnx.Optimizer`, with any transformation.
      model: the NNX module that it was made for.
      grads: the gradients that `nnx.grad` returned.

    Raises:
      TypeError: if an argument is of another kind, as when they are in another order.

    Example: a parameter of 10 with AdamW; its weight decay is 0.1.

      >>> import adam_jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.w = nnx.Param(jnp.float32(10))
      >>> model, tx = Model(), adam_jax.adamw(1e-3, weight_decay=0.1)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> grads = nnx.grad(lambda m: 7 * m.w[...])(model)
      >>> update_model(optimizer, model, grads)
      >>> print(f"{model.w[...]:.3f} after step {optimizer.step[...]}")
      9.998 after step 1
    """
    from flax import nnx  # Flax is optional

    in_order = isinstance(optimizer, nnx.Optimizer)
    if isinstance(model, nnx.State) and not isinstance(grads, nnx.State):
        in_order = False  # gradients in place of the model would be stepped
    if not in_order:
        found = (a_type(type(x)) for x in (optimizer, model, grads))
        raise TypeError(
            "fused.update_model(optimizer, model, grads) takes an nnx.Optimizer, the "
            f"model and its gradients, got {', '.join(found)}: call it in this order."
        )
    as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # its name before Flax 0.12.7
    params, grads, state = (
        as_pure(tree)
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
