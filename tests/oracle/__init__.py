"""The oracle: every optimizer as a slow loop, transcribed from its source.

One generator an optimizer. Each takes the gradients that one scalar parameter p sees
and its initial value, and yields `(update, p)` at every step, where
`p_t = p_{t-1} + update_t`. Float64 Python scalars throughout, complex ones allowed;
no JAX, no Optax, no arrays. Argument names, defaults and switches are Optax's; where
they depart from the paper, the docstring says so. Methods whose step depends on a whole
array are generators of the same kind over NumPy arrays, in `arrays.py`.

Any hyperparameter may be a schedule: a function of the step count before it is
incremented, so of 0 at the first step. `t` counts from 1, as in the papers.

    steps = oracle("adam", [0.3, -0.1], param=1.0, learning_rate=1e-3)
    updates, params = trajectory("adam", grads, params0, learning_rate=1e-3)
"""

import numpy as np

from oracle import descendants, divisions, originals
from oracle.arrays import ARRAY_ORACLES

__all__ = ["ARRAY_ORACLES", "ORACLES", "oracle", "trajectory"]

ORACLES = originals.ORACLES | descendants.ORACLES | divisions.ORACLES


def oracle(name, grads, param=0.0, **hyperparams):
    """Return [(update, param), ...], one pair a step, for one scalar parameter."""
    return list(ORACLES[name](grads, param, **hyperparams))


def trajectory(name, grads, params=0.0, **hyperparams):
    """Map the oracle over gradients of shape (steps, ...): return updates, params.

    Both have the shape of grads; params broadcasts against one step of it. An array
    oracle sees them whole, as one leaf.
    """
    is_complex = np.iscomplexobj(grads) or np.iscomplexobj(params)
    dtype = np.complex128 if is_complex else np.float64
    grads = np.asarray(grads, dtype)
    params = np.broadcast_to(np.asarray(params, dtype), grads.shape[1:]).copy()
    updates_out, params_out = np.empty_like(grads), np.empty_like(grads)
    if name in ARRAY_ORACLES:
        steps = ARRAY_ORACLES[name](grads, params, **hyperparams)
        for t, (update, param) in enumerate(steps):
            updates_out[t], params_out[t] = update, param
        return updates_out, params_out
    for i in np.ndindex(params.shape):
        scalars = grads[(slice(None), *i)].tolist()
        steps = oracle(name, scalars, params[i].item(), **hyperparams)
        for t, (update, param) in enumerate(steps):
            updates_out[(t, *i)], params_out[(t, *i)] = update, param
    return updates_out, params_out
