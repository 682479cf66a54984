"""Shared second moments: the published methods, and not nearly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import run

import adam_jax
from adam_jax import factored, mean_over

SHAPES = [(6, 8), (8, 6), (5, 7, 4), (3, 9), (9,), ()]


def draw(shape, steps=30):
    """Gradients whose rows and columns have scales of their own."""
    rng = np.random.default_rng(len(shape))
    scales = [10 ** rng.uniform(-2, 1, n) for n in shape]
    grid = np.ones(shape)
    for axis, scale in enumerate(scales):
        grid = grid * np.moveaxis(scale.reshape(-1, *[1] * (len(shape) - 1)), 0, axis)
    return rng.normal(size=(steps, *shape)) * grid


def adafactor_average(exponent=0.8, eps=1e-30):
    """Adafactor's second moment: the average of g^2 + eps at the rate 1 - t^-0.8.

    Optax computes the rate in float32, even of float64 moments.
    """
    return adam_jax.Accumulator(
        {
            "decay": lambda count: 1 - jnp.float32(count + 1) ** -exponent,
            "eps": eps,
        },
        add=lambda moment, value, h: h.decay * moment + (1 - h.decay) * value,
        measure=lambda grad, mu, h: grad * grad + h.eps,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("min_size", [4, 128])
def test_factored_is_optax_s(shape, min_size):
    """scale_by_factored_rms, which Adafactor begins with, to the last digits."""
    grads = draw(shape)
    ours = optax.chain(
        adam_jax.scale_by_moments(
            None, adafactor_average(), nu_dtype=factored(min_size=min_size)
        ),
        adam_jax.precondition(eps=0.0),
    )
    theirs = optax.scale_by_factored_rms(min_dim_size_to_factor=min_size)
    with jax.enable_x64(True):
        params = jnp.zeros(shape)
        found, _, state = run(ours, jnp.asarray(grads), params)
        expected, _, optax_state = run(theirs, jnp.asarray(grads), params)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # And it keeps as little: v_row and v_col, or v; Optax has (1,) where it has none.
    kept = [x.size for x in jax.tree.leaves((state[0].nu, state[0].nu_format))]
    others = (optax_state.v_row, optax_state.v_col, optax_state.v)
    whole = [x.size for x in jax.tree.leaves(others) if x.shape != (1,)]
    assert sum(kept) == sum(whole)


def test_factored_in_float32_beside_optax():
    grads = jnp.asarray(draw((6, 8)), jnp.float32)
    stage = adam_jax.scale_by_moments(None, adafactor_average(), nu_dtype=factored(4))
    ours, _, _ = run(
        optax.chain(stage, adam_jax.precondition(eps=0.0)), grads, jnp.zeros((6, 8))
    )
    theirs, _, _ = run(optax.scale_by_factored_rms(True, 0.8, 0, 4), grads, ours[0])
    # Optax takes roots of row and column apart; some ten roundings of 6e-8 each.
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def test_a_factored_moment_does_not_leave_the_range():
    """Gradients of 2^60: the product of two moments would be 2^240."""
    grads = jnp.full((3, 4, 5), 2.0**60, jnp.float32)
    tx = adam_jax.adam(1.0, nu_dtype=factored(min_size=2))
    updates, _, _ = run(tx, grads, jnp.zeros((4, 5)))
    np.testing.assert_allclose(updates, -1.0, rtol=1e-5)
    silent = grads.at[:, 1].set(0.0)
    updates, _, _ = run(tx, silent, jnp.zeros((4, 5)))
    assert (updates[:, 1] == 0).all() and np.isfinite(updates).all()


def adam_mini(grads, axes, lr=1e-2, b1=0.9, b2=0.95, eps=1e-8):
    """Adam-mini (Zhang et al. 2024, Algorithm 1), one mean for each block."""
    mu, v, updates = np.zeros(grads.shape[1:]), 0.0, []
    for t, g in enumerate(grads, 1):
        mu = b1 * mu + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.mean(g * g, axis=axes, keepdims=True)
        mu_hat, v_hat = mu / (1 - b1**t), v / (1 - b2**t)
        updates.append(-lr * mu_hat / (np.sqrt(v_hat) + eps))
    return np.array(updates)


@pytest.mark.parametrize("axes", [-1, 0, (0, 1), None])
def test_a_mean_over_axes_is_adam_mini(axes):
    grads = draw((6, 8))
    tx = adam_jax.adam(1e-2, b2=0.95, nu_dtype=mean_over(axes))
    with jax.enable_x64(True):
        updates, _, state = run(tx, jnp.asarray(grads), jnp.zeros((6, 8)))
    expected = adam_mini(grads, (0, 1) if axes is None else axes)
    np.testing.assert_allclose(updates, expected, rtol=1e-11)
    sizes = {-1: 6, 0: 8, (0, 1): 1, None: 1}
    assert optax.tree.get(state, "nu").size == sizes[axes]


def test_a_sum_of_row_means_is_row_wise_adagrad():
    """One number a row: `v <- v + mean(g^2)`, as for embeddings (Gupta et al. 2014)."""
    grads = draw((6, 8))
    v, expected = 0.0, []
    for g in grads:
        v = v + np.mean(g * g, axis=1, keepdims=True)
        expected.append(-0.1 * g / np.sqrt(v))
    tx = optax.chain(
        adam_jax.scale_by_moments(None, adam_jax.total(), nu_dtype=mean_over(-1)),
        adam_jax.precondition(eps=0.0),
        adam_jax.scale_by_lr(0.1),
    )
    with jax.enable_x64(True):
        updates, _, _ = run(tx, jnp.asarray(grads), jnp.zeros((6, 8)))
    np.testing.assert_allclose(updates, expected, rtol=1e-12)


def test_axes_that_a_leaf_has_not_are_left_out():
    params = {"w": jnp.ones((2, 3, 4)), "b": jnp.ones(5), "s": jnp.float32(1)}
    nu = adam_jax.adam(1e-2, nu_dtype=mean_over((-1, -2))).init(params)[0].nu
    shapes = jax.tree.map(jnp.shape, nu)
    assert shapes == {"w": (2, 1, 1), "b": (1,), "s": ()}
    nothing = adam_jax.adam(1e-2, nu_dtype=mean_over()).init(jnp.ones((0, 3)))
    assert nothing[0].nu.shape == (0, 3)


FORMATS = [factored(min_size=4), mean_over(-1), mean_over()]


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_state_is_read_with_and_without_the_parameters(format):
    params = {"w": jnp.ones((6, 8)), "b": jnp.ones(9)}
    tx = adam_jax.adam(1e-2, nu_dtype=format)
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    _, state = tx.update(grads, tx.init(params), params)
    _, nu = adam_jax.load_moments(state, params)
    assert jax.tree.map(jnp.shape, nu) == jax.tree.map(jnp.shape, params)
    if isinstance(state[0].nu_format, adam_jax.MeanOver):  # which knows no shapes
        for read in (adam_jax.load_moments, adam_jax.read_moments):
            with pytest.raises(ValueError, match=r"pass params, as in load_moments"):
                read(state)
        with pytest.raises(ValueError, match=r"do not know the shapes.*: pass params"):
            adam_jax.convert_state(state, nu_dtype="float32")
    else:
        _, bare = adam_jax.load_moments(state)
        jax.tree.map(np.testing.assert_array_equal, bare, nu)
    wide = adam_jax.convert_state(state, nu_dtype="float32", params=params)
    jax.tree.map(np.testing.assert_array_equal, wide[0].nu, nu)
    back = adam_jax.convert_state(wide, nu_dtype=format)
    for x, y in zip(*map(jax.tree.leaves, (back, state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    # The moments that are read are those that the next step divides by.
    recorded = adam_jax.record(tx, ["signal_to_noise"])
    _, state = recorded.update(grads, recorded.init(params), params)
    ratio = jnp.abs(grads["w"]) / jnp.sqrt(nu["w"] / 0.001)
    found = state.figures["signal_to_noise"].leaves[1]
    np.testing.assert_allclose(found, ratio.mean(), rtol=1e-4)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_shared_moments_compose(format):
    """Packed, guarded, rounded, masked: as each alone."""
    params = {"w": jnp.ones((6, 8)), "b": jnp.ones(9), "c": jnp.ones(9)}
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    tx = adam_jax.adamw(1e-2, nu_dtype=format)
    expected, _ = tx.update(grads, tx.init(params), params)
    for wrap in (
        adam_jax.packed,
        adam_jax.skip_spikes,
        adam_jax.round_to_params,
        lambda tx: optax.masked(tx, {"w": True, "b": True, "c": True}),
    ):
        updates, _ = wrap(tx).update(grads, wrap(tx).init(params), params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_gradients_may_be_python_numbers():
    tx = adam_jax.adam(1e-2, nu_dtype=mean_over(-1))
    updates, _ = tx.update({"a": 2.0}, tx.init({"a": 1.0}), {"a": 1.0})
    np.testing.assert_allclose(updates["a"], -1e-2, rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="min_size must be a positive integer, got 0"):
        factored(0)
    for axes in (("x",), 1.5, "x", True, (0, 1.0)):
        with pytest.raises(ValueError, match="axes must be integers, or None for all"):
            mean_over(axes)
    for format in (factored(), mean_over()):
        with pytest.raises(ValueError, match=r"\(\) stores second moments only"):
            adam_jax.adam(1e-2, mu_dtype=format).init(jnp.ones((2, 2)))
    state = adam_jax.adam(1e-2, nu_dtype=mean_over(0)).init(jnp.ones((2, 3)))
    tx = adam_jax.adam(1e-2, nu_dtype=mean_over(0))
    with pytest.raises(AssertionError, match=r"shape \(2, 4\), not \(2, 3\)"):
        tx.update(jnp.ones((2, 4)), state)
    alone = adam_jax.scale_by_moments(None, 0.9, nu_dtype=mean_over(0))
    with pytest.raises(AssertionError, match=r"shape \(2, 4\), not \(1, 3\)"):
        alone.update(jnp.ones((2, 4)), alone.init(jnp.ones((2, 3))))


@pytest.mark.parametrize("format", [adam_jax.mean_over(), adam_jax.factored(2)])
def test_the_mean_of_large_squares_is_finite(format):
    """2^60 squared, which every gradient is bounded to, over 2^12 elements."""
    grads = jnp.full((64, 64), 1e19)
    tx = adam_jax.adam(1.0, b1=0.0, b2=0.0, nu_dtype=format)
    updates, state = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates, -1.0, rtol=1e-6)
    assert jnp.isfinite(optax.tree.get(state, "nu")).all()
    tiny = format.init(jnp.full((64, 64), 1e-37), False)
    # Some steps of a mean of these are subnormal, of 17 bits.
    np.testing.assert_allclose(tiny.decode(jnp.ones((64, 64))), 1e-37, rtol=2e-5)
