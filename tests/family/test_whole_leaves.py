"""Methods whose step depends on a whole leaf, against the oracles over NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    ARRAY_CASES,
    MAKERS,
    beside_oracle,
    first_often,
    leaf_gradients,
    run,
)
from oracle import ARRAY_ORACLES


def test_every_array_oracle_has_a_case():
    assert {name for name, *_ in ARRAY_CASES} == ARRAY_ORACLES.keys()


@pytest.mark.parametrize("case", first_often(ARRAY_CASES))
def test_float64_follows_the_oracle(case):
    updates, expected = beside_oracle(case)
    axes = tuple(range(1, expected.ndim))
    size = np.maximum(np.abs(expected).max(axes), 1e-2)
    error = np.abs(updates - expected).max(axes) / size
    # Shampoo's roots multiply roundings by up to eps^(-1/2), which is 1,000.
    assert error.max() < (1e-11 if case[0] == "shampoo" else 1e-12)


@pytest.mark.parametrize("b1, b2", [(0.9, 0.999), (0.0, 0.9)])
def test_prodigy_without_corrections_is_the_authors_default(b1, b2):
    def undo(count):
        t = count + 1.0
        return (1 - b1**t) / (1 - b2**t) ** 0.5

    start, grads = leaf_gradients((4, 6), 30)
    with jax.enable_x64(True):
        tx = MAKERS["prodigy"](undo, betas=(b1, b2), eps=0.0)
        updates, _, _ = run(tx, jnp.asarray(grads), start)
    p, d, mu, nu, s, r = start, 1e-6, 0.0, 0.0, 0.0, 0.0
    for g, update in zip(grads, updates, strict=True):
        size = d
        mu, nu = b1 * mu + (1 - b1) * d * g, b2 * nu + (1 - b2) * (d * g) ** 2
        s = b2**0.5 * s + d / 1e-6 * size * g
        r = b2**0.5 * r + d / 1e-6 * size * np.sum(g * (start - p))
        d = max(d, r / np.abs(s).sum())
        expected = -size * mu / np.sqrt(nu)
        np.testing.assert_allclose(update, expected, rtol=1e-9, atol=1e-15)
        p = p + expected
    assert d > 1e-6
