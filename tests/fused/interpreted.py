"""What tests of fused steps share: the reference, and kernels that are interpreted."""

from types import SimpleNamespace

import jax.numpy as jnp
import optax

from adam_jax.fused import plan, stepping


def half(count):
    """Return 1/2, without XLA's knowing: products with it are exact."""
    return jnp.where(count < 1000, 0.5, 0.9)


# With powers of two every bit is defined, whatever XLA contracts.
EXACT = {"b1": half, "b2": half, "weight_decay": 0.25}


def interpret(kernel, monkeypatch):
    """Let the CPU interpret a kernel; return a list of the leaves that it will step."""
    stepped = []

    def step(groups, *args):
        stepped.extend(groups)
        return kernel.step(groups, *args, interpret=True)

    interpreted = SimpleNamespace(takes=kernel.takes, step=step)
    for module in (plan, stepping):
        monkeypatch.setattr(module, "kernels", lambda: {"cpu": interpreted})
    return stepped


def update_and_apply(tx, params, grads, state):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state
