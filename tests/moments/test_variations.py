"""Accumulators made from others, by hand-made numbers and in every format."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import (
    Accumulator,
    alternating,
    average_from_first,
    bias_correct,
    delayed,
    difference,
    ema,
    hold,
    infinity_norm,
    mixture,
    residual_variance,
    restarted,
    scale_by_moments,
    trace,
)


def moments_after(tx, grads, dtype=jnp.float32):
    """Return the Moments of every step."""
    state, found = tx.init(jnp.zeros_like(jnp.asarray(grads[0], dtype))), []
    for grad in grads:
        moments, state = jax.jit(lambda g, s: _open(tx, g, s))(
            jnp.asarray(grad, dtype), state
        )
        found.append(moments)
    return found


def _open(tx, grad, state):
    moments, state = tx.update(grad, state)
    return (moments.mu, moments.nu, moments.mu_weight, moments.nu_weight), state


def rising(count):
    return 0.9 - 0.5 / (1.0 + count)


@pytest.mark.parametrize("decay", [0.5, jnp.float32(0.5), lambda count: 0.5])
def test_mixture_is_weighted_so_that_correction_leaves_the_gradient(decay):
    tx = optax.chain(
        scale_by_moments(mixture(ema(decay), 0.25), mixture(ema(decay), 0.75, order=2)),
        bias_correct(),
    )
    (*_,), (mu, nu, _, _) = moments_after(tx, [1.0, 4.0])
    np.testing.assert_allclose(mu, 0.25 * 3 + 0.75 * 4, rtol=1e-6)
    np.testing.assert_allclose(nu, 0.75 * 11 + 0.25 * 16, rtol=1e-6)


def test_mixture_of_what_is_read_otherwise_and_of_complex_numbers():
    tx = scale_by_moments(mixture(trace(0.5, nesterov=True), 2.0, -1.0), None)
    mu, *_ = moments_after(tx, [3.0])[0]
    np.testing.assert_allclose(mu, 2 * (0.5 * 3 + 3) - 3)
    both = scale_by_moments(mixture(ema(0.5), 0.5), mixture(ema(0.5), 0.5, order=2))
    mu, nu, *_ = moments_after(both, [[3.0 + 4.0j]], jnp.complex64)[0]
    np.testing.assert_allclose(mu, [0.5 * (3 + 4j)])
    np.testing.assert_allclose(nu, [0.5 * 25])


@pytest.mark.parametrize("accumulator", [infinity_norm(0.9), residual_variance(0.9)])
def test_mixture_refuses_what_does_not_gather_the_square(accumulator):
    with pytest.raises(ValueError, match=r"gathers \|g\|\^2"):
        mixture(accumulator, 0.5, order=2)


def test_mixture_is_refused_for_the_other_moment():
    with pytest.raises(ValueError, match="for first moments only"):
        scale_by_moments(None, mixture(ema(0.9), 0.5))
    with pytest.raises(ValueError, match="for second moments only"):
        scale_by_moments(mixture(ema(0.9), 0.5, order=2))
    with pytest.raises(ValueError, match="moment must be a finite number"):
        mixture(ema(0.9), float("nan"))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "8bit"])
def test_difference_is_zero_at_first_even_of_infinity(dtype):
    tx = hold("difference", difference(), dtype=dtype)
    state, found = tx.init(jnp.zeros(2)), []
    for grad in ([2.0, jnp.inf], [5.0, 1.0], [4.0, 2.0]):
        out, state = jax.jit(tx.update)(jnp.array(grad), state)
        found.append(np.asarray(out))
    assert (found[0] == 0).all()
    assert found[1][0] == 3.0
    np.testing.assert_allclose(found[2], [-1.0, 1.0], atol=0.05)


@pytest.mark.parametrize("decay", [0.9, jnp.float32(0.9), rising])
@pytest.mark.parametrize("dtype", [None, "8bit"])
def test_delayed_has_the_moment_and_the_weight_of_the_step_before(decay, dtype):
    grads = [[3.0], [-1.0], [0.5]]
    plain = scale_by_moments(None, decay, nu_dtype=dtype)
    late = scale_by_moments(None, delayed(ema(decay), 2.0), nu_dtype=dtype)
    now, before = moments_after(plain, grads), moments_after(late, grads)
    assert before[0][1] == 2.0 and before[0][3] == 1.0
    for i in (0, 1):
        np.testing.assert_allclose(before[i + 1][1], now[i][1], rtol=1e-2)
        np.testing.assert_allclose(before[i + 1][3], now[i][3], rtol=1e-6)


def test_delayed_of_a_power_and_without_average():
    late = scale_by_moments(None, delayed(infinity_norm(0.5), 3.0))
    nus = [m[1].item() for m in moments_after(late, [4.0, 1.0])]
    assert nus == [9.0, 16.0]
    late = scale_by_moments(delayed(trace(0.5), 0.0), None)
    assert [m[0].item() for m in moments_after(late, [4.0, 1.0])] == [0.0, 4.0]


@pytest.mark.parametrize("decay", [0.9, jnp.float32(0.9), rising])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "8bit"])
def test_restarted_moments_and_weights_are_those_of_a_new_run(decay, dtype):
    """Also where b is a schedule, which goes on."""
    grads = np.random.default_rng(0).normal(size=(8, 3))
    tx = scale_by_moments(
        restarted(ema(decay), 3), restarted(ema(decay), 3), mu_dtype=dtype
    )
    found = moments_after(tx, grads)
    for start in (0, 3, 6):

        def shifted(count, start=start):
            return decay(count + start) if callable(decay) else decay

        fresh = decay if isinstance(decay, float) else shifted
        alone = moments_after(
            scale_by_moments(fresh, fresh, mu_dtype=dtype), grads[start : start + 3]
        )
        for ours, theirs in zip(found[start : start + 3], alone, strict=True):
            for x, y in zip(ours, theirs, strict=True):
                # Stochastic rounding draws other bits at another step.
                np.testing.assert_allclose(x, y, rtol=1e-5 if dtype is None else 0.1)


def test_restarted_meets_its_initial_value_and_delayed_its_first():
    tx = scale_by_moments(restarted(ema(0.5, initial=8.0), 2), None)
    assert [m[0].item() for m in moments_after(tx, [0.0] * 3)] == [4.0, 2.0, 4.0]
    tx = scale_by_moments(delayed(restarted(trace(0.5), 2), 7.0), None)
    assert [m[0].item() for m in moments_after(tx, [1.0] * 3)] == [7.0, 1.0, 7.0]


@pytest.mark.parametrize("every", [0, -1, 2.5, True, None, jnp.int32(2)])
def test_restarted_refuses_what_is_no_number_of_steps(every):
    with pytest.raises(ValueError, match="every must be a positive integer"):
        restarted(ema(0.9), every)


def test_fused_kernels_do_not_take_variations_for_plain_averages():
    for accumulator in (delayed(ema(0.9), 1.0), restarted(ema(0.9), 5)):
        assert not accumulator.is_ema
    assert Accumulator({}, lambda m, v, h: v).first is None


def test_average_from_first_and_alternating():
    tx = scale_by_moments(average_from_first(0.75), None)
    assert [m[0].item() for m in moments_after(tx, [4.0, 0.0, 4.0])] == [4, 3, 3.25]
    odd, even = (scale_by_moments(alternating(0.5, turn), None) for turn in (0, 1))
    found = [
        [m[0].item() for m in moments_after(x, [4.0, 8.0, 4.0])] for x in (odd, even)
    ]
    assert found == [[3.0, 3.0, 3.75], [0.0, 6.0, 6.0]]
    weight = moments_after(even, [4.0, 8.0])[-1][2]
    np.testing.assert_allclose(weight, 0.75)


@pytest.mark.parametrize(
    "accumulator",
    [difference(), mixture(ema(0.9), 0.5), delayed(ema(0.9), 0.0), alternating(0.9, 1)],
)
def test_variations_have_finite_derivatives(accumulator):
    def two_steps(grads):
        tx = adam_jax.hold("stage", accumulator)
        state = tx.init(grads)
        _, state = tx.update(grads, state)
        return tx.update(grads, state)[0].sum()

    assert jnp.isfinite(jax.grad(two_steps)(jnp.array([0.0, 1.0]))).all()
