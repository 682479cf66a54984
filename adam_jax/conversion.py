"""Converting an optimizer state from one way to store moments to another."""

from typing import Any

import jax

from adam_jax import numerics
from adam_jax.formats import Blocks, Storage, as_format, decode_blocks
from adam_jax.transforms import MomentsState
from adam_jax.updates import TraceState


def convert_state(
    state: Any, *, mu_dtype: Storage = None, nu_dtype: Storage = None
) -> Any:
    """Store the moments of `state` in other formats, for a run that goes on in them.

    Values are rounded to the nearest; counts and weights stay.

    Args:
      state: an optimizer state, or anything that holds one: a chain's, a TrainState.
      mu_dtype: how to store first moments and traces: a dtype, a `Format` or the name
        of one; None leaves them as they are.
      nu_dtype: the same for second moments.

    Returns:
      The state that an optimizer with this mu_dtype and nu_dtype continues.

    Raises:
      ValueError: for an unknown format.

    Example:

      >>> import adam_jax, jax.numpy as jnp
      >>> params = jnp.ones((64, 64))
      >>> state = adam_jax.adam(1e-3).init(params)
      >>> small = convert_state(state, mu_dtype="8bit", nu_dtype="8bit")
      >>> nbytes = sum(x.nbytes for x in jax.tree.leaves(small))
      >>> print(f"{nbytes / params.size:.3f} bytes a parameter")
      2.067 bytes a parameter
    """
    mu_format = mu_dtype if mu_dtype is None else as_format("mu_dtype", mu_dtype)
    nu_format = nu_dtype if nu_dtype is None else as_format("nu_dtype", nu_dtype)

    def convert(moment, format, signed):
        if format is None:
            return moment
        return jax.tree.map(
            lambda stored: format.init(numerics.widen(decode_blocks(stored)), signed),
            moment,
            is_leaf=lambda x: isinstance(x, Blocks),
        )

    def convert_node(node):
        if isinstance(node, MomentsState):
            return node._replace(
                mu=convert(node.mu, mu_format, True),
                nu=convert(node.nu, nu_format, False),
            )
        if isinstance(node, TraceState):
            return node._replace(trace=convert(node.trace, mu_format, True))
        return node

    return jax.tree.map(
        convert_node, state, is_leaf=lambda x: isinstance(x, MomentsState | TraceState)
    )
