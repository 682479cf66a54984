"""Parts that choose step sizes: other divisions, bounds, past updates, the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import (
    Accumulator,
    NuTraceState,
    atan2_precondition,
    average_from_start,
    bias_correct,
    bound_by_average,
    bounded_precondition,
    check_between,
    growing_total,
    hold,
    precondition,
    scale_by_friction,
    scale_by_moments,
    scale_by_past_updates,
    temper,
)

CORRECTED = scale_by_moments(), bias_correct()


def first(grads, *stages, params=None):
    tx = optax.chain(*CORRECTED, *stages)
    return tx.update(grads, tx.init(grads), params)[0]


GRADS = jnp.array([2.0, -3.0, 0.0])


def test_temper_at_one_half_changes_nothing_and_at_zero_does_not_divide():
    plain = first(GRADS, temper(0.5), precondition(eps=0.0))
    np.testing.assert_allclose(plain, [1.0, -1.0, 0.0], rtol=1e-6)
    whole = first(GRADS, temper(0.0), precondition(eps=0.0))
    np.testing.assert_allclose(whole, GRADS, rtol=1e-6)
    both = first(GRADS, temper(0.25, eps=2.0), precondition(eps=1.0))
    np.testing.assert_allclose(both[0], 2 / (4**0.5 + 1), rtol=1e-6)


@pytest.mark.parametrize(
    "stages",
    [
        (temper(1 / 3), precondition(eps=0.0)),
        (temper(0.125), precondition(eps=1e-6)),
        (atan2_precondition(),),
        (scale_by_friction(), precondition(eps=0.0)),
        (precondition(eps=0.0), scale_by_past_updates(eps=0.0)),
        (bounded_precondition(0.1, eps=0.0),),
        (bound_by_average(0.1, eps=0.0), precondition()),
    ],
)
def test_derivatives_at_zero_are_finite(stages):
    slopes = jax.jacobian(lambda grads: first(grads, *stages))(GRADS)
    assert jnp.isfinite(slopes).all()


def test_what_temper_refuses():
    with pytest.raises(ValueError, match="power must be a finite number >= 0"):
        temper(-0.5)
    with pytest.raises(ValueError, match=r"bias_correct\(\) was given nu corrected"):
        tx = optax.chain(scale_by_moments(), temper(0.25), bias_correct())
        tx.update(GRADS, tx.init(GRADS))
    tx = optax.chain(scale_by_moments(0.9, None), temper(0.25))
    with pytest.raises(ValueError, match=r"temper\(\) needs a second moment"):
        tx.update(GRADS, tx.init(GRADS))


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-19, 1e-15, 1.0, 1e15])
def test_atan2_knows_no_scale(scale):
    divided = first(scale * GRADS, atan2_precondition(a=2.0, b=0.5))
    size = 2 * np.arctan2(1, 0.5)
    np.testing.assert_allclose(divided, [size, -size, 0.0], rtol=1e-6)


def test_atan2_at_its_ends():
    """Without nu's root the angle is right; a complex moment keeps its direction."""
    np.testing.assert_allclose(
        first(GRADS, atan2_precondition(a=1.0, b=0.0)),
        [np.pi / 2, -np.pi / 2, 0.0],
        rtol=1e-6,
    )
    turned = first(jnp.array([3 + 4j, 0], jnp.complex64), atan2_precondition())
    np.testing.assert_allclose(turned, [0.6 + 0.8j, 0], rtol=1e-6)


def test_the_first_friction_is_of_the_gradient_itself():
    mu = first(GRADS, scale_by_friction()).mu
    np.testing.assert_allclose(mu, GRADS / (1 + np.exp(-np.abs(GRADS))), rtol=1e-6)
    with pytest.raises(TypeError, match=r"scale_by_friction\(\) takes the Moments"):
        scale_by_friction().update(GRADS, scale_by_friction().init(GRADS))


def test_bounds_meet_and_with_gamma_0_never_bind():
    tight = first(GRADS, bounded_precondition(0.1, final_lr=0.5, gamma=1e9))
    np.testing.assert_allclose(tight, 0.5 * GRADS, rtol=1e-6)
    loose = first(GRADS, bounded_precondition(0.1, final_lr=0.5, gamma=0.0))
    np.testing.assert_allclose(loose, [0.1, -0.1, 0.0], rtol=1e-6)


