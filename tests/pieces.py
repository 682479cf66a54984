"""What tests of pieces in a shard_map share: the mesh, the leaves, and the steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import fused, in_shard_map

MESH = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
# Cut along each axis, along both, along one over both, in the middle, and not at all.
SPECS = {
    "both": P("data", "model"),
    "columns": P(None, "model"),
    "middle": P(None, "data"),
    "replicated": P(),
    "rows": P(("model", "data")),
    "thin": P("data"),
    "three": P("model", None, "data"),
    "two of three": P(None, "model", "data"),
    "flat": P(("data", "model")),
}
SHAPES = {
    "both": (16, 256),
    "columns": (8, 128),
    "middle": (2, 4, 64),
    "replicated": (8, 64),
    "rows": (8, 32),
    "thin": (2, 24),
    "three": (2, 8, 128),
    "two of three": (4, 4, 64),
    "flat": (128,),
}


def draw(seed, dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def half(count):
    """Return 1/2, without XLA's knowing: products with it are exact."""
    return jnp.where(count < 1000, 0.5, 0.9)


# With powers of two every bit is defined, whatever XLA contracts.
EXACT = {"b1": half, "b2": half, "weight_decay": 0.25}
SMALL = adam_jax.eight_bit(block=8, min_size=64)
MAKERS = {
    "bfloat16": lambda: adam_jax.adamw(
        0.125, **EXACT, mu_dtype="bfloat16", nu_dtype="bfloat16"
    ),
    "8bit": lambda: adam_jax.adamw(0.125, **EXACT, mu_dtype=SMALL, nu_dtype=SMALL),
    "mixed": lambda: adam_jax.adamw(
        0.125, **EXACT, mu_dtype="bfloat16", nu_dtype=SMALL
    ),
    "round_to_params": lambda: adam_jax.round_to_params(
        adam_jax.adamw(0.125, **EXACT, mu_dtype="bfloat16"), seed=3
    ),
}


def specs_of(tx, params, specs=SPECS):
    """Return how a state is cut: what belongs to a parameter, like it."""
    placed = {
        k: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.NamedSharding(MESH, specs[k])
        )
        for k, x in params.items()
    }
    return jax.tree.map(lambda x: x.spec, adam_jax.state_shardings(tx, placed))


def take(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def take_fused(tx, params, state, grads):
    return fused.step(tx)(params, grads, state)


def run(tx, step, params, specs=SPECS, check_vma=True, steps=3, reference=None):
    """Return parameters and state after some steps: in pieces, and whole."""
    own = specs, specs_of(tx, params, specs)
    shards = jax.jit(
        jax.shard_map(
            functools.partial(step, in_shard_map(tx, specs)),
            mesh=MESH,
            in_specs=(*own, specs),
            out_specs=own,
            check_vma=check_vma,
        )
    )
    whole = jax.jit(functools.partial(step, reference or tx))
    found = expected = params, tx.init(params)
    shapes = {k: x.shape for k, x in params.items()}
    for seed in range(steps):
        grads = draw(seed + 1, shapes=shapes)
        found, expected = shards(*found, grads), whole(*expected, grads)
    return found, expected


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
