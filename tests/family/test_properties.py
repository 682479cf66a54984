"""What users of Adam rely on, as properties of the real optimizers and chains.

First where bias correction comes from, then what bounds, scales and moves a step.
Here w_t = 1 - b^t is the weight that an average has seen, and u the unit roundoff.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import adam_jax

T, N = 24, 4  # steps and coordinates of the drawn sequences
LR = 1e-3
PAIRS = [(0.9, 0.999), (0.9, 0.99), (0.9, 0.95)]  # decays that are compiled in

# An average of T values errs by at most 4 roundings a step, relative to the average
# of the values' magnitudes. Four such averages (mu, nu and their weights) and a few
# roundings more make an update, so that it errs by less than 16 T u.
TOL = 16 * T * 2.0**-53
TOL32 = 16 * T * 2.0**-24

# A failing example of T * N numbers would take minutes to shrink.
few, many = (
    settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    for examples in (20, 50)
)


# Hyperparameters go two ways through the package, and `run` tells them apart: Python
# floats are compiled in, NumPy scalars and arrays are traced.


def moments(b1, b2):
    return adam_jax.scale_by_moments(b1, b2)


def corrected(b1, b2):
    return optax.chain(moments(b1, b2), adam_jax.bias_correct())


def adam(b1, b2):
    return adam_jax.adam(LR, b1, b2, eps=0.0)


def uncorrected(b1, b2):
    return adam_jax.simplified_adam(LR, b1, b2, eps=0.0)


def default_adam(lr):
    return adam_jax.adam(lr)


@functools.cache
def _compiled_in(make, *hypers):
    return lambda: make(*hypers)


@functools.partial(jax.jit, static_argnums=0)
def _run(make, hypers, grads):
    tx = make(*hypers)
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)

    def step(state, grad):
        emitted, state = tx.update(grad, state, params)
        if isinstance(emitted, adam_jax.Moments):  # which is no pytree
            fields = (emitted.mu, emitted.nu, emitted.mu_weight, emitted.nu_weight)
            emitted = Emitted(*fields)
        return state, emitted

    return jax.lax.scan(step, tx.init(params), grads)[1]


class Emitted(NamedTuple):
    """The arrays of `Moments`."""

    mu: jax.Array
    nu: jax.Array
    mu_weight: jax.Array
    nu_weight: jax.Array


def run(make, grads, *hypers, dtype=np.float64):
    """Return what `make(*hypers)` emits at every step: updates, or moments."""
    if hypers and all(type(h) is float for h in hypers):
        make, hypers = _compiled_in(make, *hypers), ()
    with jax.enable_x64(dtype == np.float64):
        hypers, grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), (hypers, grads))
        return jax.tree.map(np.asarray, _run(make, hypers, grads))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(make, gradient, hypers, start, inputs, radius):
    tx = make(*hypers)

    def step(carry, row):
        x, state = carry
        updates, state = tx.update(gradient(x, *row), state, x)
        x = jnp.clip(optax.apply_updates(x, updates), -radius, radius)
        return (x, state), x

    return jax.lax.scan(step, (start, tx.init(start)), inputs)[1]


def descend(make, gradient, start, inputs, *hypers, radius=np.inf):
    """Return the parameters after every step down `gradient(x, *row of inputs)`.

    Each step ends with a projection on [-radius, radius].
    """
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, (hypers, start, inputs, radius))
        return np.asarray(_descend(make, gradient, *arrays))


def weights(b, steps=T):
    """Return 1 - b^t for t = 1, 2, ..., as the geometric series that it sums."""
    return (1 - b) * np.cumsum(b ** np.arange(steps))


def ratio(mu, nu):
    """Return mu / sqrt(nu), and 0 where both are 0."""
    return np.divide(mu, np.sqrt(nu), out=np.zeros_like(mu), where=nu > 0)


# Decays have few bits, so that float32 holds them; powers of smaller ones underflow.
decays = st.just(0.0) | st.floats(2.0**-6, 1 - 2.0**-10, width=32)
positive_decays = st.floats(2.0**-6, 1 - 2.0**-10, width=32)
traced_pairs = st.tuples(decays.map(np.float64), positive_decays.map(np.float64))
pairs = st.sampled_from(PAIRS) | traced_pairs

magnitudes = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
signs = st.sampled_from([-1.0, 1.0])
nonzero = st.builds(lambda sign, size: sign * size, signs, magnitudes)


def sequences(elements, fill=None):
    """Draw (T, N) arrays; `fill` in most places, if given."""
    fill = st.nothing() if fill is None else st.just(fill)
    return npst.arrays(np.float64, (T, N), elements=elements, fill=fill)


dense = sequences(nonzero)
gradients = sequences(nonzero | st.just(0.0)) | sequences(nonzero, fill=0.0)


# Where bias correction comes from.

SAMPLES = 2**15
KURTOSIS = {"normal": 3, "sign": 1, "sparse": 16}


@functools.cache
def standard_noise(kind):
    """Return (T, SAMPLES) symmetric values of mean 0, variance 1, known kurtosis."""
    rng = np.random.default_rng(0)
    if kind == "normal":
        return rng.normal(size=(T, SAMPLES))
    values = rng.choice([-1.0, 1.0], size=(T, SAMPLES))
    return (
        values if kind == "sign" else 4 * values * (rng.random(values.shape) < 1 / 16)
    )


@few
@given(st.sampled_from([*KURTOSIS]), st.floats(-3, 3), magnitudes, pairs)
def test_corrected_moments_are_unbiased_and_raw_ones_low_by_the_weight(
    kind, mean, scale, pair
):
    grads = scale * (mean + standard_noise(kind))
    square = mean**2 + 1
    # Six standard errors. A corrected moment is an average over t with weights that
    # sum to 1, so its variance is at most that of one sample: 1 for g, and
    # Var((m + z)^2) = 4 m^2 + kurtosis - 1 for g^2. TOL32 is for the roundings.
    mu_error = scale * (6 / np.sqrt(SAMPLES) + TOL32 * np.sqrt(square))
    nu_error = scale**2 * (
        6 * np.sqrt((4 * mean**2 + KURTOSIS[kind] - 1) / SAMPLES) + TOL32 * square
    )
    hat = run(corrected, grads, *pair, dtype=np.float32)
    raw = run(moments, grads, *pair, dtype=np.float32)
    for field, expected, error, b in (
        ("mu", scale * mean, mu_error, pair[0]),
        ("nu", scale**2 * square, nu_error, pair[1]),
    ):
        hat_mean, raw_mean = (
            getattr(m, field).mean(axis=1, dtype=np.float64) for m in (hat, raw)
        )
        w = weights(b)
        assert np.all(np.abs(hat_mean - expected) <= error)
        assert np.all(np.abs(raw_mean - w * expected) <= w * error)
        # No sampling error here: both saw the same gradients.
        hat_norm, raw_norm = (np.abs(getattr(m, field)) for m in (hat, raw))
        np.testing.assert_allclose(raw_norm, w[:, None] * hat_norm, rtol=TOL32)


@many
@given(nonzero, pairs)
def test_the_weight_is_the_average_of_the_constant_1(constant, pair):
    grads = np.full((T, N), constant)
    raw, hat = run(moments, grads, *pair), run(corrected, grads, *pair)
    w1, w2 = (weights(b)[:, None] for b in pair)
    for found, expected in (
        (raw.mu, constant * w1),
        (raw.nu, constant**2 * w2),
        (raw.mu_weight[:, None], w1),
        (raw.nu_weight[:, None], w2),
        (hat.mu, constant),
        (hat.nu, constant**2),
    ):
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), TOL)


def test_the_weight_at_a_decay_of_nine_tenths():
    raw = run(moments, np.ones((T, N)), 0.9, 0.999)
    for found in (raw.mu[:, 0], raw.mu_weight):
        np.testing.assert_allclose(found[[0, 4]], [0.1, 0.40951], rtol=TOL)


@many
@given(npst.arrays(np.float64, N, elements=nonzero), magnitudes)
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(grad, lr):
    grads = np.broadcast_to(grad, (T, N))
    first = run(default_adam, grads, np.float64(lr))[0]
    np.testing.assert_allclose(first, -lr * grad / (np.abs(grad) + 1e-8), rtol=TOL)
    # eps is at most 1/100 of a gradient of 1e-6.
    np.testing.assert_allclose(np.abs(first), lr, rtol=0.01)


@many
@given(npst.arrays(np.float64, N, elements=nonzero), pairs)
def test_without_correction_the_first_step_is_out_of_proportion(grad, pair):
    b1, b2 = pair
    first = run(uncorrected, np.broadcast_to(grad, (T, N)), *pair)[0]
    expected = -LR * np.sign(grad) * (1 - b1) / np.sqrt(1 - b2)
    np.testing.assert_allclose(first, expected, rtol=TOL)


def test_without_correction_the_default_first_step_is_three_times_too_long():
    tx = adam_jax.simplified_adam(LR)
    update, _ = tx.update(jnp.float32(7), tx.init(jnp.float32(0)))
    # sqrt(10) LR up to eps / sqrt(nu) = 1e-8 / 0.22 and roundings of 1e-7.
    np.testing.assert_allclose(update, -3.16227766 * LR, rtol=1e-6)


def test_the_correction_fades_to_1():
    steps, pair = 12_000, (0.9, 0.999)
    # Gradients of one sign: mu does not cancel, so it errs as TOL says, by 16 u a step.
    grads = np.random.default_rng(0).uniform(1, 2, size=(steps, 1))
    faded = (run(adam, grads, *pair) / run(uncorrected, grads, *pair))[:, 0]
    expected = np.sqrt(weights(0.999, steps)) / weights(0.9, steps)
    np.testing.assert_allclose(faded, expected, rtol=16 * steps * 2.0**-53)
    # sqrt(1 - 0.999^12000) = 1 - 3.1e-6.
    assert faded[0] < 0.32 and np.all(np.abs(faded[-100:] - 1) < 3.5e-6)


def average_by_table(values, table):
    """Return the average of `values` whose decay at step t is table[t], every step."""
    averages, average = [], np.zeros_like(values[0])
    for value, b in zip(values, table, strict=True):
        average = b * average + (1 - b) * value
        averages.append(average)
    return np.array(averages)


def scheduled_moments(b1s, b2s):
    return corrected(lambda count: b1s[count], lambda count: b2s[count])


def scheduled_adam(b1s, b2s):
    return adam(lambda count: b1s[count], lambda count: b2s[count])


def injected_adam(b1s, b2s):
    return optax.inject_hyperparams(adam_jax.adam)(
        LR, b1=lambda count: b1s[count], b2=lambda count: b2s[count], eps=0.0
    )


tables = npst.arrays(np.float64, T, elements=decays, fill=st.nothing())


@few
@given(gradients, tables, tables)
def test_the_weight_under_scheduled_decays_is_the_average_of_1(grads, b1s, b2s):
    ones = np.ones(T)
    found = run(scheduled_moments, grads, b1s, b2s)
    w1, w2 = average_by_table(ones, b1s), average_by_table(ones, b2s)
    # NumPy's averages err as the package's do: twice TOL.
    np.testing.assert_allclose(found.mu_weight, w1, rtol=2 * TOL)
    np.testing.assert_allclose(found.nu_weight, w2, rtol=2 * TOL)
    nu_hat = average_by_table(grads**2, b2s) / w2[:, None]
    np.testing.assert_allclose(found.nu, nu_hat, rtol=2 * TOL)
    # mu cancels: it errs relative to the average of |g|.
    mu_hat, size = (average_by_table(g, b1s) / w1[:, None] for g in (grads, abs(grads)))
    assert np.all(np.abs(found.mu - mu_hat) <= 2 * TOL * size)


@pytest.mark.parametrize("make", [scheduled_adam, injected_adam])
@few
@given(gradients, tables, tables)
def test_adam_under_scheduled_decays_corrects_by_the_average_of_1(
    make, grads, b1s, b2s
):
    ones = np.ones(T)
    w1, w2 = (average_by_table(ones, table)[:, None] for table in (b1s, b2s))
    nu_hat = average_by_table(grads**2, b2s) / w2
    mu_hat, size = (average_by_table(g, b1s) / w1 for g in (grads, abs(grads)))
    error = np.abs(run(make, grads, b1s, b2s) + LR * ratio(mu_hat, nu_hat))
    assert np.all(error <= 2 * TOL * LR * ratio(size, nu_hat))


# 1. Scale invariance.


@many
@given(gradients, st.integers(-20, 20))
def test_a_power_of_2_leaves_every_bit_of_the_update(grads, exponent):
    # Scaling by it rounds nothing, and nothing leaves float32's range.
    scaled = run(adam, 2.0**exponent * np.float32(grads), 0.9, 0.999, dtype=np.float32)
    np.testing.assert_array_equal(
        scaled, run(adam, grads, 0.9, 0.999, dtype=np.float32)
    )


@many
@given(gradients, magnitudes, pairs)
def test_scale_leaves_the_update(grads, scale, pair):
    difference = run(adam, scale * grads, *pair) - run(adam, grads, *pair)
    # Each errs relative to the update that |g| would make, of at most widest_step.
    assert np.all(np.abs(difference) <= 2 * TOL * LR * widest_step(*pair)[:, None])


@many
@given(dense, st.floats(0, 6).map(lambda exponent: 10.0**exponent))
def test_scale_leaves_the_update_while_eps_is_negligible(grads, scale):
    lr = np.float64(LR)
    grads = 1e4 * grads  # so that |g| >= 0.01, and sqrt(nu_hat) too
    update, scaled = (run(default_adam, c * grads, lr) for c in (1, scale))
    # Relative to the update eps is at most 1e-8 / 0.01. Where mu cancels, roundings
    # remain: TOL = 4e-14 of a step of at most 7 LR.
    np.testing.assert_allclose(scaled, update, rtol=2e-6, atol=1e-12 * LR)


# 2. Bounded step.
#
# By Cauchy and Schwarz, with r = b1^2 / b2,
#
#     |mu_t| = (1-b1) |sum b1^(t-i) g_i|
#           <= (1-b1) sqrt(sum r^(t-i)) sqrt(sum b2^(t-i) g_i^2)
#            = (1-b1) / sqrt(1-b2) sqrt(1 + r + ... + r^(t-1)) sqrt(nu_t),
#
# with equality for g_i = (b1/b2)^(t-i). This, corrected, is `widest_step`, and holds
# for every sequence. Kingma & Ba (2014, section 2.1) have no sum of r^k: their
# (1-b1) / sqrt(1-b2) holds for a gradient that was silent till now, and their 1 for
# gradients that do not grow; neither holds for every sequence.


def widest_step(b1, b2, steps=T):
    """Return the least upper bound of |mu_hat| / sqrt(nu_hat) at every step."""
    spread = np.sqrt(np.cumsum((b1 * b1 / b2) ** np.arange(steps)))
    correction = np.sqrt(weights(b2, steps)) / weights(b1, steps)
    return (1 - b1) / np.sqrt(1 - b2) * spread * correction


@many
@given(gradients, pairs)
def test_no_step_exceeds_the_least_upper_bound(grads, pair):
    bound = LR * widest_step(*pair)[:, None]
    assert np.all(np.abs(run(adam, grads, *pair)) <= bound * (1 + TOL))


@many
@given(nonzero, pairs)
def test_the_least_upper_bound_is_reached(scale, pair):
    b1, b2 = pair
    grads = scale * np.tile((b1 / b2) ** np.arange(T)[::-1, None], N)
    last = run(adam, grads, *pair)[-1]
    expected = -np.sign(scale) * LR * widest_step(*pair)[-1]
    # The powers in `grads` themselves err by T u.
    np.testing.assert_allclose(last, expected, rtol=2 * TOL)


@many
@given(gradients, pairs)
def test_no_step_exceeds_the_learning_rate_while_gradients_do_not_grow(grads, pair):
    # With b1 <= b2, mu_hat weighs the latest gradients more than nu_hat does; where
    # they are the smallest, mu_hat^2 <= (average of g^2 by mu's weights) <= nu_hat.
    falling = np.copysign(np.sort(np.abs(grads), axis=0)[::-1], grads)
    assert np.all(np.abs(run(adam, falling, *sorted(pair))) <= LR * (1 + TOL))


@many
@given(gradients, positive_decays)
def test_no_step_exceeds_the_learning_rate_where_both_decays_agree(grads, b):
    # Then mu_hat and nu_hat are averages by the same weights.
    updates = run(adam, grads, np.float64(b), np.float64(b))
    assert np.all(np.abs(updates) <= LR * (1 + TOL))


@many
@given(nonzero, pairs)
def test_agreeing_gradients_reach_the_learning_rate_at_every_step(gradient, pair):
    updates = run(adam, np.full((T, N), gradient), *pair)
    np.testing.assert_allclose(updates, -LR * np.sign(gradient), rtol=TOL)


SILENCE = 6000


def after_silence(*last):
    """Return (SILENCE, N) gradients: zeros, then `last`."""
    grads = np.zeros((SILENCE, N))
    grads[-len(last) :] = np.reshape(last, (len(last), -1))
    return grads


@few
@given(
    npst.arrays(np.float64, N, elements=nonzero),
    st.floats(0.5, 0.999).flatmap(
        lambda b2: st.tuples(st.floats(0, 1 - np.sqrt(1 - b2)), st.just(b2))
    ),
)
def test_a_gradient_after_silence_reaches_the_bound_of_maximal_sparsity(grad, pair):
    b1, b2 = map(np.float64, pair)
    updates = run(adam, after_silence(grad), b1, b2)
    assert np.all(updates[:-1] == 0)
    reached = np.abs(updates[-1]) / (LR * (1 - b1) / np.sqrt(1 - b2))
    # What is missing is the correction, sqrt(1 - 0.999^6000) = 0.9988 at the least.
    assert np.all((reached > 0.99) & (reached <= 1 + TOL))


@pytest.mark.parametrize(
    ("make", "hypers", "bound", "second"),
    [
        (default_adam, [np.float64(LR)], 3.1623, 4.2496),
        (adam, [0.9, 0.99], 1.0, 1.3469),
    ],
)
def test_two_gradients_after_silence_exceed_the_bound_of_the_paper(
    make, hypers, bound, second
):
    last = -run(make, after_silence(1, 1), *hypers)[-2:, 0] / LR
    # (1-b1^k) / sqrt(1-b2^k) at the k-th; what the correction lacks is 1.3e-3 of it.
    np.testing.assert_allclose(last, [bound, second], rtol=1.5e-3)


# 3. To travel a distance D takes about D / lr steps.


def distance_gradient(x, target, steepness):
    return steepness * jnp.sign(x - target)


@many
@given(
    st.integers(1, 200),
    magnitudes,
    st.floats(-3, 6).map(lambda exponent: 10.0**exponent),
    signs,
)
def test_a_distance_takes_as_many_steps_as_it_holds_learning_rates(
    steps, lr, steepness, sign
):
    target = sign * lr * (steps - 0.5)
    inputs = (np.full((201, N), target), np.full((201, N), steepness))
    x = descend(default_adam, distance_gradient, np.zeros(N), inputs, np.float64(lr))
    # eps shortens 200 steps by at most 1e-5 each, far less than half a step.
    arrived = np.abs(x) >= np.abs(target)
    assert np.all(arrived[steps - 1]) and not np.any(arrived[: steps - 1])


@many
@given(sequences(st.floats(1, 10)), npst.arrays(np.float64, N, elements=nonzero), pairs)
def test_gradients_of_one_sign_travel_at_about_the_learning_rate(grads, scale, pair):
    # mu_hat and sqrt(nu_hat) lie between the least |g| and the largest.
    travelled = -np.sign(scale) * np.cumsum(run(adam, scale * grads, *pair), axis=0)
    spread = grads.max(axis=0) / grads.min(axis=0)
    straight = LR * np.arange(1, T + 1)[:, None]
    assert np.all(travelled <= straight * spread * (1 + TOL))
    assert np.all(travelled >= straight / spread * (1 - TOL))


# 4. Signal to noise.


def signal_to_noise(grads, *pair):
    hat = run(corrected, grads, *pair)
    return ratio(np.abs(hat.mu), hat.nu)


@many
@given(sequences(st.floats(-0.1, 0.1)), nonzero, pairs)
def test_signal_to_noise_is_near_1_where_gradients_agree(deviations, scale, pair):
    found = signal_to_noise(scale * (1 + deviations), *pair)
    # mu_hat is at least 0.9, sqrt(nu_hat) at most 1.1.
    assert np.all(found >= 0.9 / 1.1 * (1 - TOL))


@many
@given(nonzero, pairs)
def test_signal_to_noise_is_near_0_where_gradients_cancel(scale, pair):
    signs = (-1.0) ** np.arange(T)[:, None]
    found = signal_to_noise(scale * np.tile(signs, N), *pair)[-1]
    # |sum (-b1)^k| / sum b1^k over an even number of terms; 0.05 at b1 = 0.9.
    expected = (1 - pair[0]) / (1 + pair[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOL)


def noisy_gradient(x, noise, scale):
    return scale * (x + noise)


@few
@given(st.integers(0, 99), st.floats(-3, 6).map(lambda exponent: 10.0**exponent))
def test_signal_to_noise_falls_near_an_optimum_and_the_step_with_it(seed, scale):
    steps, coordinates, lr = 1500, 64, 0.02
    noise = np.random.default_rng(seed).normal(size=(steps, coordinates))
    start = np.full(coordinates, 5.0)
    inputs = (noise, np.full(noise.shape, scale))
    x = descend(default_adam, noisy_gradient, start, inputs, np.float64(lr))
    x = np.concatenate([start[None], x])
    found = signal_to_noise(scale * (x[:-1] + noise), 0.9, 0.999)
    # At first |x| >= 4 and noise of variance 1 leave 4 / sqrt(17) = 0.97. At the
    # optimum gradients are noise, and the root mean square of an average of it is
    # sqrt((1-b1) / (1+b1)) = 0.23 of its own. The step is lr times that ratio.
    for size in (found, np.abs(np.diff(x, axis=0)) / lr):
        assert size[:50].mean() > 0.9
        assert size[-500:].mean() < 0.23


# 5. No stationary objective is needed.


def adagrad(lr):
    return adam_jax.adagrad(lr, initial_accumulator_value=0.0, eps=0.0)


def drifting_gradient(x, target, scale):
    return scale * (x - target)


@few
@given(
    npst.arrays(np.float64, N, elements=st.floats(0.25, 0.75), fill=st.nothing()),
    st.floats(-2, 6).map(lambda exponent: 10.0**exponent),
    signs,
)
def test_adam_follows_a_drifting_target_and_adagrad_falls_behind(speed, scale, sign):
    steps, lr = 2000, 0.01
    target = sign * lr * speed * np.arange(1, steps + 1)[:, None]
    inputs = (target, np.full(target.shape, scale))
    errors = {
        make: np.abs(
            descend(make, drifting_gradient, np.zeros(N), inputs, np.float64(lr))
            - target
        )
        / lr
        for make in (default_adam, adagrad)
    }
    # Measured 0.95 at the most; an optimizer that loses the target is 100s away.
    assert np.all(errors[default_adam] < 2)
    # By Cauchy and Schwarz n steps of AdaGrad go no further than
    # sqrt(n (1 + log(S_n / S_1))) lr, with S the sum of g^2, here S_n <= n^3 S_1.
    reach = np.sqrt(steps * (1 + 3 * np.log(steps)))
    assert np.all(errors[adagrad][-1] > speed * steps - reach)
    assert np.all(errors[adagrad][-1] > 250)


# 6. Sparse gradients work.


@few
@given(nonzero, st.integers(100, 400))
def test_a_rarely_seen_coordinate_takes_full_size_steps(gradient, period):
    b1, b2, steps = 0.9, 0.999, 2000
    seen = np.arange(1, steps + 1) % period == 0
    grads = np.where(seen, gradient, 0.0)[:, None]
    found = -np.sign(gradient) * run(adam, grads, b1, b2)[seen, 0] / LR
    # Both moments are geometric series of b^period, whatever step it is.
    expected = np.sqrt((1 - b2**period) / (1 - b2)) * (1 - b1) / (1 - b1**period)
    np.testing.assert_allclose(found, expected, rtol=16 * steps * 2.0**-53)
    assert np.all(found > 0.97)


# 7. Where Adam fails: Reddi, Kale & Kumar 2018, Theorem 1. On [-1, 1] the loss is C x
# at t = 1, 4, 7, ... and -x otherwise, least at x = -1 for C > 2. Adam with b1 = 0
# and b2 = 1 / (1 + C^2) forgets the rare large gradient, and goes to x = 1.


def shrinking(lr):
    return lambda count: lr / jnp.sqrt(count + 1)


def reddi_adam(lr, b2):
    return adam_jax.adam(shrinking(lr), b1=0.0, b2=b2, eps=0.0)


def reddi_simplified_adam(lr, b2):
    return adam_jax.simplified_adam(shrinking(lr), b1=0.0, b2=b2, eps=0.0)


def reddi_amsgrad(lr, b2):
    return adam_jax.amsgrad(shrinking(lr), b1=0.0, b2=b2, eps=0.0)


def reddi_raw_amsgrad(lr, b2):
    return adam_jax.amsgrad(
        shrinking(lr),
        b1=0.0,
        b2=b2,
        eps=0.0,
        bias_correction_mu=False,
        bias_correction_nu=False,
    )


def linear_gradient(x, slope):
    return slope


@pytest.mark.parametrize(
    ("adam", "amsgrad"),
    [(reddi_adam, reddi_amsgrad), (reddi_simplified_adam, reddi_raw_amsgrad)],
)
@few
@given(st.floats(2.5, 20), st.floats(0.3, 0.9))
def test_adam_goes_to_the_wrong_end_and_amsgrad_to_the_right_one(
    adam, amsgrad, large, lr
):
    steps, b2 = 6000, 1 / (1 + large**2)
    start = np.array([-1.0, 0.0, 1.0])
    slopes = np.where(np.arange(steps)[:, None] % 3 == 0, large, -np.ones(3))
    wrong, right = (
        descend(make, linear_gradient, start, (slopes,), lr, b2, radius=1.0)
        for make in (adam, amsgrad)
    )
    # The theorem, from x = 1: x > 0 always, and x = 1 again before every C x.
    assert np.all(wrong[:, 2] > 0) and np.all(wrong[2::3, 2] == 1)
    # From elsewhere too, after at most 230 steps at these C and lr (measured).
    assert np.all(wrong[3000:] > 0) and np.all(wrong[3002::3] == 1)
    # A cycle moves AMSGrad by (C - 2) lr / (C sqrt(t)) at least, so that 2 takes
    # (3 C / (C - 2) / lr)^2 = 2500 steps at most; then every C x ends at -1, and the
    # other two gradients move at most lr / sqrt(t nu_max), nu_max >= (1 - b2) C^2.
    away = 2 * lr / np.sqrt((steps - 3) * (1 - b2) * large**2)
    assert np.all(right[3000::3] == -1) and np.all(right[-3:] <= -1 + away)


# Symmetries.


@many
@given(gradients)
def test_opposite_gradients_make_opposite_updates(grads):
    lr = np.float64(LR)
    update, opposite = (
        run(default_adam, g, lr, dtype=np.float32) for g in (grads, -grads)
    )
    np.testing.assert_array_equal(opposite, -update)


@many
@given(gradients, gradients, st.integers(0, N - 1))
def test_an_element_does_not_see_its_neighbours(grads, others, element):
    others[:, element] = grads[:, element]
    lr = np.float64(LR)
    update, beside_others = (
        run(default_adam, g, lr, dtype=np.float32)[:, element] for g in (grads, others)
    )
    np.testing.assert_array_equal(beside_others, update)


@many
@given(gradients, gradients, st.permutations(range(2 * N)), pairs)
def test_elements_may_be_joined_reordered_and_parted(left, right, order, pair):
    parts = run(adam, {"left": left, "right": right}, *pair)
    joined = np.concatenate([parts["left"], parts["right"]], axis=1)
    grads = np.concatenate([left, right], axis=1)
    difference = run(adam, grads[:, order], *pair) - joined[:, order]
    # Another shape may be vectorised otherwise, and so rounded otherwise.
    assert np.all(np.abs(difference) <= 2 * TOL * LR * widest_step(*pair)[:, None])