def test_the_learning_rate_inside_a_bound_may_be_a_schedule():
    tx = adam_jax.adabound(lambda count: 1e-3 * (count + 1))
    state, sizes = tx.init(GRADS), []
    for _ in range(2):
        updates, state = tx.update(GRADS, state)
        sizes.append(-updates[0])
    np.testing.assert_allclose(sizes, [1e-3, 2e-3], rtol=1e-5)


def test_what_the_bounds_refuse():
    for stage in (bounded_precondition, bound_by_average):
        with pytest.raises(ValueError, match="learning_rate must be a finite"):
            stage(-1.0)
        tx = optax.chain(scale_by_moments(0.9, None), stage(0.1))
        with pytest.raises(ValueError, match=rf"{stage.__name__}\(\) needs a second"):
            tx.update(GRADS, tx.init(GRADS))
    with pytest.raises(ValueError, match=r"partial must be a number in \[0, 0.5\]"):
        adam_jax.padam(0.1, partial=0.75)
    assert check_between("share", 1, 0, 1) == 1.0


@pytest.mark.parametrize("name", ["adadelta", "adamod"])
def test_what_is_never_negative_is_held_as_nu(name):
    """It is real for complex parameters, and converted as nu_dtype says."""
    make = functools.partial(adam_jax.OPTIMIZERS[name], 0.1)
    params = jnp.ones(3, jnp.complex64)
    state = make().init(params)
    (held,) = (part for part in state if isinstance(part, NuTraceState))
    assert held.nu_trace.dtype == jnp.float32
    with pytest.raises(ValueError, match="give it the nu_dtype"):
        make(nu_dtype="bfloat16").update(params, state, params)
    state = adam_jax.convert_state(state, nu_dtype="bfloat16", mu_dtype="8bit")
    tx = make(
        nu_dtype="bfloat16", **({} if name == "adadelta" else {"mu_dtype": "8bit"})
    )
    tx.update(params, state, params)


def test_a_held_moment_has_the_order_of_its_accumulator():
    squares = Accumulator({}, lambda moment, value, h: moment + value, order=2)
    tx = hold("add_squares", squares, lambda updates, held: held)
    grads = jnp.array([1 + 2j], jnp.complex64)
    updates, state = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(updates, [5.0])
    assert isinstance(state, NuTraceState)
    with pytest.raises(TypeError, match=r"add_squares\(\) was given a TraceState"):
        tx.update(grads, adam_jax.scale_by_trace(0.9).init(grads))


def test_weights_grow_with_the_root_of_the_step_and_the_learning_rate():
    tx = scale_by_moments(growing_total(lambda count: count / 8.0, eps=0.125), None)
    state = tx.init(GRADS)
    for _ in range(2):
        moments, state = tx.update(GRADS, state)
    np.testing.assert_allclose(moments.mu, (0.125 + 0.25 * 2**0.5) * GRADS, rtol=1e-6)
    half = growing_total(jnp.bfloat16(0.5))  # as optax.inject_hyperparams casts it
    moments, _ = (tx := scale_by_moments(half, None)).update(GRADS, tx.init(GRADS))
    np.testing.assert_array_equal(moments.mu, 0.5 * GRADS)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
def test_the_start_is_a_copy(jit):
    tx = average_from_start(0.5)
    params = jnp.array([1.0, 2.0])
    state = (jax.jit(tx.init) if jit else tx.init)(params)
    step = jax.jit(
        lambda params, state: (params - 1, tx.update(params, state, params)),
        donate_argnums=(0, 1),
    )
    params, (updates, state) = step(params, state)
    np.testing.assert_array_equal(updates, [0.5, 1.0])
    _, (updates, _) = step(params, state)
    np.testing.assert_array_equal(updates, [(0.0 - 1 + 0) / 2, (1.0 - 2 + 1) / 2])


def test_steps_from_the_start_need_the_parameters_and_their_own_state():
    tx = average_from_start()
    with pytest.raises(ValueError, match=r"average_from_start\(\) needs the param"):
        tx.update(GRADS, tx.init(GRADS))
    with pytest.raises(
        TypeError, match=r"average_from_start\(\) was given a Scheduled"
    ):
        tx.update(GRADS, adam_jax.scale_by_lr(0.1).init(GRADS), GRADS)
    with pytest.raises(AssertionError, match="start of the optimizer's state"):
        tx.update(GRADS[:2], tx.init(GRADS), GRADS[:2])
    with pytest.raises(ValueError, match="momentum must be a decay rate"):
        average_from_start(1.0)
