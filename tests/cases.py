"""What the tests run over: optimizers and chains by name, and whole trajectories."""

import functools

import jax
import numpy as np
import optax

import adam_jax
from adam_jax import (
    add_decayed_weights,
    bias_correct,
    correct_step_size,
    precondition,
    running_max,
    scale_by_lr,
    scale_by_moments,
)


def adam_eps_hat(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return optax.chain(
        scale_by_moments(b1, b2),
        correct_step_size(),
        precondition(eps),
        scale_by_lr(learning_rate),
    )


def adam_l2(learning_rate, weight_decay=1e-4, **kwargs):
    return optax.chain(
        add_decayed_weights(weight_decay), adam_jax.adam(learning_rate, **kwargs)
    )


def amsgrad_raw(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return optax.chain(
        scale_by_moments(b1, b2),
        running_max(),
        bias_correct(),
        precondition(eps),
        scale_by_lr(learning_rate),
    )


def ema(learning_rate, decay=0.9):
    return optax.chain(
        scale_by_moments(decay, None), bias_correct(), scale_by_lr(learning_rate)
    )


# Everything that the oracle knows: the table, and the variants that are chains.
MAKERS = adam_jax.OPTIMIZERS | {
    "adam_eps_hat": adam_eps_hat,
    "adam_l2": adam_l2,
    "amsgrad_raw": amsgrad_raw,
    "ema": ema,
}


def rising(count):
    """A schedule for decays, of Python numbers and of arrays."""
    return 0.95 - 0.5 / (2.0 + count)


def falling(count):
    """A schedule for everything that is not a decay."""
    return 1e-2 / (1.0 + 0.1 * count)


CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {"momentum": rising, "nesterov": True}),
    ("adagrad", {}),
    ("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0}),
    ("rmsprop", {}),
    ("rmsprop", {"eps_in_sqrt": False, "initial_scale": 1.0}),
    ("rmsprop", {"bias_correction": True, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"centered": True, "momentum": 0.9, "eps": 1e-3}),
    ("rmsprop", {"decay": rising, "bias_correction": True}),
    ("adam", {}),
    ("adam", {"b2": 0.99, "eps": 1e-3, "eps_root": 1e-4}),
    ("adam", {"b1": 0.0}),
    ("adam", {"b1": rising, "b2": rising, "eps": falling, "learning_rate": falling}),
    ("simplified_adam", {}),
    ("adam_eps_hat", {"eps": 1e-3}),
    ("adam_l2", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": falling, "learning_rate": falling}),
    ("nadam", {}),
    ("nadam", {"b1": rising}),
    ("nadamw", {"weight_decay": 0.1}),
    ("amsgrad", {}),
    ("amsgrad", {"bias_correction_mu": False, "bias_correction_nu": False}),
    ("amsgrad_raw", {}),
    ("adamax", {}),
    ("adamax", {"eps": falling, "b2": 0.9}),
    ("adamaxw", {"weight_decay": 0.1}),
    ("adabelief", {}),
    ("adabelief", {"eps_root": 1e-4, "nesterov": True}),
    ("radam", {}),
    ("radam", {"b2": 0.99, "threshold": 4.0, "nesterov": True, "eps_root": 1e-4}),
    ("yogi", {}),
    ("lion", {"weight_decay": 0.1}),
    ("ema", {}),
]


def case_id(case):
    """Name a case after its optimizer and its hyperparameters."""
    name, kwargs = case
    return "-".join(
        [name, *(f"{k}={getattr(v, '__name__', v)}" for k, v in kwargs.items())]
    )


def gradients(steps, seed=0):
    """Gradients of shape (steps, 6) whose scales span eight decades, zeros among them.

    The last coordinate is silent for the first half: sparse.
    """
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, 6)) * np.array([1e-6, 1e-3, 1, 10, 100, 1])
    grads[rng.random(grads.shape) < 0.1] = 0
    grads[: steps // 2, -1] = 0
    return grads


@functools.partial(jax.jit, static_argnums=0)
def _scan(tx, grads, params):
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (updates, params)

    (_, state), (updates, params) = jax.lax.scan(step, (params, tx.init(params)), grads)
    return updates, params, state


def run(tx, grads, params):
    """Return the updates and parameters of every step, and the last state, as NumPy."""
    return jax.tree.map(np.asarray, _scan(tx, grads, params))
