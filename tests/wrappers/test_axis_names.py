"""Guards and figures in a shard_map: those of the whole, the same on all devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from pieces import MESH, take, take_fused

import adam_jax
from adam_jax import FIGURES, Step, measure

# One leaf is cut along an axis, one along both, and one is whole everywhere.
SPECS = {"cut": P("model"), "both": P("data", "model"), "whole": P()}
SHAPES = {"cut": (4, 6), "both": (4, 8), "whole": (3,)}
AXES = ("data", "model")


def draw(seed):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


PARAMS, GRADS = draw(0), [draw(i) for i in range(1, 5)]


def close(x, y):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), x, y)


def specs_of(tx):
    """Return how a state is cut: moments like their parameters."""
    state = jax.eval_shape(tx.init, PARAMS)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            SPECS.get(getattr(path[-1], "key", None), P())
            if x.ndim and "figures" not in jax.tree_util.keystr(path)
            else P()
        ),
        state,
    )


def in_pieces(step, tx):
    specs = SPECS, specs_of(tx)
    return jax.jit(
        jax.shard_map(step, mesh=MESH, in_specs=(*specs, SPECS), out_specs=specs)
    )


MAKERS = {
    "skip_nonfinite": lambda **axes: adam_jax.skip_nonfinite(
        adam_jax.adam(1e-2), **axes
    ),
    "skip_spikes": lambda **axes: adam_jax.skip_spikes(
        adam_jax.adam(1e-2), warmup=2, **axes
    ),
    "record": lambda **axes: adam_jax.record(
        adam_jax.adam(1e-2), [*FIGURES], learning_rate=1e-2, **axes
    ),
    "record now and then": lambda **axes: adam_jax.record(
        adam_jax.adam(1e-2),
        ["update_norm", "effective_step"],
        learning_rate=1e-2,
        every=2,
        **axes,
    ),
    "both": lambda **axes: adam_jax.record(
        adam_jax.skip_spikes(adam_jax.adam(1e-2), **axes), ["update_ratio"], **axes
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_pieces_are_stepped_and_measured_like_the_whole(name):
    named, plain = MAKERS[name](axis_name=AXES), MAKERS[name]()
    step = in_pieces(functools.partial(take, named), named)
    expect = jax.jit(functools.partial(take, plain))
    found = expected = PARAMS, plain.init(PARAMS)
    for grads in GRADS:
        found, expected = step(*found, grads), expect(*expected, grads)
    close(found, expected)


@pytest.mark.parametrize("where", [("both", (0, 0)), ("both", (3, 7)), ("cut", (3, 0))])
@pytest.mark.parametrize("name", ["skip_nonfinite", "skip_spikes"])
def test_a_nan_on_one_device_skips_on_all(name, where):
    leaf, index = where
    bad = {**GRADS[0], leaf: GRADS[0][leaf].at[index].set(jnp.nan)}
    for fuse in (False, True):
        tx = MAKERS[name](axis_name=AXES)
        step = functools.partial(take, tx)
        if fuse:
            step = functools.partial(take_fused, tx)
        params, state = in_pieces(step, tx)(PARAMS, tx.init(PARAMS), bad)
        jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
        assert state.skipped == 1 and state.taken == 0
        expected = tx.init(PARAMS)[0]
        jax.tree.map(np.testing.assert_array_equal, state.inner_state, expected)


def test_a_spike_is_one_of_the_whole_gradient():
    tx = MAKERS["skip_spikes"](axis_name=AXES)
    step = in_pieces(functools.partial(take, tx), tx)
    params, state = PARAMS, tx.init(PARAMS)
    for grads in GRADS[:2]:
        params, state = step(params, state, grads)
    spike = {**GRADS[2], "both": GRADS[2]["both"].at[0, 0].set(1e3)}
    kept, state = step(params, state, spike)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert (state.skipped, state.taken) == (1, 2)


def test_where_jax_does_not_know_what_varies_all_counts():
    """In a shard_map that does not check, and in a vmap with a name."""
    tx = adam_jax.skip_nonfinite(adam_jax.sgd(1.0), axis_name="x")

    def step(grad):
        updates, state = tx.update(grad, tx.init(grad))
        norm = measure(
            {"norm": FIGURES["gradient_norm"]}, Step(grads=grad), axis_name="x"
        )
        return updates, state.skipped, norm["norm"].total

    grads = jnp.asarray([[3.0], [4.0]])
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    shards = jax.shard_map(
        step, mesh=mesh, in_specs=P("x"), out_specs=(P("x"), P(), P()), check_vma=False
    )
    updates, skipped, norm = jax.jit(shards)(grads)
    np.testing.assert_array_equal(updates, -grads)
    assert skipped == 0 and norm == 5
    updates, skipped, norm = jax.vmap(step, axis_name="x")(grads.at[0, 0].set(np.nan))
    assert not updates.any() and skipped.tolist() == [1, 1]
