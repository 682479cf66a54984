"""A step in one pass over memory, for whatever optimizer: native where it can be.

step = jax.jit(fused.step(tx), donate_argnums=(0, 2))
params, state = step(params, grads, state)

The optimizers that the kernel was written for go by their names here too: `fused.adamw`
is `adam_jax.adamw`.
"""

from adam_jax.family.both_moments import adam, adamw
from adam_jax.fused.stepping import backend, step
from adam_jax.fused.training import apply_gradients, update_model

__all__ = ["adam", "adamw", "apply_gradients", "backend", "step", "update_model"]
