"""Where arrays lie: in which memory, and in which pieces."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from typing_extensions import TypeAliasType

AxisName = TypeAliasType("AxisName", str | tuple[str, ...])
"""The name of an axis of a mesh, or of a vmap; or several."""

Cut = TypeAliasType("Cut", tuple[tuple[str, ...], ...])
"""The axes of a mesh that cut each axis of an array, in a shard_map; () if none does.
"""

_DEVICE = jax.memory.Space.Device


def in_host(x: Any) -> bool:
    """Return whether an array is in the host's memory.

    Args:
      x: an array, perhaps abstract.
    """
    return isinstance(x, jax.Array) and jax.typeof(x).memory_space != _DEVICE


def on_device(x: Any) -> Any:
    """Return an array in the device's memory, where it may be computed with.

    Args:
      x: an array, perhaps in the host's memory.
    """
    return jax.device_put(x, _DEVICE) if in_host(x) else x


def beside(x: Any, like: Any) -> Any:
    """Return `x` in the memory that `like` is in.

    Args:
      x: a pytree of arrays in the device's memory.
      like: an array, perhaps abstract.
    """
    return jax.device_put(x, jax.typeof(like).memory_space) if in_host(like) else x


def after(x: Any, last: Any) -> Any:
    """Return `x`, to be brought to the device once `last` is in the host's memory.

    Else XLA brings all such arrays at once, and the device holds all of them.

    Args:
      x: a pytree of arrays in the host's memory.
      last: another one; None if `x` is the first.
    """
    return lax.optimization_barrier((x, last))[0]


def copy_beside(x: Any, like: Any, dtype: Any) -> jax.Array:
    """Return a copy of `x` in the device's memory, on the devices of `like`.

    Args:
      x: an array, anywhere.
      like: an array of its shape, perhaps abstract; if JAX may move it to any device,
        so it may the copy.
      dtype: of the copy.

    Raises:
      ValueError: if the pieces of `x` are on several processes, and `like` is on one.
    """
    x = on_device(x)
    if is_committed(like):
        if spans_processes(x) != spans_processes(like):
            x = _bring_to_host(x)
        sharding: Any = like.sharding
        x = jax.device_put(x, sharding.with_memory_kind(None))
    elif is_committed(x) and not (spans_processes(x) and isinstance(like, Tracer)):
        x = _bring_to_host(x)
    return jnp.array(x, dtype)


def spans_processes(x: Any) -> bool:
    """Return whether some of an array is on devices of other processes.

    Args:
      x: an array, perhaps abstract.
    """
    return is_committed(x) and not x.is_fully_addressable


def spread_like(params: Any, tree: Any) -> Any:
    """Return a tree without arrays of one process alone, if params are on several.

    Args:
      params: a pytree of arrays.
      tree: a pytree of arrays, each the same on every process, or spread already.
    """
    shardings = [x.sharding for x in jax.tree.leaves(params) if spans_processes(x)]
    meshes = [x.mesh for x in shardings if isinstance(x, jax.NamedSharding)]
    if not meshes:
        return tree
    everywhere = jax.NamedSharding(meshes[0], jax.P())

    def spread(x):
        if spans_processes(x):
            return x
        return jax.make_array_from_callback(x.shape, everywhere, lambda i: x[i])

    return jax.tree.map(spread, tree)


def _bring_to_host(x: Any) -> np.ndarray:
    if spans_processes(x) and not x.is_fully_replicated:
        raise ValueError(
            f"an array of shape {x.shape} is in pieces on several processes, and would "
            "have to go to one alone: put the parameters on the mesh of the state, or "
            "gather the state by jax.experimental.multihost_utils.process_allgather("
            "state, tiled=True)."
        )
    return np.asarray(x)


def is_committed(x: Any) -> bool:
    """Return whether an array belongs to its devices: JAX does not move it.

    Args:
      x: an array, perhaps abstract.
    """
    concrete = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    return concrete and x.committed


def shard_length(x: jax.Array) -> int:
    """Return the length of the last axis of a shard of `x`, for explicit axes.

    Automatic axes do not count.

    Args:
      x: an array with at least one axis.
    """
    sharding = jax.typeof(x).sharding
    last = jax.sharding.NamedSharding(sharding.mesh, jax.P(sharding.spec[-1]))
    return x.shape[-1] // count_shards(last)


def count_shards(sharding: jax.sharding.NamedSharding) -> int:
    """Return into how many pieces a sharding cuts an array.

    Args:
      sharding: the sharding.
    """
    axes = [axis if isinstance(axis, tuple) else (axis,) for axis in sharding.spec]
    names = [name for axis in axes for name in axis if name is not None]
    return math.prod(sharding.mesh.shape[name] for name in names)


def whole_size(x: jax.Array) -> int:
    """Return the number of elements of the array of which `x` is a shard.

    In a shard_map, `x` is taken for a shard over all axes over which it varies, unless
    `at_leaf` says how it is cut. (With check_vma=False, JAX does not know the axes.)
    Elsewhere `x` is the whole array.

    Args:
      x: an array.
    """
    cut = current_cut()
    if cut is not None:
        return math.prod(whole_shape(x.shape, cut))
    shape = jax.typeof(x).sharding.mesh.shape
    return x.size * math.prod(shape[name] for name in _varies_over(x))


def _varies_over(x: jax.Array) -> frozenset[str]:
    """Return the axes of a shard_map over which `x` varies, as far as JAX knows."""
    aval: Any = jax.typeof(x)
    varies = getattr(aval, "manual_axis_type", None)
    return aval.vma if varies is None else varies.varying  # older jax has the vma


def axes_of_piece(x: jax.Array, axis_name: AxisName | None) -> tuple[str, ...]:
    """Return the named axes along which `x` is a piece of a whole, in a shard_map.

    Args:
      x: an array.
      axis_name: the axes that come into question, or None. With check_vma=False, and in
        a vmap, JAX does not know which of them count: then all do.
    """
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    known = knows_axes(names)
    return tuple(name for name in names if not known or name in _varies_over(x))


def knows_axes(names: Sequence[str]) -> bool:
    """Return whether JAX knows which arrays vary over some axes, of a shard_map.

    Args:
      names: of the axes.
    """
    return any(_varies_over(lax.axis_index(name)) for name in names)


def sum_pieces(
    xs: Sequence[jax.Array], axis_name: AxisName | None, paths: Sequence[Any]
) -> tuple[list[jax.Array], list[int]]:
    """Return sums of the whole from those of pieces, and the numbers of pieces.

    Args:
      xs: arrays, each a sum over one piece.
      axis_name: as in `axes_of_piece`; None means what `cut_at` says.
      paths: those of the leaves.
    """
    if axis_name is None:
        axes = [sum(cut_at(path) or (), ()) for path in paths] or [()] * len(xs)
    else:
        axes = [axes_of_piece(x, axis_name) for x in xs]
    whole = [lax.psum(x, own) if own else x for x, own in zip(xs, axes, strict=True)]
    return whole, [math.prod(lax.axis_size(name) for name in own) for own in axes]


_CUTS: ContextVar[Mapping[Any, Cut] | None] = ContextVar("cuts", default=None)
_CUT: ContextVar[Cut | None] = ContextVar("cut", default=None)


@contextlib.contextmanager
def in_pieces(cuts: Mapping[Any, Cut] | None) -> Iterator[None]:
    """Say how the leaves of all trees like the parameters are cut.

    Args:
      cuts: by the path of the leaf, as `jax.tree_util` gives it; None if unknown.
    """
    token = _CUTS.set(cuts)
    try:
        yield
    finally:
        _CUTS.reset(token)


def known_cuts() -> tuple[tuple[Any, Cut], ...] | None:
    """Return how each leaf is cut, by path, in a form that can be hashed."""
    cuts = _CUTS.get()
    return cuts if cuts is None else (*cuts.items(),)


def cut_axes() -> tuple[str, ...]:
    """Return all axes of the mesh that cut a leaf."""
    cuts = known_cuts() or ()
    return (*sorted({name for _, cut in cuts for axes in cut for name in axes}),)


def cut_at(path: Any) -> Cut | None:
    """Return how a leaf is cut, as the block of `in_pieces` says; None without one.

    Args:
      path: of the leaf.

    Raises:
      ValueError: if it does not say.
    """
    cuts = _CUTS.get()
    if cuts is None:
        return None
    if path not in cuts:
        raise ValueError(
            f"in_shard_map() was not told of a leaf {jax.tree_util.keystr(path)!r}: "
            "give it specs of the parameters of the optimizer that it wraps, and put "
            "what changes their tree, such as optax.flatten(), around it."
        )
    return cuts[path]


def at_leaf(path: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Return `function(*args)`; meanwhile, `current_cut` speaks of one leaf.

    Args:
      path: of the leaf.
      function: what to call.
      *args: its arguments.
    """
    token = _CUT.set(cut_at(path))
    try:
        return function(*args)
    finally:
        _CUT.reset(token)


