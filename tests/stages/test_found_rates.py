"""Stages that find a step size of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import bias_correct, scale_by_moments, switch_to_sgd
from adam_jax.family.step_sizes import prodigy


def switching(tolerance, **kwargs):
    return optax.chain(
        scale_by_moments(),
        bias_correct(),
        switch_to_sgd(0.1, tolerance=tolerance, **kwargs),
    )


def follow(tx, grads, params):
    state, updates = tx.init(params), []
    for g in grads:
        update, state = tx.update(g, state, params)
        updates.append(update)
    return updates, state


def test_one_switch_for_all_leaves_and_never_back():
    grads = [{"a": jnp.full(2, 2.0), "b": jnp.float32(-4)}] * 3
    grads += [{"a": jnp.full(2, -20.0), "b": jnp.float32(1)}] * 3
    updates, state = follow(switching(1e-3), grads, grads[0])
    rate = 3 / 8  # <u, u> = 3, <u, g> = 2 + 2 + 4
    np.testing.assert_allclose(state[-1].rate, rate, rtol=1e-5)
    v = 0.0
    for g, update in zip(grads[2:], updates[2:], strict=True):
        v = 0.9 * v + g["b"]
        np.testing.assert_allclose(update["b"], rate * 0.1 * v, rtol=1e-5)


def test_it_does_not_switch_to_a_rate_that_climbs_nor_without_a_slope():
    # The momentum of 100 goes against gradients of -1e-3, so <u, g> < 0.
    grads = [jnp.float32(100)] + [jnp.float32(-1e-3)] * 4
    _, state = follow(switching(1e9), grads, grads[0])
    assert state[-1].rate == 0 and state[-1].average < 0
    _, state = follow(switching(1e9), [jnp.float32(0)] * 4, jnp.float32(0))
    assert state[-1].rate == 0 and state[-1].average == 0


def test_what_switch_to_sgd_refuses():
    for tx in (
        optax.chain(scale_by_moments(None), switch_to_sgd(0.1)),
        optax.chain(scale_by_moments(0.9, None), switch_to_sgd(0.1)),
        optax.chain(scale_by_moments(0.9, adam_jax.total()), switch_to_sgd(0.1)),
    ):
        with pytest.raises(ValueError, match=r"switch_to_sgd\(\) needs"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="tolerance must be a finite number >= 0"):
        switch_to_sgd(0.1, tolerance=-1.0)


@pytest.mark.crossing
@pytest.mark.parametrize(
    "kwargs", [{}, {"safeguard_warmup": True, "weight_decay": 0.1}]
)
def test_the_distance_is_optax_s(kwargs):
    """On a quadratic, where the estimate grows by six orders of magnitude."""
    scales = {"w": jnp.array([[1.0, 3.0]]), "b": jnp.float32(0.1)}

    def train(tx):
        params = {"w": jnp.zeros((1, 2)), "b": jnp.float32(1)}
        state, path = tx.init(params), []
        for _ in range(60):
            grads = jax.tree.map(lambda s, p: s * (p - 3), scales, params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            path.append(params["w"])
        return np.array(path), state

    with jax.enable_x64(True):
        found, state = train(prodigy(**kwargs))
        expected, other = train(optax.contrib.prodigy(**kwargs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    distance = float(state[0].distance)
    np.testing.assert_allclose(distance, float(other.estim_lr), rtol=1e-5)
    assert distance > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "8bit"])
def test_sums_and_traces_are_stored_like_mu(dtype, tmp_path):
    params = jnp.zeros((64, 64))
    stage = adam_jax.switch_to_sgd(0.1, accumulator_dtype=dtype)
    state = stage.init(params)
    assert (
        state.inner_state.trace.dtype == {"bfloat16": "bfloat16", "8bit": "int8"}[dtype]
    )
    tx = prodigy(mu_dtype=dtype, nu_dtype=dtype)
    _, state = tx.update(jnp.ones((64, 64)), tx.init(params), params)
    moments, total = state[0].inner_state
    assert total.trace.dtype == moments.mu.dtype == stage.init(params)[0].trace.dtype
    adam_jax.save_state(tmp_path / "file", state)
    nodes = adam_jax.read_state(tmp_path / "file")
    adopted = adam_jax.adopt_state(tx, nodes, params)
    assert adopted.dropped == adopted.started == ()
    jax.tree.map(np.testing.assert_array_equal, adopted.state, state)
