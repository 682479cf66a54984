"""The choice between ways to compute the same, made when a program is lowered."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AxisType


def choose(
    special: Mapping[str, Callable[..., Any]],
    common: Callable[..., Any],
    pieces: int = 0,
    exports: bool = True,
) -> Any:
    """Make a function that runs one of `special` on its platform, `common` elsewhere.

    It also runs `common` under vmap, when it is differentiated, and in a program for
    several devices, which XLA cuts into shards (inside a shard_map it is cut already).

    Args:
      special: by platform, functions from arrays to a list of arrays. They must not
        close over tracers.
      common: the same function for any platform; the reference.
      pieces: XLA may cut a program that runs one of `special` for as many devices as
        divide this number; 0 for one device only.
      exports: whether an exported program, too, may run one of `special`.
    """

    @custom_vmap
    def switch(*values):
        default = jax.make_jaxpr(common)(*values)
        others = {name: jax.make_jaxpr(f)(*values) for name, f in special.items()}
        return _choice.bind(
            *values,
            common=default,
            special=tuple(others.items()),
            pieces=pieces,
            exports=exports,
        )

    @switch.def_vmap
    def vectorise(axis_size, batched, *values):
        axes = [0 if b else None for b in batched]
        mapped = jax.vmap(common, in_axes=axes, axis_size=axis_size)(*values)
        return mapped, [True] * len(mapped)

    choose = jax.custom_jvp(switch)

    @choose.defjvp
    def differentiate(primals, tangents):
        # Under vmap every output of `choose` is mapped, so it must be here, too.
        return choose(*primals), jax.jvp(common, primals, tangents)[1]

    return choose


# For how many devices a program is, is known only when it is lowered.
_choice = Primitive("special_or_common")
_choice.multiple_results = True


@_choice.def_impl
def _run_common(*values: Any, common: Any, **how: Any) -> list[Any]:
    del how  # which is for jit
    return jaxpr_as_fun(common)(*values)


@_choice.def_abstract_eval
def _result_types(*types: Any, common: Any, **how: Any) -> list[Any]:
    del types, how
    return common.out_avals


def _lower_for(platform: str | None) -> Callable[..., Any]:
    """Return the lowering rule of `_choice` for a platform, or for all others."""

    def lower(ctx, *values, common, special, pieces, exports):
        found, context = dict(special).get(platform), ctx.module_context
        allowed = exports or not context.lowering_parameters.for_export
        allowed = allowed and _allows(pieces, context)
        chosen = found if found and allowed else common
        lowered = mlir.lower_fun(jaxpr_as_fun(chosen), multiple_results=True)
        return lowered(ctx, *values)

    return lower


mlir.register_lowering(_choice, _lower_for(None))
for _platform in ("cpu", "cuda", "tpu"):
    mlir.register_lowering(_choice, _lower_for(_platform), platform=_platform)


def _allows(pieces: int, context: Any) -> bool:
    """Return whether the program being lowered is whole, or may be cut into shards."""
    axes = context.axis_context
    if hasattr(axes, "manual_axes"):  # in a shard_map
        whole = axes.manual_axes == frozenset(axes.mesh.axis_names)
        devices = axes.mesh.size
    else:
        devices = getattr(axes, "num_devices", 1)
        whole = devices == 1
    return whole or (pieces > 0 and pieces % devices == 0)


def is_sharded(array: Any) -> bool:
    """Return whether XLA may shard an array.

    Args:
      array: an array, perhaps traced.
    """
    mesh = jax.typeof(array).sharding.mesh
    return not mesh.empty and any(t != AxisType.Manual for t in mesh.axis_types)
