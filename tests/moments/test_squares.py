"""Accumulators of squares that many elements share."""

import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax import (
    floored_average,
    mean_over,
    rising_decay,
    scale_by_moments,
    squared_norm,
)


def test_a_rising_decay_weighs_all_past_alike_at_exponent_one():
    tx = scale_by_moments(None, floored_average(rising_decay(1.0), 0.25))
    state = tx.init(jnp.zeros(2))
    grads = np.random.default_rng(0).normal(size=(20, 2))
    for g in grads:
        moments, state = tx.update(jnp.asarray(g, jnp.float32), state)
    np.testing.assert_allclose(moments.nu, (grads**2).mean(0) + 0.25, rtol=1e-5)
    assert moments.nu_weight == 1


def test_a_rising_decay_starts_late_and_stays_below_one():
    late = rising_decay(0.8, 10)
    assert all(late(count) == 0 for count in range(11))
    np.testing.assert_allclose(late(11), 1 - 2**-0.8, rtol=1e-6)
    assert rising_decay(5.0)(jnp.int32(2**31 - 1)) < 1  # 1 - 2^-155 is 1
    with pytest.raises(ValueError, match="exponent must be a finite number >= 0"):
        rising_decay(-0.8)


def test_the_residual_is_that_to_the_first_moment_of_this_step():
    tx = scale_by_moments(0.5, floored_average(0.5, 0.25, residual=True))
    moments, _ = tx.update(jnp.float32(4), tx.init(jnp.float32(0)))
    assert moments.nu == 0.5 * (2.0**2 + 0.25)
    moments, _ = tx.update(jnp.complex64(4j), tx.init(jnp.complex64(0)))
    assert moments.nu == 0.5 * (2.0**2 + 0.25)


def test_a_squared_norm_begins_with_that_of_the_first_gradient():
    tx = scale_by_moments(None, squared_norm(0.25), nu_dtype=mean_over())
    state = tx.init(jnp.zeros((2, 2)))
    for scale, expected in ((1.0, 4.0), (2.0, 0.25 * 4 + 0.75 * 16)):
        moments, state = tx.update(jnp.full((2, 2), scale), state)
        np.testing.assert_allclose(moments.nu, expected, rtol=1e-6)
    # Of gradients at the bound, 2^60, the sum of squares overflows; the state does not.
    huge = jnp.full((64, 64), 1e19)
    moments, state = tx.update(huge, tx.init(huge))
    assert jnp.isfinite(state.nu).all()
