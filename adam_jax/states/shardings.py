"""Where the arrays of a state lie: shardings from those of the parameters."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import tree_flatten_with_path

from adam_jax.stages.flow import expect_optimizer


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    *,
    over: str | None = None,
    memory_kind: str | None = None,
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
        `jax.ShapeDtypeStruct`s that have one.
      over: an axis of the mesh over which moments are cut as well where parameters are
        not (ZeRO-1): along the first axis of a parameter that is not cut yet and whose
        length, in the moment and in all that is kept beside it, is a multiple of the
        mesh axis. Where there is none, as for most scalars and biases, moments lie as
        without it.
      memory_kind: the memory for moments, such as "pinned_host". Those of this package
        stay in the memory in which they are put: each step brings them to the device
        and back. (Optax's own optimizers cannot step moments in the host's memory.)

    Raises:
      ValueError: if a parameter has no NamedSharding, or the mesh no axis `over`.
      TypeError: if tx is not an optimizer.

    Example: on a mesh of one device.

      >>> import adam_jax, jax.numpy as jnp
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
      >>> params = {"w": jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, P()))}
      >>> shardings = state_shardings(adam_jax.adam(1e-3), params, over="data")
      >>> print(*shardings[0].mu["w"].spec, *shardings[0].count.spec)
      data None
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
    cut = {path: (x.shape, _expect_sharding(path, x, over)) for path, x in given}
    leaves, structure = tree_flatten_with_path(jax.eval_shape(tx.init, params))
    owners = [_find_owner(path, leaf.shape, cut) for path, leaf in leaves]
    beside: dict[Any, list[tuple[int, ...]]] = {path: [x.shape] for path, x in given}
    for owner, (_, leaf) in zip(owners, leaves, strict=True):
        if owner is not None and len(leaf.shape) == len(cut[owner][0]):
            beside[owner].append(leaf.shape)

    def place(shape, owner, kind):
        whole, sharding = cut[owner]
        spec = _cut_like(shape, whole, sharding)
        if over is not None and spec:
            spec = _cut_over(over, spec, beside[owner], sharding)
        return NamedSharding(sharding.mesh, P(*spec), memory_kind=kind)

    everywhere = [NamedSharding(sharding.mesh, P()) for _, sharding in cut.values()]
    made = [
        everywhere[0]
        if owner is None
        else place(leaf.shape, owner, memory_kind if _is_moment(path) else None)
        for owner, (path, leaf) in zip(owners, leaves, strict=True)
    ]
    moments = [place(x.shape, path, None) for path, x in given]
    return structure.unflatten(made), params_structure.unflatten(moments)


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
    ends = (path[i:] for i in range(len(path)))
    found = next((end for end in ends if end in params), None)
    if found is None and () in params:  # a single array has no path to go by
        keys = [getattr(key, "name", "") for key in path]
        if shape == params[()][0] or any(key.endswith("_format") for key in keys):
            return ()
    return found


def _is_moment(path: Any) -> bool:
    """Return whether a leaf of a state is of a moment, or of what is kept beside it."""
    names = {getattr(key, "name", "") for key in path}
    formats = any(name.endswith("_format") for name in names)
    return formats or bool(names & {"mu", "nu", "nu_max", "trace", "residual"})


def _cut_like(
    shape: tuple[int, ...], whole: tuple[int, ...], sharding: NamedSharding
) -> list[Any]:
    """Return how the axes of a leaf are cut, like those of its parameter."""
    if len(shape) != len(whole):
        return []
    entries = [*sharding.spec, *[None] * (len(whole) - len(sharding.spec))]
    return [
        entry if own == length or own % _count(entry, sharding) == 0 else None
        for own, length, entry in zip(shape, whole, entries, strict=True)
    ]


def _cut_over(
    over: str, spec: list[Any], shapes: list[tuple[int, ...]], sharding: NamedSharding
) -> list[Any]:
    """Return how the axes are cut if the first one that can be is cut over `over`."""
    used = [name for entry in spec if entry for name in _names(entry)]
    for axis, entry in enumerate(spec):
        pieces = sharding.mesh.shape[over]
        fits = all(shape[axis] and shape[axis] % pieces == 0 for shape in shapes)
        if over not in used and entry is None and fits:
            return [*spec[:axis], over, *spec[axis + 1 :]]
    return spec


def _names(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _count(entry: Any, sharding: NamedSharding) -> int:
    """Return into how many pieces an axis is cut."""
    count = 1
    for name in _names(entry) if entry else ():
        count *= sharding.mesh.shape[name]
    return count
