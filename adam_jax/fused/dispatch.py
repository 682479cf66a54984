"""The choice between two ways to compute the same: the native kernel, and XLA."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType


def choose(fused: Callable[..., Any], composed: Callable[..., Any]) -> Any:
    """Make a function that runs `fused` on CPU and `composed` everywhere else.

    It also runs `composed` under vmap and when it is differentiated.

    Args:
      fused: a function from arrays to a list of arrays, which calls the kernel. It must
        not close over tracers.
      composed: the same function without the kernel; the reference.
    """

    @custom_vmap
    def switch(*values):
        return jax.lax.platform_dependent(*values, cpu=fused, default=composed)

    @switch.def_vmap
    def vectorise(axis_size, batched, *values):
        axes = [0 if b else None for b in batched]
        mapped = jax.vmap(composed, in_axes=axes, axis_size=axis_size)(*values)
        return mapped, [True] * len(mapped)

    choose = jax.custom_jvp(switch)

    @choose.defjvp
    def differentiate(primals, tangents):
        # Under vmap every output of `choose` is mapped, so it must be here, too.
        return choose(*primals), jax.jvp(composed, primals, tangents)[1]

    return choose


def is_sharded(array: Any) -> bool:
    """Return whether XLA may shard an array; it cannot shard a call of the kernel.

    Args:
      array: an array, perhaps traced.
    """
    mesh = jax.typeof(array).sharding.mesh
    return not mesh.empty and any(t != AxisType.Manual for t in mesh.axis_types)
