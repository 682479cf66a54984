"""Stages that look at the root mean square of a leaf, and averages of updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import (
    average_updates,
    clip_rms,
    scale_by_param_rms,
    scale_by_trust_ratio,
    scale_to_params,
)
from adam_jax.measures import largest, mean, norm, root_mean_square


def tree(scale, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (5,), "s": ()}
    return {
        k: jnp.asarray(scale * rng.normal(size=s), dtype) for k, s in shapes.items()
    }


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_both_are_optax_s_in_float32(scale):
    updates, params = tree(scale), tree(scale)
    for ours, theirs in (
        (clip_rms(0.5), optax.clip_by_block_rms(0.5)),
        (scale_by_param_rms(), optax.scale_by_param_block_rms()),
    ):
        found, _ = ours.update(updates, ours.init(params), params)
        expected, _ = theirs.update(updates, theirs.init(params), params)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected
        )


def test_a_bfloat16_leaf_is_measured_in_float32():
    params = tree(1.0, jnp.bfloat16)
    updates = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.float32), params)
    tx = scale_by_param_rms()
    found, _ = tx.update(updates, tx.init(params), params)
    rms = np.sqrt(np.mean(np.asarray(params["w"], np.float64) ** 2))
    np.testing.assert_allclose(found["w"], rms, rtol=1e-6)
    clipped, _ = clip_rms(0.1).update(params, optax.EmptyState())
    assert clipped["w"].dtype == jnp.bfloat16


def test_oddities():
    updates = {"zero": jnp.zeros(3), "none": None, "nothing": jnp.zeros((0, 2))}
    params = {"zero": jnp.zeros(3), "none": None, "nothing": jnp.zeros((0, 2))}
    for tx in (clip_rms(1.0), scale_by_param_rms()):
        found, _ = tx.update(updates, tx.init(params), params)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, updates)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found))
    large, _ = clip_rms(1.0).update(jnp.full(300, 1e30), optax.EmptyState())
    assert jnp.isfinite(large).all()
    grad = jax.grad(lambda u: clip_rms(1.0).update(u, optax.EmptyState())[0].sum())
    assert jnp.isfinite(grad(jnp.zeros(3))).all()
    complex_update = jnp.array([3 + 4j, 0])
    clipped, _ = clip_rms(1.0).update(complex_update, optax.EmptyState())
    np.testing.assert_allclose(clipped, complex_update / np.sqrt(12.5), rtol=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match="clipping_threshold must be a finite number"):
        clip_rms(-1.0)
    with pytest.raises(TypeError, match="clipping_threshold must be a number, not a"):
        clip_rms(lambda count: 1.0)
    tx = scale_by_param_rms()
    with pytest.raises(ValueError, match=r"scale_by_param_rms\(\) needs the param"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    moments, _ = adam_jax.scale_by_moments().update(
        jnp.ones(2), adam_jax.scale_by_moments().init(jnp.ones(2))
    )
    with pytest.raises(TypeError, match=r"clip_rms\(\) takes gradients or updates"):
        clip_rms(1.0).update(moments, optax.EmptyState())


@pytest.mark.parametrize("dtype", [None, "bfloat16", "8bit"])
def test_an_average_of_updates_is_optax_s_without_bias_correction(dtype):
    ours, theirs = average_updates(0.9, dtype), optax.ema(0.9, debias=False)
    params = jnp.zeros((64, 64))
    states = ours.init(params), theirs.init(params)
    rng = np.random.default_rng(0)
    for _ in range(20):
        u = jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)
        (found, own), (expected, other) = (
            tx.update(u, state)
            for tx, state in zip((ours, theirs), states, strict=True)
        )
        states = own, other
    atol = {None: 1e-6, "bfloat16": 0.02, "8bit": 0.1}[dtype]
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e18, 1e37])
def test_leaves_are_measured_at_every_scale(scale):
    """Squares of the first and the last two are outside float32."""
    leaf = scale * jnp.array([[3.0, -4.0]])
    np.testing.assert_allclose(root_mean_square(leaf), scale * 12.5**0.5, rtol=1e-6)
    np.testing.assert_allclose(norm(leaf, (1,)), [[scale * 5]], rtol=1e-6)
    ones = jnp.array([[0.6, 0.8]])
    for tx in (scale_by_trust_ratio(), scale_to_params()):
        for updates, params in ((leaf, ones), (ones, leaf)):
            found, _ = tx.update(updates, tx.init(params), params)
            expected = norm(params) * updates / norm(updates)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    clipped, _ = clip_rms(scale / 2).update(leaf, optax.EmptyState())
    np.testing.assert_allclose(root_mean_square(clipped), scale / 2, rtol=1e-6)


def test_nothing_measures_0():
    nothing = jnp.zeros((0, 3))
    for measure in (largest, norm, root_mean_square, mean):
        assert measure(nothing) == 0, measure
        assert measure(nothing, (0,)).shape == (1, 3)
    assert mean(jnp.full(4, 3e38)) == jnp.float32(3e38)
