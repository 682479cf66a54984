"""Moments in pieces over devices that all hold the parameters (ZeRO-1)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding

from adam_jax.checks import prune
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