def current_cut() -> Cut | None:
    """Return how the leaf at work is cut; None if nothing is known."""
    return _CUT.get()


def whole_shape(shape: tuple[int, ...], cut: Cut | None) -> tuple[int, ...]:
    """Return the shape of the whole of which an array is a piece.

    Args:
      shape: of the piece.
      cut: how the whole is cut.
    """
    if not cut:
        return shape
    pieces = [math.prod(map(lax.axis_size, names)) for names in cut]
    return tuple(n * k for n, k in zip(shape, pieces, strict=True))


def find_starts(shape: tuple[int, ...], cut: Cut) -> list[Any]:
    """Return where a piece starts in its whole, a uint32 scalar for each axis.

    Args:
      shape: of the piece.
      cut: how the whole is cut.
    """
    number = [lax.axis_index(x).astype(np.uint32) if x else np.uint32(0) for x in cut]
    return [i * np.uint32(n) for i, n in zip(number, shape, strict=True)]


def last_axis_names() -> tuple[str, ...]:
    """Return the axes of the mesh that cut the last axis of the leaf at work."""
    cut = current_cut()
    return cut[-1] if cut else ()


def last_axis_pieces() -> int:
    """Return into how many pieces the last axis of the leaf at work is cut."""
    return math.prod(map(lax.axis_size, last_axis_names()))


def reduce_pieces(
    reduce: Callable[[jax.Array, Any], jax.Array], x: jax.Array, axes: Sequence[int]
) -> jax.Array:
    """Return the mean, maximum or sum of what the pieces of the leaf at work hold.

    Args:
      reduce: `lax.pmean`, `lax.pmax` or `lax.psum`.
      x: an array.
      axes: the axes of the leaf along which to take it.
    """
    cut = current_cut()
    names = tuple(name for axis in axes for name in cut[axis]) if cut else ()
    return reduce(x, names) if names else x
