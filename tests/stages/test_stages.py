"""The stages one by one, by hand-made numbers, and the orders that make variants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import gradients, often, run

import adam_jax
from adam_jax import (
    Accumulator,
    Moments,
    bias_correct,
    center,
    precondition,
    running_max,
    scale_by_lr,
    scale_by_moments,
    scale_by_trace,
    trace,
)


def hand_made(**changes):
    """Moments of one leaf, made by hand."""
    moments = Moments(
        count=jnp.int32(3),
        grads=jnp.float32([3.0, -4.0]),
        mu=jnp.float32([0.5, -1.0]),
        nu=jnp.float32([4.0, 9.0]),
        mu_weight=jnp.float32(0.5),
        nu_weight=jnp.float32(0.25),
    )
    return moments._replace(**changes)


def apply(stage, moments, params=None):
    return stage.update(moments, stage.init(moments.grads), params)[0]


def test_bias_correct_divides_by_the_weights():
    corrected = apply(bias_correct(), hand_made())
    np.testing.assert_array_equal(corrected.mu, [1.0, -2.0])
    np.testing.assert_array_equal(corrected.nu, [16.0, 36.0])
    half = apply(bias_correct(mu=False), hand_made())
    np.testing.assert_array_equal(half.mu, [0.5, -1.0])
    without = apply(bias_correct(), hand_made(nu=None))
    assert without.nu is None


def test_precondition_divides_by_the_root():
    np.testing.assert_allclose(
        apply(precondition(eps=1.0, eps_root=0.0), hand_made()),
        [0.5 / 3, -1.0 / 4],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        apply(precondition(eps=0.0, eps_root=7.0), hand_made()),
        [0.5 / 11**0.5, -1.0 / 4],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(
        apply(precondition(), hand_made(nu=None)), [0.5, -1.0]
    )
    zero = hand_made(mu=jnp.zeros(2), nu=jnp.zeros(2))
    np.testing.assert_array_equal(apply(precondition(eps=0.0), zero), [0, 0])


def test_a_moment_of_the_first_power_flows_squared_with_its_weight():
    """A mean of |g|, as an accumulator of one's own: mu_hat / mean of |g|."""
    size = Accumulator(
        {"decay": 0.5},
        lambda moment, value, h: h.decay * moment + (1 - h.decay) * value,
        averages=True,
        power=1,
        measure=lambda grad, mu, h: jnp.abs(grad),
    )
    tx = optax.chain(scale_by_moments(0.5, size), bias_correct())
    state = tx.init(jnp.float32(0))
    for grad in (4.0, -2.0):
        moments, state = tx.update(jnp.float32(grad), state)
    assert moments.nu_weight == 0.75**2
    # (0.25 * 4 + 0.5 * 2) / 0.75 and (0.25 * 4 - 0.5 * 2) / 0.75
    np.testing.assert_allclose(moments.nu, (2 / 0.75) ** 2, rtol=1e-6)
    np.testing.assert_allclose(moments.mu, 0.0, atol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "nu"), 2.0)


def test_center_subtracts_the_mean_and_never_goes_below_zero():
    centered = apply(
        center(), hand_made(nu=jnp.float32([1.25, 0.5]), plain=True, one_rate=True)
    )
    np.testing.assert_array_equal(centered.nu, [1.0, 0.0])
    np.testing.assert_array_equal(centered.mu, [3.0, -4.0])


def test_running_max_remembers():
    stage = running_max()
    state = stage.init(jnp.zeros(2, jnp.bfloat16))
    assert state.nu_max.dtype == jnp.float32
    _, state = stage.update(hand_made(nu=jnp.float32([5.0, 1.0])), state)
    moments, state = stage.update(hand_made(), state)
    np.testing.assert_array_equal(moments.nu, [5.0, 9.0])
    np.testing.assert_array_equal(optax.tree.get(state, "nu_max"), [5.0, 9.0])


def test_without_moments_there_is_nothing_to_store():
    tx = scale_by_moments(b1=None, b2=None)
    state = tx.init({"w": jnp.ones(3)})
    assert state.mu is None and state.nu is None
    moments, _ = tx.update({"w": jnp.ones(3)}, state)
    assert moments.nu is None and moments.mu_weight == 1
    chain = optax.chain(tx, scale_by_lr(0.5))
    updates, _ = chain.update({"w": jnp.ones(3)}, chain.init({"w": jnp.ones(3)}))
    np.testing.assert_array_equal(updates["w"], [-0.5] * 3)


