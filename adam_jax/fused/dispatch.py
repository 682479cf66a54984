"""The choice between ways to compute the same: the kernels, and XLA."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AxisType

from adam_jax.fused.cpu import native


def kernels() -> dict[str, ModuleType]:
    """Return the modules of the kernels by the platform that they run on."""
    found = {"cpu": native} if native.available() else {}
    try:  # Pallas takes a moment to import, and is not for every system
        from adam_jax.fused.gpu import triton
        from adam_jax.fused.tpu import mosaic
    except ImportError:
        return found
    return found | {"cuda": triton, "tpu": mosaic}


def choose(
    fused: Mapping[str, Callable[..., Any]], composed: Callable[..., Any]
) -> Any:
    """Make a function that runs one of `fused` on its platform, `composed` elsewhere.

    It also runs `composed` under vmap, when it is differentiated, and in a program for
    several devices, which XLA cuts into shards (inside a shard_map it is cut already).

    Args:
      fused: by platform, functions from arrays to a list of arrays that call a kernel.
        They must not close over tracers.
      composed: the same function without a kernel; the reference.
    """

    @custom_vmap
    def switch(*values):
        default = jax.make_jaxpr(composed)(*values)
        others = {name: jax.make_jaxpr(f)(*values) for name, f in fused.items()}
        return _choice.bind(*values, composed=default, fused=tuple(others.items()))

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


# Whether a program is for several devices is known only when it is lowered.
_choice = Primitive("fused_or_composed")
_choice.multiple_results = True


@_choice.def_impl
def _compose(*values: Any, composed: Any, fused: Any) -> list[Any]:
    del fused  # only without jit
    return jaxpr_as_fun(composed)(*values)


@_choice.def_abstract_eval
def _result_types(*types: Any, composed: Any, fused: Any) -> list[Any]:
    del types, fused
    return composed.out_avals


def _lower_for(platform: str | None) -> Callable[..., Any]:
    """Return the lowering rule of `_choice` for a platform, or for all others."""

    def lower(ctx, *values, composed, fused):
        kernel = dict(fused).get(platform)
        chosen = kernel if kernel and _is_whole(ctx.module_context) else composed
        lowered = mlir.lower_fun(jaxpr_as_fun(chosen), multiple_results=True)
        return lowered(ctx, *values)

    return lower


mlir.register_lowering(_choice, _lower_for(None))
for _platform in ("cpu", "cuda", "tpu"):
    mlir.register_lowering(_choice, _lower_for(_platform), platform=_platform)


def _is_whole(context: Any) -> bool:
    """Return whether the program being lowered is for one device, or for one shard."""
    axes = context.axis_context
    if hasattr(axes, "manual_axes"):  # in a shard_map
        return axes.manual_axes == frozenset(axes.mesh.axis_names)
    return getattr(axes, "num_devices", 1) == 1


def is_sharded(array: Any) -> bool:
    """Return whether XLA may shard an array; it cannot shard a call of the kernel.

    Args:
      array: an array, perhaps traced.
    """
    mesh = jax.typeof(array).sharding.mesh
    return not mesh.empty and any(t != AxisType.Manual for t in mesh.axis_types)
