"""Stages that run others, and those that look at whole leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import (
    add_branches,
    adjust_leaves,
    bias_correct,
    clip_elements,
    floor_nu,
    largest,
    norm,
    precondition,
    scale_by_lr,
    scale_by_moments,
    take_gradients,
    trace,
)


def first(tx, grads, params=None):
    return tx.update(grads, tx.init(grads if params is None else params), params)[0]


def test_branches_of_moments_add_mu_and_its_weight():
    tx = add_branches(
        (2.0, scale_by_moments(0.5, 0.75)), (-1.0, scale_by_moments(0.75, None))
    )
    m = first(tx, jnp.float32(4))
    np.testing.assert_allclose([m.mu, m.mu_weight], [2 * 2 - 1, 2 * 0.5 - 0.25], 1e-6)
    np.testing.assert_allclose([m.nu, m.nu_weight], [4.0, 0.25], 1e-6)
    corrected = first(optax.chain(tx, bias_correct()), jnp.float32(4))
    np.testing.assert_allclose([corrected.mu, corrected.nu], [4.0, 16.0], 1e-6)


def test_a_sum_with_a_corrected_mu_is_not_corrected_again():
    fast = optax.chain(scale_by_moments(0.5, None), bias_correct())
    tx = add_branches((1.0, fast), (1.0, scale_by_moments(0.5, None)))
    with pytest.raises(ValueError, match="mu corrected"):
        first(optax.chain(tx, bias_correct()), jnp.float32(1))


def test_a_branch_without_factor_gives_its_nu_alone():
    tx = add_branches((3.0, scale_by_moments(None, None)), (None, scale_by_moments()))
    m = first(tx, jnp.float32(2))
    assert m.mu == 6.0
    np.testing.assert_allclose(m.nu, 0.004, rtol=1e-5)


def test_branches_of_updates_stay_wide_for_parameters():
    half = jnp.bfloat16(1.0)
    tx = add_branches((1.0, optax.identity()), (1e-4, optax.identity()))
    assert first(tx, half).dtype == jnp.bfloat16
    wide = first(tx, half, half)
    assert wide.dtype == jnp.float32 and wide == jnp.float32(1.0001)


def test_factors_are_schedules_of_the_count_before_the_step():
    tx = add_branches((lambda count: 10.0 * count, optax.identity()))
    state, found = tx.init(jnp.float32(0)), []
    for _ in range(3):
        out, state = tx.update(jnp.float32(1), state)
        found.append(float(out))
    assert found == [0.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("branches", "error", "message"),
    [
        ([], ValueError, "whose factor is not None"),
        ([(None, optax.identity())], ValueError, "whose factor is not None"),
        ([optax.identity()], TypeError, "pairs"),
        ([[1.0, optax.identity()]], TypeError, "pairs"),
        ([(float("inf"), optax.identity())], ValueError, "factor"),
        ([("1", optax.identity())], TypeError, "factor"),
    ],
)
def test_branches_are_checked(branches, error, message):
    with pytest.raises(error, match=message):
        add_branches(*branches)


def test_branches_are_checked_at_the_first_trace():
    with pytest.raises(ValueError, match="2 branches of add_branches"):
        first(add_branches((1.0, scale_by_moments()), (1.0, scale_by_moments())), 1.0)
    mixed = add_branches((1.0, scale_by_moments()), (1.0, optax.identity()))
    with pytest.raises(TypeError, match="emit Moments, and some updates"):
        first(mixed, jnp.float32(1))
    one = add_branches((1.0, optax.identity()))
    two = add_branches((1.0, optax.identity()), (1.0, optax.identity()))
    with pytest.raises(TypeError, match="2 branches was given a state of 1"):
        two.update(jnp.float32(1), one.init(jnp.float32(1)))
    with pytest.raises(TypeError, match="made by another chain"):
        one.update(jnp.float32(1), scale_by_lr(1.0).init(jnp.float32(1)))
    with pytest.raises(TypeError, match="take_gradients"):
        first(take_gradients(), jnp.float32(1))


def test_taken_gradients_are_bounded_like_those_of_nu():
    tx = optax.chain(scale_by_moments(), take_gradients())
    assert first(tx, jnp.float32(-1e30)) == -(2.0**60)


@pytest.mark.parametrize("name", ["ademamix", "adan", "laprop", "adapnm", "qhadam"])
def test_a_huge_gradient_gives_a_step_of_ordinary_size(name):
    tx = adam_jax.OPTIMIZERS[name](1.0)
    update = first(tx, jnp.float32(1e30), jnp.float32(0))
    assert 0.1 < -update < 2


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e30])
def test_norm_and_largest_at_every_scale(value):
    leaf = value * jnp.array([[3.0, -4.0]])
    np.testing.assert_allclose(norm(leaf), value * 5.0, rtol=1e-6)
    np.testing.assert_allclose(largest(leaf), value * 4.0, rtol=1e-6)
    assert norm(jnp.zeros((0, 3))) == 0 and largest(jnp.zeros((0, 3))) == 0
    assert norm(jnp.array([3.0 + 4.0j])) == 5 and largest(jnp.array([4.0j])) == 4
    assert jnp.isfinite(jax.grad(norm)(leaf)).all()


def test_leaves_are_adjusted_one_by_one_and_nothing_is_passed_by():
    tx = adjust_leaves(norm, lambda leaf, size, number: leaf / number)
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.float32(-2), "none": None}
    out = first(tx, grads)
    np.testing.assert_allclose(out["a"], [0.6, 0.8], rtol=1e-6)
    assert out["b"] == -1 and out["none"] is None
    half = first(tx, jnp.array([3.0, 4.0], jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="adjust_leaves"):
        first(optax.chain(scale_by_moments(), tx), jnp.float32(1))


def test_numbers_of_leaves_have_a_state_of_one_number_each():
    tx = adjust_leaves(
        largest, lambda x, size, _: x, scale_by_moments(trace(0.5), None)
    )
    state = tx.init({"a": jnp.zeros((4, 5), jnp.bfloat16)})
    assert state.mu["a"].shape == () and state.mu["a"].dtype == jnp.float32


def test_clip_elements_bounds_sizes_and_keeps_directions():
    tx = clip_elements(2.0)
    np.testing.assert_array_equal(first(tx, jnp.array([3.0, -9.0, 1.0])), [2, -2, 1])
    np.testing.assert_allclose(
        first(tx, jnp.array([6.0 + 8.0j, 0.5j, 0])), [1.2 + 1.6j, 0.5j, 0], rtol=1e-6
    )
    with pytest.raises(ValueError, match="limit"):
        clip_elements(-1.0)
    with pytest.raises(TypeError, match="clip_elements"):
        first(optax.chain(scale_by_moments(), tx), jnp.float32(1))


def test_floor_nu_bounds_the_root():
    tx = optax.chain(scale_by_moments(None, 0.75), floor_nu(2.0), precondition(eps=0.0))
    np.testing.assert_allclose(first(tx, jnp.array([1.0, 8.0])), [0.5, 2.0])
    with pytest.raises(ValueError, match="second moment"):
        first(optax.chain(scale_by_moments(0.9, None), floor_nu(1.0)), jnp.float32(1))
    with pytest.raises(ValueError, match="eps"):
        floor_nu(-1.0)


@pytest.mark.parametrize("decays", [(), 0.9, "0.9", None])
def test_aggmo_refuses_what_is_no_tuple_of_decays(decays):
    with pytest.raises(TypeError, match="tuple of decay rates"):
        adam_jax.aggmo(1e-3, decays)


@pytest.mark.parametrize("decays", [(1.0,), (0.0, -0.5)])
def test_aggmo_refuses_decays_out_of_range(decays):
    with pytest.raises(ValueError, match="decays must be a decay rate"):
        adam_jax.aggmo(1e-3, decays)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_are_checked(share):
    for name in ("v1", "v2"):
        with pytest.raises(ValueError, match=f"{name} must be a number in"):
            adam_jax.qhadam(1e-3, **{name: share})


def test_a_decay_of_zero_needs_no_trace():
    state = adam_jax.aggmo(1e-3).init(jnp.zeros(7))
    assert sum(x.shape == (7,) for x in jax.tree.leaves(state)) == 2


def test_large_gradients_are_bounded_in_all_branches_if_in_one():
    """As beside the second moment: 1e30 cannot be squared in float32."""
    for size in (1.0, 1e30):
        tx = optax.chain(
            add_branches((1.0, scale_by_moments()), (1.0, scale_by_moments(0.5, None))),
            bias_correct(),
            precondition(),
        )
        np.testing.assert_allclose(first(tx, jnp.float32(size)), 1.0, rtol=1e-6)
    alone = add_branches((1.0, optax.identity()), (1.0, optax.identity()))
    assert first(alone, jnp.float32(1e30)) == np.float32(2e30)
    half = optax.chain(
        add_branches((1.0, scale_by_moments()), (1.0, scale_by_moments(0.5, None))),
        precondition(),
    )
    assert first(half, jnp.bfloat16(1e30)).dtype == jnp.bfloat16
