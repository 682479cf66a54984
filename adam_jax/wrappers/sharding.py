"""Steps in pieces: of moments alone (ZeRO-1), and of all leaves, in a shard_map."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from adam_jax import placement
from adam_jax.checks import prune
from adam_jax.hyperparams import shown
from adam_jax.placement import Cut
from adam_jax.stages.flow import expect_optimizer, expect_updates, expect_whole
from adam_jax.states.parts import by_name
from adam_jax.states.shardings import plan_shardings


def shard_state(
    tx: optax.GradientTransformation, params: Any, *, over: str
) -> optax.GradientTransformationExtraArgs:
    """Keep moments in pieces over an axis of the mesh that does not cut parameters.

    Each device steps its piece of each parameter: gradients are cut to the pieces, and
    updates gathered from them. State and updates are those of `tx`, and updates lie as
    the parameters do. Where the same program sums gradients over the axis, XLA makes
    one reduce-scatter of the sum and the cut, so as much is sent as without it. (On a
    TPU v5e it does so if the mesh has a second axis, but not on a single ring of 16.)

    Put `round_to_params`, `compensate_params`, `packed` and conditions inside; around
    it, XLA may leave parameters in pieces, too.

    Moments lie as `state_shardings(tx, params, over=over)` says, which is where a
    restore puts them.

    Args:
      tx: the optimizer; it receives the extra arguments of `update`.
      params: the parameters, or `jax.ShapeDtypeStruct`s, with the NamedSharding that
        they have in training. Only shapes, dtypes and shardings count.
      over: the axis of the mesh, such as "data".

    Raises:
      ValueError: if a parameter has no NamedSharding, or the mesh no axis `over`, or
        axes of both kinds; at the first trace, for parameters of other names or shapes.
      TypeError: at the first trace, if `tx` takes or emits `Moments`.

    Example: two devices would hold half of each moment; here is one.

      >>> import adam_jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
      >>> params = {"w": jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, P()))}
      >>> tx = shard_state(adam_jax.adam(1e-3), params, over="data")
      >>> updates, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params))
      >>> print(f"{updates['w'][0, 0]:.4f}", state[0].mu["w"].shape)
      -0.0010 (4, 8)

    Reference: Rajbhandari et al. 2020 (ZeRO), section 5.1; Xu et al. 2020 (automatic
    cross-replica sharding of weight update).
    """
    expect_optimizer(tx, "shard_state")
    inner = optax.with_extra_args_support(tx)
    named = by_name(params)
    for name, param in named.items():
        mesh = getattr(getattr(param, "sharding", None), "mesh", None)
        if len({*getattr(mesh, "axis_types", ())}) > 1:
            raise ValueError(
                f"{name} is on a mesh whose axes are partly automatic and partly "
                "explicit: shard_state() takes one kind."
            )
    plan_shardings(tx, params, _expect_axis(over), None)  # refuses what does not fit

    def plan(tree):
        """Return how updates, the pieces of them and the state lie."""
        like = []
        for name, leaf in by_name(tree).items():
            if name not in named or named[name].shape != jnp.shape(leaf):
                raise ValueError(
                    f"shard_state() was not told of a parameter {name!r} of shape "
                    f"{jnp.shape(leaf)}: give it those of the optimizer that it wraps, "
                    "and put packed() and optax.flatten() inside."
                )
            param = named[name]
            like.append(
                jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=param.sharding)
            )
        like = jax.tree.unflatten(jax.tree.structure(tree), like)
        states, pieces = plan_shardings(tx, like, over, None)
        return jax.tree.map(lambda x: x.sharding, like), pieces, states

    def init_fn(params):
        if not jax.tree.leaves(params):  # optax.tree.map_params looks for its own tree
            return inner.init(params)
        return _place(inner.init(params), plan(params)[2])

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "shard_state")
        params = prune(params, updates)
        if not jax.tree.leaves(updates):
            return inner.update(updates, state, params, **extra_args)
        whole, pieces, states = plan(updates)
        updates = _place(updates, pieces)
        if params is not None:
            params = _place(params, pieces)
        updates, state = inner.update(updates, state, params, **extra_args)
        expect_whole(updates, "shard_state")
        return _place(updates, whole), _place(state, states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def in_shard_map(
    tx: optax.GradientTransformation, specs: Any
) -> optax.GradientTransformationExtraArgs:
    """Step pieces of leaves in a `jax.shard_map` as the whole leaves would be stepped.

    There, each device sees its own pieces alone. All elementwise arithmetic is right
    without this wrapper. With it, moments and parameters that are rounded draw the
    random bits of the whole, so the state is the one that the same steps leave outside
    of a shard_map: codes, moments and parameters. `mean_over` and `factored` take means
    of the whole, in another order of summation, and `min_size` of `eight_bit` counts
    its elements.

    Put it around the whole optimizer, `round_to_params` included, and inside
    `fused.step`. Guards and figures in it are those of the whole, and need no
    `axis_name`. (What of Optax looks at all elements, such as `clip_by_global_norm` and
    `apply_if_finite`, sees the pieces of its device alone: then devices go apart, which
    JAX can refuse only with check_vma=True. Clip outside of the shard_map.)

    Make the state outside of the shard_map, as usual, or inside. (That of `packed` can
    only be made inside: it knows the shapes. Leaves that are cut share no buffer.)

    Args:
      tx: the optimizer; it receives the extra arguments of `update`.
      specs: the `in_specs` of the parameters: a `jax.sharding.PartitionSpec`, or a
        pytree of them like the parameters, or like their upper part.

    Raises:
      ValueError: if specs do not fit the parameters; at the first trace, if `update` is
        called outside of a shard_map, if the shard_map does not map over an axis of the
        specs, if a leaf does not vary over an axis that is said to cut it, or if
        pieces of 8-bit moments are no whole number of blocks.
      TypeError: if specs hold anything but a PartitionSpec.

    Example: one device of a mesh; on two, each would hold a row.

      >>> import adam_jax, jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
      >>> tx = in_shard_map(adam_jax.adam(1e-3, mu_dtype="bfloat16"), P("data"))
      >>> params = jnp.ones((2, 8))
      >>> def step(params):
      ...     return tx.update(params, tx.init(params))[0]
      >>> step = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
      >>> print(f"{jax.jit(step)(params)[0, 0]:.4f}")
      -0.0010
    """
    expect_optimizer(tx, "in_shard_map")
    inner = optax.with_extra_args_support(tx)
    for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=_is_spec):
        if not _is_spec(spec):
            raise TypeError(
                "in_shard_map(tx, specs) takes the PartitionSpecs of the parameters, "
                f"got {shown(spec)} at specs{jax.tree_util.keystr(path)}."
            )

    def init_fn(params):
        if not jax.tree.leaves(params):  # optax.tree.map_params looks for its own tree
            return inner.init(params)
        cuts = _find_cuts(specs, params)
        if not _manual_axes():  # the whole is outside of a shard_map
            return inner.init(params)
        _expect_cut(cuts, params)
        with placement.in_pieces(cuts):
            return inner.init(params)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "in_shard_map")
        params = prune(params, updates)
        cuts = _find_cuts(specs, updates)
        if not _manual_axes():
            raise ValueError(
                "in_shard_map() steps pieces, but update() was called outside of a "
                "jax.shard_map: call it inside, or use the optimizer without it."
            )
        _expect_cut(cuts, updates)
        with placement.in_pieces(cuts):
            return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def _manual_axes() -> list[str]:
    """Return the axes over which a shard_map maps here."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return [name for name, kind in axes if kind == AxisType.Manual]


