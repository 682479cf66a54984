"""Where the arrays of a state lie: shardings from those of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import tree_flatten_with_path

from adam_jax.hyperparams import shown
from adam_jax.placement import count_shards
from adam_jax.stages.flow import expect_optimizer
from adam_jax.states.parts import MOMENTS, name_leaves


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    *,
    over: str | None = None,
    memory_kind: str | Callable[[str], str | None] | None = None,
) -> Any:
    """Return a sharding for every leaf of `tx.init(params)`.

    For `jax.jit(tx.init, out_shardings=...)`, for the state in a step's in_shardings
    and out_shardings, and for the target of a restore. Nothing is computed.

    What belongs to a parameter lies as it does: each axis of a moment, of its codes and
    of their exponents is cut as that of the parameter, if it has as many elements or a
    multiple of the pieces. All else, such as counts and the buffers of `packed`, is on
    every device.

    Args:
      tx: the optimizer, of this package or of Optax.
      params: the parameters, with a NamedSharding each: arrays, or
        `jax.ShapeDtypeStruct`s that have one. On a `jax.sharding.AbstractMesh` a run
        is planned without its devices.
      over: an axis of the mesh over which moments are cut as well where parameters are
        not (ZeRO-1): along the first axis of a parameter that is not cut yet and whose
        length, in the moment and in all that is kept beside it, is a multiple of the
        mesh axis. Where there is none, as for most scalars and biases, moments lie as
        without it.
      memory_kind: the memory for moments, such as "pinned_host"; or a function to it
        from the name of a parameter, such as "dense/kernel". Those of this package stay
        in the memory in which they are put: each step brings them to the device and
        back, a few leaves at a time. (Optax's own optimizers cannot step moments in the
        host's memory.)

    Raises:
      ValueError: if a parameter has no NamedSharding, or one on another mesh, or the
        mesh no axis `over`, or its devices no such memory; if there are no parameters.
      TypeError: if tx is not an optimizer, or the memory neither a name nor None.

    Example: on a mesh of one device.

      >>> import adam_jax, jax.numpy as jnp
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
      >>> params = {"w": jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, P()))}
      >>> shardings = state_shardings(adam_jax.adam(1e-3), params, over="data")
      >>> print(*shardings[0].mu["w"].spec, *shardings[0].count.spec)
      data

    On a mesh of 4,096 devices that are elsewhere:

      >>> mesh = jax.sharding.AbstractMesh((512, 8), ("data", "model"))
      >>> sharding = NamedSharding(mesh, P(None, "model"))
      >>> w = jax.ShapeDtypeStruct((4096, 11008), jnp.float32, sharding=sharding)
      >>> shardings = state_shardings(adam_jax.adam(1e-3), {"w": w}, over="data")
      >>> shardings[0].mu["w"].shard_shape(w.shape)
      (8, 1376)
    """
    expect_optimizer(tx, "state_shardings")
    return plan_shardings(tx, params, over, memory_kind)[0]


def plan_shardings(
    tx: optax.GradientTransformation, params: Any, over: str | None, memory_kind: Any
) -> tuple[Any, Any]:
    """Return a sharding for each leaf of a state, and of each parameter's moments.

    Args:
      tx: as in `state_shardings`.
      params: as in `state_shardings`.
      over: as in `state_shardings`.
      memory_kind: as in `state_shardings`.
    """
    given, params_structure = tree_flatten_with_path(params)
    if not given:
        raise ValueError("there are no parameters, and so no mesh.")
    cut = {path: (x.shape, _expect_sharding(path, x, over)) for path, x in given}
    mesh = next(iter(cut.values()))[1].mesh
    for path, (_, sharding) in cut.items():
        if _devices(sharding) != _devices(next(iter(cut.values()))[1]):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is on another mesh than others: "
                "a state is on one."
            )
    leaves, structure = tree_flatten_with_path(jax.eval_shape(tx.init, params))
    names = name_leaves(params) if callable(memory_kind) else {}
    names = {path: name for name, path in names.items()}
    owners = [_find_owner(path, leaf.shape, cut) for path, leaf in leaves]
    beside: dict[Any, list[tuple[int, ...]]] = {path: [x.shape] for path, x in given}
    shared = {
        (owner, _moment_of(path))
        for owner, (path, leaf) in zip(owners, leaves, strict=True)
        if owner is not None and not _is_format(path) and leaf.shape != cut[owner][0]
    }
    for owner, (path, leaf) in zip(owners, leaves, strict=True):
        if owner is not None and len(leaf.shape) == len(cut[owner][0]):
            # What elements share along an axis stays whole along it; blocks do not.
            pairs = zip(leaf.shape, cut[owner][0], strict=True)
            is_shared = (owner, _moment_of(path)) in shared
            shape = [whole if own == 1 and is_shared else own for own, whole in pairs]
            beside[owner].append(tuple(shape))

    def place(shape, owner, is_moment):
        whole, sharding = cut[owner]
        kind: Any = memory_kind if is_moment else None
        kind = kind(names[owner]) if callable(kind) else kind
        if not isinstance(kind, str | None):
            raise TypeError(
                "memory_kind is the name of a memory, such as 'pinned_host', or None "
                f"for that of the device, got {shown(kind)} for params"
                f"{jax.tree_util.keystr(owner)}; a function of a parameter's name "
                "returns one of these."
            )
        spec = _cut_like(shape, whole, sharding)
        if over is not None and spec:
            spec = _cut_over(over, spec, shape, beside[owner], sharding)
        return _lay(sharding.mesh, spec, len(shape), kind)

    made = [
        _lay(mesh, [], len(leaf.shape), None)
        if owner is None
        else place(leaf.shape, owner, _is_moment(path))
        for owner, (path, leaf) in zip(owners, leaves, strict=True)
    ]
    moments = [place(x.shape, path, False) for path, x in given]
    return structure.unflatten(made), params_structure.unflatten(moments)


def _devices(sharding: NamedSharding) -> Any:
    """Return what all shardings share: devices, or how many an abstract mesh has."""
    mesh = sharding.mesh
    return mesh.size if isinstance(mesh, AbstractMesh) else sharding.device_set


def _lay(mesh: Any, spec: list[Any], rank: int, kind: str | None) -> NamedSharding:
    """Return a sharding as a compiled step does, or else the next one compiles anew."""
    spec = [*spec, *[None] * (rank - len(spec))]
    while AxisType.Explicit not in mesh.axis_types and spec and spec[-1] is None:
        spec.pop()
    return NamedSharding(mesh, P(*spec), memory_kind=kind)


def _expect_sharding(path: Any, param: Any, over: str | None) -> NamedSharding:
    """Return the sharding of a parameter, if it has one."""
    sharding = getattr(param, "sharding", None)
    name = jax.tree_util.keystr(path)
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"params{name} has no NamedSharding: place parameters on a mesh, with "
            "jax.device_put, or give ShapeDtypeStructs with a sharding."
        )
    if over is not None and over not in sharding.mesh.shape:
        raise ValueError(
            f"the mesh of params{name} has no axis {over!r}: it has "
            f"{', '.join(map(repr, sharding.mesh.shape))}."
        )
    return sharding


def _find_owner(path: Any, shape: tuple[int, ...], params: Any) -> Any:
    """Return the path of the parameter to which a leaf of a state belongs, or None."""
    if () not in params:
        # Of what a format keeps in several arrays, the path ends with a number.
        ends = [path[i:j] for j in (len(path), -1) for i in range(len(path))]
        ends = ends if _is_format(path) else ends[: len(path)]
        return next((end for end in ends if end in params), None)
    # A single array has no path to go by.
    name = getattr(path[-1], "name", "") if path else ""
    alike = shape == params[()][0] != () and name not in ("weights", "leaves", "total")
    return () if _is_moment(path) or alike else None


def _is_moment(path: Any) -> bool:
    """Return whether a leaf of a state is of a moment, or of what is kept beside it."""
    return bool(_moment_of(path))


def _moment_of(path: Any) -> str:
    """Return the moment to which a leaf of a state belongs, or ""."""
    names = [getattr(key, "name", "") for key in path]
    moments = {*MOMENTS, "residual"}
    known = (x for x in names if x in moments or x.endswith("_format"))
    return next(known, "").removesuffix("_format")


def _is_format(path: Any) -> bool:
    return any(getattr(key, "name", "").endswith("_format") for key in path)


def _cut_like(
    shape: tuple[int, ...], whole: tuple[int, ...], sharding: NamedSharding
) -> list[Any]:
    """Return how the axes of a leaf are cut, like those of its parameter."""
    if len(shape) != len(whole):
        return []
    entries = [*sharding.spec, *[None] * (len(whole) - len(sharding.spec))]

    def count(entry):
        return count_shards(NamedSharding(sharding.mesh, P(entry)))

    return [
        entry if own == length or own % count(entry) == 0 else None
        for own, length, entry in zip(shape, whole, entries, strict=True)
    ]


def _cut_over(
    over: str,
    spec: list[Any],
    own: tuple[int, ...],
    shapes: list[tuple[int, ...]],
    sharding: NamedSharding,
) -> list[Any]:
    """Return how the axes are cut if the first one that can be is cut over `over`."""
    entries = [*sharding.spec, *[None] * (len(spec) - len(sharding.spec))]
    used = [name for entry in entries if entry for name in _names(entry)]
    pieces = sharding.mesh.shape[over]
    for axis, entry in enumerate(entries):
        fits = all(shape[axis] and shape[axis] % pieces == 0 for shape in shapes)
        if over not in used and not entry and fits:
            cut = over if own[axis] % pieces == 0 else None
            return [*spec[:axis], cut, *spec[axis + 1 :]]
    return spec


def _names(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,)
