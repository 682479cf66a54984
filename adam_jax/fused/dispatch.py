"""Two ways to compute the same: where the kernel is called, and where XLA does it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap


def choose(fused: Callable[..., Any], composed: Callable[..., Any]) -> Any:
    """Return what takes the kernel on CPU, and XLA's way under vmap and derivatives.

    Args:
      fused: arrays to a list of arrays, with calls of the kernel. It must not close
        over tracers.
      composed: the same without; the reference.
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
        return jax.jvp(composed, primals, tangents)

    return choose