def _find_cuts(specs: Any, tree: Any) -> dict[Any, Cut]:
    """Return how the leaves of a tree are cut, by their paths."""
    given = dict(jax.tree_util.tree_leaves_with_path(specs, is_leaf=_is_spec))
    cuts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        above = [path[:end] for end in range(len(path) + 1)]
        spec = next((given[start] for start in above if start in given), None)
        if spec is None:
            raise ValueError(
                f"in_shard_map() was given no spec for {_name(path)}: give the "
                "in_specs of all parameters, P() for those that are not cut."
            )
        rank = jnp.ndim(leaf)
        if len(spec) > rank:
            raise ValueError(
                f"in_shard_map() was given {spec} for {_name(path)}, which has only "
                f"{rank} axes: give the in_specs of the parameters."
            )
        names = [() if x is None else (x,) if isinstance(x, str) else x for x in spec]
        cut = (*map(tuple, names), *[()] * (rank - len(names)))
        cuts[path] = cut if any(cut) else ()
    return cuts


def _expect_cut(cuts: dict[Any, Cut], tree: Any) -> None:
    """Refuse axes that do not cut the leaves here."""
    manual = _manual_axes()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [name for along in cuts[path] for name in along]
        for name in names:
            if name not in manual:
                raise ValueError(
                    f"in_shard_map() was told that {_name(path)} is cut along "
                    f"{name!r}, but the shard_map maps over "
                    f"{', '.join(map(repr, manual))}: give the in_specs of the "
                    "parameters."
                )
        missing = {*names} - {*placement.axes_of_piece(leaf, tuple(names))}
        if missing:
            raise ValueError(
                f"in_shard_map() was told that {_name(path)} is cut along "
                f"{min(missing)!r}, but it is the same on all devices of that axis: "
                "give the in_specs of the parameters."
            )


def _name(path: Any) -> str:
    return f"params{jax.tree_util.keystr(path)}"


def _expect_axis(over: Any) -> str:
    if not isinstance(over, str):
        raise ValueError(f"over must be the name of an axis of the mesh, got {over!r}.")
    return over


def _place(tree: Any, shardings: Any) -> Any:
    """Lay arrays as shardings say, leaf by leaf: Flax may have boxed one of them."""
    leaves, structure = jax.tree.flatten(tree)

    def place(x, sharding: NamedSharding):
        if AxisType.Explicit in sharding.mesh.axis_types:
            return jax.sharding.reshard(x, sharding)
        return lax.with_sharding_constraint(x, sharding)

    pairs = zip(leaves, jax.tree.leaves(shardings), strict=True)
    return structure.unflatten([place(x, where) for x, where in pairs])
