"""The distributions of the effective step and of the signal-to-noise ratio."""

import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.experiments.anatomy import magnitude_quantiles, signal_to_noise


def test_quantiles_are_of_what_has_a_gradient():
    # 0, 1, ..., 100 in two leaves, and values that no gradient touched.
    values = {"a": -jnp.arange(51.0), "b": jnp.append(jnp.arange(51.0, 101.0), 1e9)}
    grads = {"a": jnp.ones(51), "b": jnp.append(jnp.ones(50), 0.0)}
    quantiles = magnitude_quantiles(values, grads)
    expected = {"q05": 5, "q25": 25, "q50": 50, "q75": 75, "q95": 95}
    assert {key: float(value) for key, value in quantiles.items()} == expected


@pytest.mark.parametrize("name", ["adam", "simplified_adam", "adamw", "amsgrad"])
def test_ratio_of_a_steady_and_of_a_changing_gradient(name):
    params = jnp.zeros(3)
    tx = adam_jax.OPTIMIZERS[name](1e-3)
    state = tx.init(params)
    for step in range(50):
        grads = jnp.array([2.0, (-1.0) ** step, 0.0])
        _, state = tx.update(grads, state, params)
    steady, changing, untouched = np.asarray(signal_to_noise(state))
    # 1 where gradients agree; an alternating one averages to (1-b1)/(1+b1) = 1/19
    # of its size (b1^50 of which are still to come), up to float32 rounding.
    assert steady == pytest.approx(1, rel=1e-5)
    assert changing == pytest.approx(1 / 19, rel=2 * 0.9**50)
    assert untouched == 0


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adagrad", "lion"])
def test_no_ratio_without_both_moments(name):
    params = jnp.zeros(2)
    assert signal_to_noise(adam_jax.OPTIMIZERS[name](1e-3).init(params)) is None
