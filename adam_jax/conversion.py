"""The moments in an optimizer state: reading them, and storing them in another way."""

from typing import Any

import jax
import jax.numpy as jnp

from adam_jax import gathering, numerics
from adam_jax.formats import Storage, Stored, as_format, eight_bit
from adam_jax.transforms import MomentsState
from adam_jax.updates import TraceState


def find_nodes(state: Any, kind: Any) -> list[Any]:
    """Return every node of a type, or of one of several, in a state, in order."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def find_moments(state: Any) -> list[MomentsState]:
    """Return every `MomentsState` in an optimizer state, in order."""
    return find_nodes(state, MomentsState)


def load_moments(state: Any) -> tuple[Any, Any]:
    """Return mu and nu of an optimizer state as arrays, whatever they are stored in.

    Each is a pytree like the parameters, or None where there is none. Moments in a
    format of your own are returned as they are stored.

    Args:
      state: a state that holds one `MomentsState`: a chain's, a TrainState.

    Raises:
      ValueError: if it holds none, or several.
    """
    nodes = find_moments(state)
    if len(nodes) != 1:
        raise ValueError(f"expected one MomentsState in the state, found {len(nodes)}.")
    return decode_moments(nodes[0])


def decode_moments(node: MomentsState) -> tuple[Any, Any]:
    """Return mu and nu of one `MomentsState` as arrays, as `load_moments` does."""
    ours = eight_bit()  # its decoding leaves other values as they are
    return (
        gathering.load(ours, Stored(node.mu, node.mu_scales)),
        gathering.load(ours, Stored(node.nu, node.nu_scales)),
    )


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
      ValueError: for an unknown format, or a state without moments of ours.
      TypeError: for complex moments in a real format.

    Example:

      >>> import adam_jax, jax.numpy as jnp
      >>> params = jnp.ones((64, 64))
      >>> state = adam_jax.adam(1e-3).init(params)
      >>> small = convert_state(state, mu_dtype="8bit", nu_dtype="8bit")
      >>> nbytes = sum(x.nbytes for x in jax.tree.leaves(small))
      >>> print(f"{nbytes / params.size:.3f} bytes a parameter")
      2.067 bytes a parameter
    """
    mu_format = None if mu_dtype is None else as_format("mu_dtype", mu_dtype)
    nu_format = None if nu_dtype is None else as_format("nu_dtype", nu_dtype)
    found = False

    def convert(stored, format, signed):
        if format is None or stored.values is None:
            return stored
        moment = jax.tree.map(numerics.widen, gathering.load(eight_bit(), stored))
        restarted = gathering.restart(moment, format, signed)
        for x, y in zip(
            jax.tree.leaves(moment), jax.tree.leaves(restarted.values), strict=True
        ):
            if jnp.iscomplexobj(x) and not jnp.iscomplexobj(y):
                raise TypeError(f"a {x.dtype} moment cannot be stored as {y.dtype}.")
        return restarted

    def convert_node(node):
        nonlocal found
        found = found or isinstance(node, MomentsState | TraceState)
        if isinstance(node, MomentsState):
            mu = convert(Stored(node.mu, node.mu_scales), mu_format, True)
            nu = convert(Stored(node.nu, node.nu_scales), nu_format, False)
            return MomentsState(
                node.count, mu.values, nu.values, node.weights, mu.scales, nu.scales
            )
        if isinstance(node, TraceState):
            trace = convert(Stored(node.trace, node.scales), mu_format, True)
            return TraceState(node.count, *trace)
        return node

    state = jax.tree.map(
        convert_node, state, is_leaf=lambda x: isinstance(x, MomentsState | TraceState)
    )
    if not found:
        raise ValueError(
            "convert_state() found no moments: the state must be one of adam_jax's "
            "optimizers, or hold one."
        )
    return state
