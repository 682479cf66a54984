"""What the kernels in Pallas, interpreted on CPU, have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interpreted import EXACT, interpret, update_and_apply
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import eight_bit, fused
from adam_jax.fused.gpu import triton
from adam_jax.fused.tpu import mosaic

CODED = {"mu_dtype": eight_bit(min_size=16), "nu_dtype": eight_bit(min_size=16)}


@pytest.fixture(params=[triton, mosaic], ids=["triton", "mosaic"])
def interpreted(request, monkeypatch):
    """Let the CPU interpret a kernel; give the leaves that it has stepped."""
    return interpret(request.param, monkeypatch)


def test_a_step_that_is_not_taken_leaves_every_bit(interpreted):
    tx = adam_jax.skip_nonfinite(adam_jax.adamw(1e-2, **CODED))
    params = jnp.ones((40, 64))
    _, state = jax.jit(fused.step(tx))(params, params, tx.init(params))
    bad = params.at[0, 0].set(jnp.inf)
    kept, after = jax.jit(fused.step(tx))(params, bad, state)
    np.testing.assert_array_equal(kept, params)
    assert interpreted and after.skipped == 1
    jax.tree.map(np.testing.assert_array_equal, after.inner_state, state.inner_state)


def test_each_shard_of_a_shard_map(interpreted):
    """Without JAX's check of what varies, which the interpreter does not pass."""
    tx = adam_jax.adamw(2.0**-7, **EXACT, **CODED)
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    rng = np.random.default_rng(0)
    params, grads = (
        jnp.asarray(rng.normal(size=(4, 64)) * 10 ** rng.uniform(-7, 1, (4, 64)))
        for _ in range(2)
    )
    params = params + 1

    def run(step):
        def shard(params, grads):
            moved, state = step(params, grads, tx.init(params))
            return moved, optax.tree.get(state, "mu"), optax.tree.get(state, "nu")

        return jax.jit(
            jax.shard_map(
                shard, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False
            )
        )(params, grads)

    found = run(fused.step(tx))
    assert [group.mu.shape for group in interpreted] == [(2, 64)]
    expected = run(functools.partial(update_and_apply, tx))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found[1:], expected[1:])
