"""The in-place step for Flax: TrainState and NNX."""

from typing import Any


def apply_gradients(train_state: Any, grads: Any) -> Any:
    """Step a `flax.training.train_state.TrainState` whose tx is a fused optimizer.

    As `train_state.apply_gradients(grads=grads)`, in one pass. Donate the state to the
    jitted training step, so that it happens in place.
    """
    tx = train_state.tx
    params, opt_state = tx.step(train_state.params, grads, train_state.opt_state)
    return train_state.replace(
        step=train_state.step + 1, params=params, opt_state=opt_state
    )


def update_model(optimizer: Any, model: Any, grads: Any) -> None:
    """Step an NNX model whose `nnx.Optimizer` holds a fused optimizer.

    As `optimizer.update(model, grads)`, in one pass.
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
    params, state = optimizer.tx.step(params, grads, state)
    nnx.update(model, params)
    nnx.update(optimizer.opt_state, nnx.state(state))
    optimizer.step[...] += 1
