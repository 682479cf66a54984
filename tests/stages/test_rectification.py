"""RAdam's rectification, in float32, beside 60 digits."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import numerics
from adam_jax.stages.flow import Moments

DECAYS = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
STEPS = [*range(1, 13), 20, 100, 999, 10_000, 10**5, 10**6, 10**8, 2**31 - 1]
COUNTS = jnp.array(STEPS, jnp.int32)


def rho(decay, t):
    """Algorithm 2, line 7, of the decay as it is given, in 60 digits."""
    with decimal.localcontext(prec=60, Emin=-(10**9)):
        b, t = decimal.Decimal(float(decay)), decimal.Decimal(t)
        longest = 2 / (1 - b) - 1
        return longest, longest - 2 * t * b**t / (1 - b**t)


def rectified(decay, t, threshold):
    """What a corrected update of 1 becomes: r, or 1 (lines 8 to 12)."""
    longest, now = rho(decay, t)
    with decimal.localcontext(prec=60):
        if now <= 4 or now < threshold:
            return 1.0
        square = (now - 4) * (now - 2) * longest
        return float((square / ((longest - 4) * (longest - 2) * now)).sqrt())


@pytest.mark.parametrize("kind", [float, jnp.float32], ids=["float", "array"])
@pytest.mark.parametrize("level", [0.0, 2.0, 4.0, 5.0, 6.0])
@pytest.mark.parametrize("decay", DECAYS)
def test_rho_above_a_level(decay, level, kind):
    decay = kind(decay)
    expected = [rho(decay, t)[1] - decimal.Decimal(level) for t in STEPS]

    @jax.jit
    @jax.vmap
    def above(count):
        return numerics.sma_length_above(decay, count, level, "float32")

    # A float32 step count above 2^24 is rounded itself, where rho is rho_inf.
    np.testing.assert_allclose(
        above(COUNTS), np.float64(expected), rtol=1e-6, atol=2e-7
    )


@pytest.mark.parametrize("kind", [float, jnp.float32], ids=["float", "array"])
@pytest.mark.parametrize("threshold", [4.0, 5.0, 6.0])
@pytest.mark.parametrize("decay", DECAYS)
def test_the_branch_and_r(decay, threshold, kind):
    tx = adam_jax.rectified_precondition(0.0, 0.0, threshold)
    one = jnp.ones([])

    @jax.jit
    @jax.vmap
    def stage(count):
        moments = Moments(count, one, one, one, one, one, nu_decay=kind(decay))
        return tx.update(moments, optax.EmptyState())[0]

    expected = [rectified(kind(decay), t, threshold) for t in STEPS]
    np.testing.assert_allclose(stage(COUNTS), expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.999, 0.9999, 0.999999])
def test_radam_by_schedule_and_injection(decay):
    """At the fifth step, of b2 = 0.9999, it used to be 0.0055 learning rates, not 1."""
    made = [
        adam_jax.radam(1.0, b2=decay, eps=0.0),
        adam_jax.radam(1.0, b2=lambda count: jnp.float32(decay), eps=0.0),
        optax.inject_hyperparams(adam_jax.radam)(1.0, b2=decay, eps=0.0),
    ]
    values = [decay, np.float32(decay), np.float32(decay)]
    for tx, value in zip(made, values, strict=True):
        state, sizes = tx.init(jnp.zeros([])), []
        for _ in range(10):
            update, state = tx.update(jnp.ones([]), state)
            sizes.append(-update)
        expected = [rectified(value, t, 5.0) for t in range(1, 11)]
        np.testing.assert_allclose(sizes, expected, rtol=2e-6)
