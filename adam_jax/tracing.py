"""Functions of single leaves, traced once for all that are alike.

A model has many leaves of one shape. Operations on each would be traced one by one.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import DynamicJaxprTracer

from adam_jax import placement


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is traced once for arguments of equal types.

    Inside of `jax.jit` only; elsewhere it is called as it is, and nothing is compiled.
    It may read `placement.current_cut`, and arrays of the trace that calls `once`.

    Args:
      function: from pytrees of arrays to pytrees of arrays.
    """
    jitted: dict[Any, Any] = {}

    def call(*args):
        leaves = jax.tree.leaves(args)
        traced = any(isinstance(x, DynamicJaxprTracer) for x in leaves)
        if not traced or not all(hasattr(x, "dtype") for x in leaves):
            return function(*args)  # a number would become an array
        cut = placement.current_cut()
        if cut not in jitted:
            jitted[cut] = jax.jit(lambda *args: function(*args))
        return jitted[cut](*args)

    return call


def map_leaves(function: Callable[..., Any], *trees: Any) -> Any:
    """Return `jax.tree.map(function, *trees)`, traced once for leaves of equal types.

    Args:
      function: as in `once`.
      *trees: pytrees of one structure.
    """
    return jax.tree.map(once(function), *trees)