def test_both_forms_of_momentum():
    """The average is the heavy ball times (1 - decay), and its first step is small."""
    grads = jnp.asarray(gradients(50), jnp.float32)
    average = optax.chain(scale_by_moments(0.9, None), scale_by_lr(1.0))
    ball = optax.chain(scale_by_moments(trace(0.9), None), scale_by_lr(0.1))
    ours, _, _ = run(average, grads, jnp.zeros(6))
    theirs, _, _ = run(ball, grads, jnp.zeros(6))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    sgd, _, _ = run(adam_jax.sgd(0.1, momentum=0.9), grads, jnp.zeros(6))
    np.testing.assert_array_equal(theirs, sgd)


def test_the_order_of_maximum_and_correction_matters():
    """A large first gradient: corrected it weighs 1000 times more at t = 1."""
    grads = jnp.float32([[1.0], *([[0.1]] * 20)])
    stages = [scale_by_moments(), bias_correct(), running_max(), scale_by_lr(1.0)]
    optax_s, _, _ = run(optax.chain(*stages), grads, jnp.zeros(1))
    stages[1:3] = stages[2:0:-1]
    torch_s, _, _ = run(optax.chain(*stages), grads, jnp.zeros(1))
    assert np.all(np.abs(optax_s[5:]) < 0.5 * np.abs(torch_s[5:]))


@pytest.mark.parametrize("give_params", [False, True])
def test_dtypes_between_the_stages(give_params):
    """With params updates are wide until the end; without, as the gradients were."""
    params = jnp.ones(2, jnp.bfloat16)
    given = params if give_params else None
    tx = optax.chain(scale_by_moments(), bias_correct(), precondition())
    updates, _ = tx.update(params, tx.init(params), given)
    assert updates.dtype == (jnp.float32 if give_params else jnp.bfloat16)
    tx = optax.chain(tx, scale_by_lr(jnp.float32(0.1)))
    updates, _ = tx.update(params, tx.init(params), given)
    assert updates.dtype == jnp.bfloat16


def test_storage_dtypes_hold_through_a_scan():
    tx = adam_jax.adam(1e-2, mu_dtype=jnp.bfloat16, nu_dtype="bfloat16")
    grads = jnp.ones((5, 3), jnp.float32)
    _, _, state = run(tx, grads, jnp.zeros(3, jnp.bfloat16))
    assert optax.tree.get(state, "mu").dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu").dtype == jnp.bfloat16
    _, _, state = run(scale_by_trace(0.9, False, "bfloat16"), grads, jnp.zeros(3))
    assert state.trace.dtype == jnp.bfloat16


def test_each_leaf_has_its_own_precision():
    with jax.enable_x64(True):
        params = {"a": jnp.ones(2, jnp.float64), "b": jnp.ones(2, jnp.bfloat16)}
        tx = adam_jax.adamw(1e-3)
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        mu = optax.tree.get(state, "mu")
        assert (mu["a"].dtype, mu["b"].dtype) == (jnp.float64, jnp.float32)
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(
            lambda p: p.dtype, params
        )


def test_a_poisoned_gradient_shows():
    """An infinity is not bounded away: it must not look like an ordinary step."""
    tx = adam_jax.adam(1e-3)
    grads = jnp.float32([jnp.inf, jnp.nan, 1.0])
    updates, _ = tx.update(grads, tx.init(jnp.zeros(3)))
    np.testing.assert_array_equal(jnp.isnan(updates), [True, True, False])


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_radam_has_no_r_below_4_whatever_the_threshold(threshold):
    grads, params = jnp.ones((10, 1)), jnp.zeros(1)
    updates, _, _ = run(adam_jax.radam(1e-3, threshold=threshold), grads, params)
    plain, _, _ = run(adam_jax.radam(1e-3, threshold=4.0), grads, params)
    np.testing.assert_array_equal(updates, plain)
    tx = adam_jax.radam(1e-3, b2=0.6)  # rho never reaches 4
    gradient = jax.grad(lambda g: tx.update(g, tx.init(g))[0].sum())(params)
    assert jnp.isfinite(gradient).all()


def test_l2_is_not_adamw():
    params, grads = jnp.float32([10.0]), jnp.float32([1e-3])
    l2 = optax.chain(adam_jax.add_decayed_weights(0.1), adam_jax.adam(1.0))
    decoupled = adam_jax.adamw(1.0, weight_decay=0.1)
    first_l2, _ = l2.update(grads, l2.init(params), params)
    first, _ = decoupled.update(grads, decoupled.init(params), params)
    np.testing.assert_allclose(first_l2, [-1.0], rtol=1e-5)
    np.testing.assert_allclose(first, [-2.0], rtol=1e-4)  # eps 1e-8 beside 1e-3


@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_promotion_is_explicit(name):
    """No stage leans on implicit promotion, which would follow the wrong operand."""
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones((2, 2))}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        tx = adam_jax.OPTIMIZERS[name](jnp.float32(0.1))
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates["half"].dtype == jnp.bfloat16
