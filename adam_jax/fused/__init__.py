"""A step in one pass over memory, for whatever optimizer: native where it can be.

step = jax.jit(fused.step(tx), donate_argnums=(0, 2))
params, state = step(params, grads, state)
"""

from adam_jax.fused.stepping import backend as backend
from adam_jax.fused.stepping import step as step
from adam_jax.fused.training import apply_gradients as apply_gradients
from adam_jax.fused.training import update_model as update_model
