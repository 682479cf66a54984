"""A run that moves between meshes of other sizes and axes: every bit stays the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import eight_bit, state_shardings

EIGHT = eight_bit(block=8, min_size=16)
MAKERS = {
    "float32": lambda: adam_jax.adamw(1e-2),
    "bfloat16": lambda: adam_jax.adamw(1e-2, mu_dtype="bfloat16", nu_dtype="bfloat16"),
    "8bit": lambda: adam_jax.adamw(1e-2, mu_dtype=EIGHT, nu_dtype=EIGHT),
    "round": lambda: adam_jax.round_to_params(
        adam_jax.adamw(1e-2, mu_dtype=EIGHT, nu_dtype="bfloat16")
    ),
    "compensate": lambda: adam_jax.compensate_params(adam_jax.adamw(1e-2)),
}
# Eight devices, four, two, one, and back; the axis over which moments are cut as well.
MESHES = [
    ((2, 4), "data"),
    ((4, 1), "data"),
    ((1, 2), None),
    ((1, 1), None),
    ((1, 4), "data"),
    ((8, 1), None),
]
SPECS = {"w": P("data", "model"), "rows": P(None, "model"), "b": P()}
SHAPES = {"w": (8, 64), "rows": (16, 32), "b": (5,)}
STEPS = 2  # on each mesh


def draw(seed, dtype):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()}


def take(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


CASES = [
    pytest.param(name, kind, marks=[] if often else pytest.mark.crossing)
    for name in MAKERS
    for kind in (AxisType.Auto, AxisType.Explicit)
    for often in [(name, kind) == ("8bit", AxisType.Auto)]
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_bit_survives_the_move(name, kind):
    dtype = jnp.bfloat16 if name in ("round", "compensate") else jnp.float32
    tx, start = MAKERS[name](), draw(99, dtype)
    step = jax.jit(functools.partial(take, tx))
    expected = start, jax.jit(tx.init)(start)
    kept = expected  # as a checkpoint would have it
    for number, (shape, over) in enumerate(MESHES):
        devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        mesh = Mesh(devices, ("data", "model"), axis_types=(kind, kind))
        lay = {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()}
        abstract = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            start,
            lay,
        )
        kept = jax.device_put(kept, (lay, state_shardings(tx, abstract, over=over)))
        with jax.set_mesh(mesh):
            for i in range(STEPS):
                grads = draw(10 * number + i, dtype)
                kept = step(*kept, jax.device_put(grads, lay))
        for i in range(STEPS):
            expected = step(*expected, draw(10 * number + i, dtype))
        kept = jax.device_get(kept)
        jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(expected))
