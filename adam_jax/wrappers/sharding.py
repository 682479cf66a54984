"""Moments in pieces over devices that all hold the parameters (ZeRO-1)."""

from typing import Any

import jax
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding

from adam_jax.checks import prune
from adam_jax.stages.flow import expect_optimizer, expect_updates, expect_whole
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

    Moments lie as `state_shardings(tx, params, over=over)` says, which is where a
    restore puts them.

    Args:
      tx: the optimizer; it receives the extra arguments of `update`.
      params: the parameters, or `jax.ShapeDtypeStruct`s, with the NamedSharding that
        they have in training. Only shapes, dtypes and shardings count.
      over: the axis of the mesh, such as "data".

    Raises:
      ValueError: if a parameter has no NamedSharding, or the mesh no axis `over`.
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
    whole = jax.tree.map(lambda x: x.sharding, params)
    states, pieces = plan_shardings(tx, params, over, None)

    def init_fn(params):
        return _place(inner.init(params), states)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "shard_state")
        params = prune(params, updates)
        updates = _place(updates, pieces)
        if params is not None:
            params = _place(params, pieces)
        updates, state = inner.update(updates, state, params, **extra_args)
        expect_whole(updates, "shard_state")
        return _place(updates, whole), _place(state, states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _place(tree: Any, shardings: Any) -> Any:
    """Lay arrays as shardings say, on automatic and on explicit axes."""

    def place(x, sharding: NamedSharding):
        if AxisType.Explicit in sharding.mesh.axis_types:
            return jax.sharding.reshard(x, sharding)
        return lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(place, tree, shardings)
