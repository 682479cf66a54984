"""Methods whose step depends on a whole leaf, against the oracles over NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARRAY_CASES, MAKERS, first_often, leaf_gradients, run
from oracle import ARRAY_ORACLES, trajectory

STEPS = {"prodigy": 40}  # later its parameters are thousands, and its steps likewise


def test_every_array_oracle_has_a_case():
    assert {name for name, *_ in ARRAY_CASES} == ARRAY_ORACLES.keys()


@pytest.mark.parametrize("case", first_often(ARRAY_CASES))
def test_float64_follows_the_oracle(case):
    name, shape, kwargs = case
    kwargs = {"learning_rate": 1e-2} | kwargs
    params, grads = leaf_gradients(shape, STEPS.get(name, 200))
    expected, _ = trajectory(name, grads, params, **kwargs)
    with jax.enable_x64(True):
        if "momentum" in kwargs and name == "adafactor":
            kwargs["dtype_momentum"] = "float64"
        updates, _, _ = run(MAKERS[name](**kwargs), jnp.asarray(grads), params)
    size = np.maximum(np.abs(expected).max(tuple(range(1, grads.ndim))), 1e-2)
    error = np.abs(updates - expected).max(tuple(range(1, grads.ndim))) / size
    assert error.max() < 1e-12
