"""Adam and AdamW in one pass over memory, on CPU: a native step with the same state.

`fused.adamw(...)` stands wherever `adam_jax.adamw(...)` does, and either continues the
other's run. Its `step` updates parameters in place, which moves the least memory.
"""

from adam_jax.fused.training import apply_gradients as apply_gradients
from adam_jax.fused.training import update_model as update_model
from adam_jax.fused.transformation import Fused as Fused
from adam_jax.fused.transformation import adam as adam
from adam_jax.fused.transformation import adamw as adamw
from adam_jax.fused.transformation import backend as backend
