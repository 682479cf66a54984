"""A step in one pass over memory, for any optimizer: native where possible.

step = jax.jit(fused.step(tx), donate_argnums=(0, 2))
params, state = step(params, grads, state)

The optimizers that the kernel was written for are also available here: `fused.adamw` is
`adam_jax.adamw`.
"""

from adam_jax.family.both_moments import adam, adamw
from adam_jax.fused.stepping import backend, step
from adam_jax.fused.training import apply_gradients, update_model

__all__ = ["adam", "adamw", "apply_gradients", "backend", "step", "update_model"]
