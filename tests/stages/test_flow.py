"""What stages refuse, at the first trace: each in a sentence with its cure."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import often
from flax import serialization

import adam_jax
from adam_jax import (
    bias_correct,
    center,
    correct_step_size,
    fused,
    precondition,
    rectified_precondition,
    running_max,
    scale_by_lr,
    scale_by_moments,
)

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
GRADS = jax.tree.map(lambda p: 0.5 * p, PARAMS)
RATES = (0.9, 0.999)
CURE = r"put precondition\(\), which turns them into updates, before anything"
# Where Optax maps over parameters, JAX names the class of what it finds, older JAX the
# Moments themselves.
FOUND = f"{CURE}|Expected dict, got Moments"
WHOLE = r"{}\(\) goes around a whole optimizer.*: end it with precondition\(\)"


def update(tx, params=PARAMS):
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


FOREIGN = {
    "scale": optax.scale(2.0),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "centralize": optax.centralize(),
    "zero_nans": optax.zero_nans(),
    "trace": optax.trace(0.9),
    "ema": optax.ema(0.9),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "scale_by_learning_rate": optax.scale_by_learning_rate(0.1),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    "keep_params_nonnegative": optax.keep_params_nonnegative(),
    "set_to_zero": optax.set_to_zero(),
    "injected": optax.inject_hyperparams(optax.scale)(2.0),
    "mask": optax.masked(bias_correct(), {"w": True, "b": False}),
    "mask by function": optax.masked(
        bias_correct(), lambda params: jax.tree.map(lambda p: True, params)
    ),
    "cast_to_params": adam_jax.cast_to_params(),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_takes_updates_among_moments(name, jit):
    tx = optax.chain(scale_by_moments(), FOREIGN[name], scale_by_lr(0.1))
    step = jax.jit(tx.update) if jit else tx.update
    with pytest.raises((TypeError, ValueError), match=FOUND):
        step(GRADS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.multi_transform({"a": tx, "b": tx}, {"w": "a", "b": "b"}),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.conditionally_transform(tx, lambda count: count >= 0),
    ],
)
def test_optax_s_wrappers_around_a_part(wrap):
    tx = optax.chain(wrap(scale_by_moments()), scale_by_lr(0.1))
    with pytest.raises((TypeError, ValueError), match=FOUND):
        update(tx)


@pytest.mark.parametrize(
    "wrapper",
    [
        adam_jax.skip_nonfinite,
        adam_jax.skip_spikes,
        adam_jax.checked,
        adam_jax.record,
        adam_jax.packed,
        adam_jax.round_to_params,
        adam_jax.compensate_params,
    ],
)
def test_our_wrappers_around_a_part(wrapper):
    """A guard that chose between Moments would make the NaN that it guards against."""
    tx = optax.chain(wrapper(scale_by_moments()), scale_by_lr(0.1))
    with pytest.raises(TypeError, match=WHOLE.format(wrapper.__name__)):
        update(tx)
    # And wrappers inside: they see moments in the place of gradients.
    tx = optax.chain(scale_by_moments(), wrapper(bias_correct()), scale_by_lr(0.1))
    with pytest.raises(TypeError, match=rf"{wrapper.__name__}\(\) takes gradients or"):
        update(tx)


@pytest.mark.parametrize("params", [PARAMS, jnp.ones(3)], ids=["tree", "array"])
def test_a_chain_that_ends_in_moments(params):
    tx = optax.chain(optax.clip(1.0), scale_by_moments(), bias_correct())
    with pytest.raises(TypeError, match=CURE):
        update(tx, params)
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    moments, _ = tx.update(grads, tx.init(params), params)  # to look at
    assert f"count={moments.count}" in repr(moments)
    with pytest.raises((TypeError, ValueError), match="Moments"):
        optax.apply_updates(params, moments)
    with pytest.raises((TypeError, ValueError), match="Moments"):
        fused.step(tx)(params, grads, tx.init(params))


@pytest.mark.parametrize(
    "stages",
    [
        [bias_correct(), bias_correct()],
        [bias_correct(), correct_step_size()],
        [correct_step_size(), bias_correct()],
        [correct_step_size(), correct_step_size()],
        [bias_correct(nu=False), running_max(), bias_correct()],
    ],
)
def test_a_moment_is_corrected_once(stages):
    tx = optax.chain(scale_by_moments(), *stages, precondition(), scale_by_lr(0.1))
    message = r"(bias_correct|correct_step_size)\(\) was given mu corrected"
    with pytest.raises(ValueError, match=message):
        update(tx)
    # One after the other is no second time.
    tx = optax.chain(scale_by_moments(), bias_correct(nu=False), bias_correct(mu=False))
    together = optax.chain(scale_by_moments(), bias_correct())
    both, once = (t.update(GRADS, t.init(PARAMS))[0] for t in (tx, together))
    jax.tree.map(np.testing.assert_array_equal, (both.mu, both.nu), (once.mu, once.nu))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [scale_by_moments(None), center()],
            r"center\(\) needs the first .* a b1",
        ),
        ([scale_by_moments(0.9, None), center()], r"center\(\) needs a second moment"),
        ([scale_by_moments(0.9, None), running_max()], r"running_max\(\) needs a sec"),
        (
            [scale_by_moments(0.9, None), rectified_precondition()],
            r"rectified_precondition\(\) needs a second .* a b2",
        ),
        # A centered moment has none that could be subtracted again.
        ([scale_by_moments(), bias_correct(), center(), center()], "needs the first"),
        # One of them corrected; a root in the place of mu; a sum, which is no average.
        (
            [scale_by_moments(), bias_correct(nu=False), center()],
            "only mu|mu corrected and the other moment not: correct both",
        ),
        ([scale_by_moments(), bias_correct(), running_max(), center()], "plain aver"),
        # Arrays and schedules of two rates; what is no average of g, or of g^2.
        (
            [scale_by_moments(*map(jnp.float32, RATES)), center()],
            "different decay rates",
        ),
        (
            [scale_by_moments(*(lambda _, r=r: r for r in RATES)), center()],
            "different decay rates",
        ),
        *(
            (
                [scale_by_moments(b1, b2, nu_dtype=shared), bias_correct(), center()],
                "plain averages .* for each element",
            )
            for b1, b2, shared in (
                (adam_jax.trace(0.9), 0.9, None),
                (adam_jax.ema(0.9, nesterov=True), 0.9, None),
                (0.9, adam_jax.residual_variance(0.9), None),
                (0.9, adam_jax.yogi_average(0.9), None),
                (0.9, 0.9, adam_jax.mean_over(-1)),
                (0.9, 0.9, adam_jax.factored(2)),
            )
        ),
        (
            [scale_by_moments(), correct_step_size(), rectified_precondition()],
            r"correct_step_size\(\) leaves the correction of nu: use bias_correct",
        ),
        (
            [scale_by_moments(), correct_step_size(), center()],
            "center.. needs the firs",
        ),
        (
            [scale_by_moments(0.9, adam_jax.total()), rectified_precondition()],
            "needs a second moment that is an average",
        ),
        # A variance is no average that could be corrected.
        (
            [scale_by_moments(0.9, 0.9), center(), bias_correct()],
            "mu corrected .or cent",
        ),
        # Raw averages of 0.9 and 0.999: 0.001 g^2 - 0.01 g^2, and a step of 1/eps.
        ([scale_by_moments(), center()], r"decay rates: put bias_correct\(\)"),
        ([center()], r"center\(\) takes the Moments that scale_by_moments\(\) emits"),
        ([running_max()], r"running_max\(\) takes the Moments"),
        ([correct_step_size()], r"correct_step_size\(\) takes the Moments"),
        ([rectified_precondition()], r"rectified_precondition\(\) takes the Moments"),
    ],
)
def test_moments_that_a_stage_needs(stages, message):
    with pytest.raises((TypeError, ValueError), match=message):
        update(optax.chain(*stages, scale_by_lr(0.1)))


@pytest.mark.parametrize("name", ["infinity_norm", "residual_variance", "yogi_average"])
def test_accumulators_for_second_moments(name):
    with pytest.raises(
        ValueError, match=r"mu is a first moment, .* second moments only"
    ):
        scale_by_moments(getattr(adam_jax, name)(0.9))


@pytest.mark.parametrize(
    "accumulator",
    [
        adam_jax.ema(0.9, nesterov=True),
        adam_jax.trace(0.9, nesterov=True),
        adam_jax.lion_average(0.9, 0.99),
    ],
)
def test_accumulators_for_first_moments(accumulator):
    with pytest.raises(
        ValueError, match=r"nu is a second moment, .* first moments only"
    ):
        scale_by_moments(0.9, accumulator)


def test_center_takes_what_can_be_subtracted():
    """Rates that agree, as in RMSProp, whatever they are."""
    raw = optax.chain(scale_by_moments(0.9, 0.9), center(), scale_by_lr(0.1))
    assert (update(raw)["b"] < 0).all()

    def rate(count):
        return 0.9

    for decay in (rate, jnp.float32(0.9)):
        tx = optax.chain(scale_by_moments(decay, decay), center(), scale_by_lr(0.1))
        np.testing.assert_allclose(update(tx)["b"], update(raw)["b"], rtol=1e-6)
    pair = scale_by_moments(adam_jax.ema(rate), rate)  # checked twice, and once
    update(optax.chain(pair, center(), scale_by_lr(0.1)))
    tx = optax.inject_hyperparams(adam_jax.rmsprop)(0.1, decay=0.9, centered=True)
    assert (update(tx)["b"] < 0).all()


@pytest.mark.parametrize("b2", [0.99, jnp.float32(0.99), lambda count: 0.99])
def test_the_rectification_is_of_the_rate_that_was_used(b2):
    """It used to be given another b2, silently."""
    tx = optax.chain(
        scale_by_moments(b2=b2),
        bias_correct(),
        rectified_precondition(),
        scale_by_lr(1.0),
    )
    radam = adam_jax.radam(1.0, b2=0.99)
    state, other = tx.init(PARAMS), radam.init(PARAMS)
    for _ in range(8):
        found, state = tx.update(GRADS, state, PARAMS)
        expected, other = radam.update(GRADS, other, PARAMS)
    assert (jnp.abs(found["w"]) < 0.5).all()
    np.testing.assert_allclose(found["w"], expected["w"], rtol=2e-5)


def test_moments_show_types_not_arrays():
    tx = optax.chain(scale_by_moments(), bias_correct())
    moments, _ = tx.update(GRADS, tx.init(PARAMS))
    assert "float32[2,3]" in repr(moments) and len(repr(moments)) < 1000


@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_named_optimizers_have_their_moments(name):
    make = adam_jax.OPTIMIZERS[name]
    rates = ("b1", "b2", "b3", "decay", "rho", "beta", "momentum")
    given = inspect.signature(make).parameters
    decays = [k for k in rates if k in given and given[k].default is not None]
    for decay in decays:
        with pytest.raises(TypeError, match=f"^{decay} must be a number, .* got None"):
            make(0.1, **{decay: None})
    others = {
        "sgd",
        "adagrad",
        "adafactor",
        "aggmo",
        "rowwise_adagrad",
        "sm3",
        "prodigy",
    }
    assert decays or name in others


OTHERS = {
    "Optax's": optax.adam(0.1),
    "adamw": adam_jax.adamw(0.1),
    "amsgrad": adam_jax.amsgrad(0.1),
    "behind a clip": optax.chain(optax.clip(1.0), adam_jax.adam(0.1)),
    "packed": adam_jax.packed(adam_jax.adam(0.1)),
    "recorded": adam_jax.record(adam_jax.adam(0.1)),
    "guarded": adam_jax.skip_nonfinite(adam_jax.adam(0.1)),
    "rounded": adam_jax.round_to_params(adam_jax.adam(0.1)),
}


@pytest.mark.parametrize("step", [False, True], ids=["update", "fused.step"])
@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_optimizer(name, step):
    tx, state = adam_jax.adam(0.1), OTHERS[name].init(PARAMS)
    with pytest.raises(
        TypeError, match=r"^adam\(\) was given the state of another .*: st"
    ):
        if step:
            fused.step(tx)(PARAMS, GRADS, state)
        else:
            jax.jit(tx.update)(GRADS, state, PARAMS)


def test_the_state_of_another_stage():
    adam = adam_jax.adam(0.1)
    state = adam.init(PARAMS)
    for wrapper in (
        adam_jax.packed,
        adam_jax.record,
        adam_jax.skip_spikes,
        adam_jax.round_to_params,
        adam_jax.compensate_params,
    ):
        message = rf"^{wrapper.__name__}\(\) was given a tuple for its state, not a"
        with pytest.raises(TypeError, match=message):
            wrapper(adam).update(GRADS, state, PARAMS)
    masked = adam_jax.adamw(0.1, mask={"w": True, "b": False})
    with pytest.raises(TypeError, match=r"^add_decayed_weights\(\) was given a Sched"):
        masked.update(GRADS, adam_jax.adamw(0.1).init(PARAMS), PARAMS)
    dicts = tuple(serialization.to_state_dict(part) for part in state)
    with pytest.raises(TypeError, match=r"restored without its structure.*eval_shape"):
        adam.update(GRADS, dicts, PARAMS)
    momentum = optax.chain(scale_by_moments(0.9, None), scale_by_lr(0.1))
    both = optax.chain(scale_by_moments(), scale_by_lr(0.1))
    with pytest.raises(
        ValueError, match=r"the optimizer has a second moment, the stat"
    ):
        both.update(GRADS, momentum.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"the state has a second moment, the optimiz"):
        momentum.update(GRADS, both.init(PARAMS), PARAMS)


STORED = ["float32", "bfloat16", "8bit"]


@pytest.mark.parametrize("argument", ["mu_dtype", "nu_dtype"])
@pytest.mark.parametrize(
    ("own", "other"), [(x, y) for x in STORED for y in STORED if x != y]
)
def test_a_state_in_another_format(argument, own, other):
    """A bfloat16 state would else stay bfloat16 for ever."""
    tx = adam_jax.adam(0.1, **{argument: own})
    state = adam_jax.adam(0.1, **{argument: other}).init(PARAMS)
    which = argument[:2]
    with pytest.raises(
        ValueError, match=rf"{which}\['b'\].*give it the {argument}"
    ) as e:
        jax.jit(tx.update)(GRADS, state, PARAMS)
    assert f"by this optimizer ({own})" in str(e.value)
    # The cure that it names:
    state = adam_jax.convert_state(state, **{argument: own})
    jax.jit(tx.update)(GRADS, state, PARAMS)


def test_means_over_other_axes():
    state = adam_jax.adam(0.1, nu_dtype=adam_jax.mean_over(0)).init(PARAMS)
    tx = adam_jax.adam(0.1, nu_dtype=adam_jax.mean_over(-1))
    with pytest.raises(ValueError, match=r"nu\['w'\].*MeanOver, float32\[1,3\].*-1"):
        tx.update(GRADS, state, PARAMS)
    state = adam_jax.adam(0.1, nu_dtype=adam_jax.factored(2)).init(PARAMS)
    tx = adam_jax.adam(0.1, nu_dtype=adam_jax.factored(3))
    with pytest.raises(ValueError, match=r"nu\['w'\].*another format.*factored\(3\)"):
        tx.update(GRADS, state, PARAMS)


def test_a_trace_in_another_format():
    state = adam_jax.sgd(0.1, 0.9).init(PARAMS)
    tx = adam_jax.sgd(0.1, 0.9, accumulator_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"trace\['b'\].*the accumulator_dtype that"):
        tx.update(GRADS, state, PARAMS)
