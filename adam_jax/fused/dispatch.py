"""The choice between ways to compute the same: the kernels, and XLA."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType

from adam_jax.fused.cpu import native


def kernels() -> dict[str, ModuleType]:
    """Return the modules of the kernels by the platform that they run on."""
    found = {"cpu": native} if native.available() else {}
    try:  # Pallas takes a moment to import, and is not for every system
        from adam_jax.fused.gpu import triton
    except ImportError:
        return found
    return found | {"cuda": triton}


def choose(
    fused: Mapping[str, Callable[..., Any]], composed: Callable[..., Any]
) -> Any:
    """Make a function that runs one of `fused` on its platform, `composed` elsewhere.

    It also runs `composed` under vmap and when it is differentiated.

    Args:
      fused: by platform, functions from arrays to a list of arrays that call a kernel.
        They must not close over tracers.
      composed: the same function without a kernel; the reference.
    """

    @custom_vmap
    def switch(*values):
        return jax.lax.platform_dependent(*values, default=composed, **fused)

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
