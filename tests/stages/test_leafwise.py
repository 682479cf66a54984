"""Stages that measure whole leaves, and stages that compare signs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pieces import SHAPES, SPECS, draw, run, take

import adam_jax
from adam_jax import (
    add_cautious_decay,
    add_decayed_weights,
    bias_correct,
    divide_by_rms,
    fused,
    keep_agreeing,
    precondition,
    scale_by_lr,
    scale_by_moments,
    scale_by_trust_ratio,
    take_sign_of_gradient,
)


def apply(tx, grads, params=None):
    return tx.update(grads, tx.init(grads if params is None else params), params)[0]


def mu(b1, stage, *grads):
    """Return the first moment after some steps and a stage."""
    tx = optax.chain(scale_by_moments(b1), stage)
    state = tx.init(grads[0])
    for grad in grads:
        moments, state = tx.update(grad, state)
    return moments.mu


def test_the_trust_ratio_is_of_each_leaf():
    updates = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([1.0]), "c": jnp.zeros(2)}
    params = {"a": jnp.array([0.0, 10.0]), "b": jnp.array([0.0]), "c": jnp.ones(2)}
    scaled = apply(scale_by_trust_ratio(0.5, eps=5.0), updates, params)
    np.testing.assert_allclose(scaled["a"], [1.5, -2.0])  # 0.5 * 10 / (5 + 5)
    np.testing.assert_array_equal(scaled["b"], [1.0])  # not 0.5: there is no ratio
    np.testing.assert_array_equal(scaled["c"], [0.0, 0.0])


def test_the_trust_ratio_of_bfloat16_parameters_is_not_rounded():
    """A sum of 1,000 squares in bfloat16 errs by per cents."""
    params = draw(0, "bfloat16", {"w": (1000,)})
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    grads = draw(1, shapes={"w": (1000,)})
    found = apply(scale_by_trust_ratio(), grads, params)
    expected = apply(optax.scale_by_trust_ratio(), grads, wide)
    assert found["w"].dtype == jnp.float32
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)


def test_the_trust_ratio_of_complex_leaves():
    params = jnp.array([3 + 4j], jnp.complex64)
    scaled = apply(scale_by_trust_ratio(), jnp.array([2j], jnp.complex64), params)
    np.testing.assert_allclose(scaled, [5j], rtol=1e-6)


def test_a_trust_ratio_needs_parameters_and_updates():
    with pytest.raises(ValueError, match=r"scale_by_trust_ratio\(\) needs the par"):
        apply(scale_by_trust_ratio(), jnp.ones(2))
    tx = optax.chain(scale_by_moments(), scale_by_trust_ratio())
    with pytest.raises(TypeError, match=r"scale_by_trust_ratio\(\) takes gradients"):
        apply(tx, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="trust_coefficient must be"):
        scale_by_trust_ratio(-1.0)


def test_the_rms_shortens_the_updates_of_its_own_leaf_and_the_decay():
    inner = precondition(), add_decayed_weights(0.5)
    tx = optax.chain(scale_by_moments(None, 0.75), divide_by_rms(*inner))
    grads = {"a": jnp.full(3, 2.0), "b": jnp.zeros(2)}
    params = {"a": jnp.full(3, 4.0), "b": jnp.full(2, 4.0)}
    updates = apply(tx, grads, params)
    # nu is a quarter of g^2, so the rms is 2, as the update is.
    np.testing.assert_allclose(updates["a"], (2 + 0.5 * 4) / 2, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 2.0, rtol=1e-6)


def test_a_small_nu_is_raised_to_the_square_of_eps():
    tx = optax.chain(scale_by_moments(None, 0.75), divide_by_rms(precondition(), eps=8))
    # 4 / 8^2 is below 1, so nothing is shortened.
    np.testing.assert_allclose(apply(tx, jnp.array([2.0])), [2.0], rtol=1e-6)


def test_what_divide_by_rms_refuses():
    shortened = divide_by_rms(precondition())
    with pytest.raises(ValueError, match=r"divide_by_rms\(\) needs a second moment"):
        apply(optax.chain(scale_by_moments(0.9, None), shortened), jnp.ones(2))
    with pytest.raises(TypeError, match=r"divide_by_rms\(\) takes the Moments"):
        apply(shortened, jnp.ones(2))
    with pytest.raises(TypeError, match=r"divide_by_rms\(\) takes gradients or upd"):
        apply(
            optax.chain(scale_by_moments(), divide_by_rms(bias_correct())), jnp.ones(2)
        )


def test_agreement_is_counted_in_each_leaf():
    first = {"a": jnp.array([4.0, -4.0, 4.0]), "b": jnp.array([4.0])}
    second = {"a": jnp.array([2.0, -2.0, -2.0]), "b": jnp.array([-2.0])}
    kept = mu(0.5, keep_agreeing(), first, second)
    np.testing.assert_allclose(kept["a"], [2.0, -2.0, 0.0])  # times 3 / (2 + 1)
    np.testing.assert_array_equal(kept["b"], [0.0])


def test_tiny_moments_agree_though_their_product_underflows():
    kept = mu(0.5, keep_agreeing(), jnp.float32([1e-30, 1.0]))
    np.testing.assert_allclose(kept, [0.5e-30 * 2 / 3, 0.5 * 2 / 3], rtol=1e-6)


def test_complex_moments_agree_within_a_right_angle():
    first = jnp.array([4.0, 4.0], jnp.complex64)
    second = jnp.array([1 + 3j, -1 + 0.5j], jnp.complex64)
    kept = mu(0.5, keep_agreeing(), first, second)
    np.testing.assert_allclose(kept, [(1.5 + 1.5j) * 2 / 2, 0], rtol=1e-6)


def test_the_sign_of_the_gradient():
    signed = mu(0.5, take_sign_of_gradient(), jnp.full(3, 4.0), jnp.array([2.0, -2, 0]))
    np.testing.assert_array_equal(signed, [2.0, -0.0, 0.0])
    signed = mu(0.5, take_sign_of_gradient(), jnp.full(3, 4.0), jnp.array([2.0, -1, 0]))
    np.testing.assert_array_equal(signed, [2.0, -0.5, 0.0])


@pytest.mark.parametrize("stage", [keep_agreeing, take_sign_of_gradient])
def test_what_compares_moments_takes_moments(stage):
    with pytest.raises(TypeError, match=rf"{stage.__name__}\(\) takes the Moments"):
        apply(stage(), jnp.ones(2))
    # What it leaves is no average, which center() would need.
    tx = optax.chain(scale_by_moments(0.9, 0.9), stage(), adam_jax.center())
    with pytest.raises(ValueError, match=r"center\(\) needs the first moment"):
        apply(tx, jnp.ones(2))


def test_cautious_decay_takes_the_signs_and_the_mask():
    updates = {"a": jnp.array([1.0, -1.0, 0.0, 1.0]), "b": jnp.array([1.0])}
    params = {"a": jnp.array([2.0, 2.0, 2.0, -2.0]), "b": jnp.array([2.0])}
    tx = add_cautious_decay(0.5, mask={"a": True, "b": False})
    decayed = apply(tx, updates, params)
    np.testing.assert_array_equal(decayed["a"], [2.0, -1.0, 1.0, 1.0])
    np.testing.assert_array_equal(decayed["b"], [1.0])
    with pytest.raises(ValueError, match=r"add_cautious_decay\(\) needs the param"):
        apply(tx, updates)
    tx = optax.chain(scale_by_moments(), add_cautious_decay(0.5), scale_by_lr(0.1))
    with pytest.raises(TypeError, match=r"add_cautious_decay\(\) takes gradients"):
        apply(tx, params, params)


def test_the_fused_step_does_not_decay_all_parameters():
    params, grads = (draw(seed, shapes={"w": (8, 128)}) for seed in range(2))
    tx = adam_jax.cautious_decay_adamw(0.1, weight_decay=0.5)
    found, _ = fused.step(tx)(params, grads, tx.init(params))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(found["w"], params["w"] + updates["w"], atol=1e-6)


@pytest.mark.parametrize("name", ["cautious_adamw", "lamb", "lars", "stable_adamw"])
def test_pieces_are_measured_as_the_whole(name):
    few = ("both", "replicated", "three")
    params = draw(0, shapes={k: SHAPES[k] for k in few})
    specs = {k: SPECS[k] for k in few}
    runs = run(adam_jax.OPTIMIZERS[name](0.125), take, params, specs, check_vma=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), *runs)
