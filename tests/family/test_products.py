"""Every optimizer in every storage, wrapper and number type: products, not promises.

`test_contract.py` holds what is asked of each alone.
"""

import functools
import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import MAKERS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax.stages.agreement import (
    add_cautious_decay,
    keep_agreeing,
    take_sign_of_gradient,
)
from adam_jax.stages.division import atan2_precondition

pytestmark = pytest.mark.crossing

RATE = 1e-2
SHAPES = {"w": (8, 16), "b": (5,)}
every_optimizer = pytest.mark.parametrize("name", adam_jax.OPTIMIZERS)
# Where the defaults leave something out, or wait too long for three steps to show it.
OPTIONS = {
    **{name: {"momentum": 0.9} for name in ("sgd", "shampoo")},
    "adafactor": {"momentum": 0.9, "dtype_momentum": None},
    "prodigy": {"estim_lr0": 1.0},
}


def make(name, storage=None):
    """Return the optimizer, with all that it stores in one format."""
    options = dict(OPTIONS.get(name, {}))
    if storage is not None:
        options |= dict.fromkeys(storage_arguments(name), storage)
    return MAKERS[name](RATE, **options)


def storage_arguments(name):
    """Return the arguments that say how moments are stored."""
    named = ("mu_dtype", "nu_dtype", "accumulator_dtype", "dtype_momentum")
    return [x for x in named if x in inspect.signature(MAKERS[name]).parameters]


def draw(steps, dtype: Any = np.float32, seed=0):
    """Return parameters, and gradients of which each has a trend and noise."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        x = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return x

    params = {k: normal(*shape) for k, shape in SHAPES.items()}
    grads = {
        k: normal(steps, *shape) + 0.5 * normal(*shape) for k, shape in SHAPES.items()
    }
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, grads))


def walk(tx, params, grads):
    """Return the updates of all steps, and the last parameters and state."""

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), updates

    carry, updates = jax.lax.scan(step, (params, tx.init(params)), grads)
    return updates, *carry


def at(tree, step):
    return jax.tree.map(lambda x: x[step], tree)


def rms(x):
    return float(np.sqrt(np.mean(np.abs(np.asarray(x, np.complex128)) ** 2)))


def assert_same(found, expected):
    """Bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_array_equal(x, y)


def assert_near(found, expected, rtol):
    """Relative to the size of each leaf."""
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        x, y = (np.asarray(z, np.complex128) for z in (x, y))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * (rms(y) or 1))


@functools.cache
def after_three(name):
    """Return parameters, gradients and state after three steps."""
    params, grads = draw(5)
    _, params, state = jax.jit(walk, static_argnums=0)(
        make(name), params, jax.tree.map(lambda x: x[:3], grads)
    )
    return params, at(grads, 3), at(grads, 4), state


# Storage.

FORMATS = {"bfloat16": "bfloat16", "8bit": adam_jax.eight_bit(min_size=1)}
# The distance of updates from those with float32 moments, over the updates' size.
LIMITS = {"bfloat16": 0.02, "8bit": 0.1}
# As it is measured, with a margin; a moment that is not kept at all is off by 1.
FURTHER = {
    # A sign that flips moves an update by two whole steps.
    "lion": {"bfloat16": 0.15, "8bit": 0.25},  # 0.090, 0.161
    "signum": {"bfloat16": 0.1, "8bit": 0.2},  # 0.063, 0.122
    "tiger": {"bfloat16": 0.1, "8bit": 0.25},  # 0.055, 0.156
    "adamuon": {"bfloat16": 0.12, "8bit": 0.3},  # 0.070, 0.173: takes signs, too
    # Each rounding of a sum stays in it.
    "madgrad": {"bfloat16": 0.1, "8bit": 0.6},  # 0.055, 0.406
    "simplified_ademamix": {"bfloat16": 0.03, "8bit": 0.15},  # 0.014, 0.101
    # The first steps divide by one |g - mu|, which may be near 0.
    "acprop": {"bfloat16": 0.02, "8bit": 0.3},  # 0.005, 0.171
    # Step sizes are bounded by their average from 0: a small error of few steps stays.
    "adamod": {"bfloat16": 0.03, "8bit": 0.2},  # 0.018, 0.128
}


# The first preconditioners of a vector are singular: they blow up any rounding.
SETTLED = {"shampoo": 5}


def distances(name, formats):
    params, grads = draw(200)

    @jax.jit
    def all_ways():
        return {
            k: walk(make(name, storage), params, grads)[0]
            for k, storage in ({"": None} | formats).items()
        }

    updates = all_ways()
    true = updates.pop("")
    start = SETTLED.get(name, 0)
    return {
        k: max(
            rms((own[leaf] - true[leaf])[start:]) / rms(true[leaf]) for leaf in SHAPES
        )
        for k, own in updates.items()
    }


@every_optimizer
def test_stored_moments_make_the_same_steps(name):
    if not storage_arguments(name):
        pytest.skip("stores nothing in a format of choice")
    found = distances(name, FORMATS)
    limits = FURTHER.get(name, LIMITS)
    print(name, found)
    for storage, distance in found.items():
        # And it is stored: something is lost.
        assert 0 < distance < limits[storage], (storage, distance)


# Wrappers.


@every_optimizer
def test_rounded_updates_are_differences_of_bfloat16(name):
    params, grads = jax.tree.map(lambda x: x.astype("bfloat16"), draw(3))
    tx = adam_jax.round_to_params(make(name))

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        new = optax.apply_updates(params, updates)
        return (new, state), (params, updates, new)

    _, (before, updates, after) = jax.jit(jax.lax.scan, static_argnums=0)(
        step, (params, tx.init(params)), grads
    )
    for old, update, new in zip(
        *map(jax.tree.leaves, (before, updates, after)), strict=True
    ):
        assert new.dtype == "bfloat16" and jnp.isfinite(update).all()
        np.testing.assert_array_equal(
            np.float32(old) + np.float32(update), np.float32(new)
        )


@every_optimizer
def test_guards_skip_a_step_as_if_it_had_not_been(name):
    params, grads, _, state = after_three(name)
    bare = make(name)
    poisoned = grads | {"b": grads["b"].at[1].set(jnp.nan)}
    for guard in (adam_jax.skip_nonfinite, adam_jax.skip_spikes):
        tx = guard(bare)
        guarded = jax.eval_shape(tx.init, params)
        guarded = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), guarded)
        guarded = guarded._replace(inner_state=state)
        update = jax.jit(tx.update)
        updates, held = update(poisoned, guarded, params)
        assert all((x == 0).all() for x in jax.tree.leaves(updates))
        assert_same(held.inner_state, state)
        assert held.skipped == 1
        updates, taken = update(grads, held, params)
        expected = jax.jit(bare.update)(grads, state, params)
        assert_near((updates, taken.inner_state), expected, 1e-5)


@every_optimizer
def test_figures_are_finite(name):
    params, grads, _, state = after_three(name)
    tx = adam_jax.record(make(name))
    start: Any = tx.init(params)
    start = start._replace(inner_state=state)
    updates, recorded = jax.jit(tx.update)(grads, start, params)
    figures = adam_jax.named_figures(recorded, params)
    assert all(np.isfinite(x) for x in figures.values()), figures
    size = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(updates)))
    np.testing.assert_allclose(figures["update_norm"], size, rtol=1e-5)


@every_optimizer
def test_compensated_parameters_are_the_float32_ones_rounded(name):
    params, grads = jax.tree.map(lambda x: x.astype("bfloat16"), draw(5))
    wide = jax.tree.map(jnp.float32, params)
    tx = adam_jax.compensate_params(make(name))

    @jax.jit
    def both():
        _, compensated, _ = walk(tx, params, grads)
        _, expected, _ = walk(make(name), wide, jax.tree.map(jnp.float32, grads))
        return compensated, expected

    for found, expected in zip(*map(jax.tree.leaves, both()), strict=True):
        assert found.dtype == "bfloat16"
        np.testing.assert_allclose(
            np.float32(found), expected, rtol=2.0**-8, atol=1e-5 * rms(expected)
        )


# Number types.


@every_optimizer
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_updates_have_the_parameters_dtype_and_moments_are_wide(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = {k: jax.ShapeDtypeStruct(x, dtype) for k, x in SHAPES.items()}
        tx = make(name)
        state = jax.eval_shape(tx.init, params)
        updates, stepped = jax.eval_shape(tx.update, params, state, params)
        assert jax.tree.map(jax.typeof, stepped) == jax.tree.map(jax.typeof, state)
        assert {x.dtype.name for x in jax.tree.leaves(updates)} == {dtype}
        wide = "float64" if dtype == "float64" else "float32"
        copies = dtype if name == "madgrad" else wide  # it keeps where it started
        for x in jax.tree.leaves(state):
            if x.shape in SHAPES.values():
                assert x.dtype in (wide, copies)
            assert x.dtype in ("int32", "bool", "float32", wide, copies)


# Complex numbers.


@every_optimizer
def test_updates_turn_with_the_phase_of_complex_gradients(name):
    """And those of real numbers are the same whether they are called complex or not."""
    phase = 0.6 + 0.8j
    with jax.enable_x64(True):
        params, grads = draw(6, np.complex128)
        # Square: soap has no one basis of what no gradient has.
        params, grads = jax.tree.map(lambda x: x[..., :8], (params, grads))
        real = jax.tree.map(lambda x: x.real, (params, grads))

        @jax.jit
        def updates(params, grads):
            return walk(make(name), params, grads)[0]

        straight = updates(params, grads)
        turned = updates(*jax.tree.map(lambda x: x * phase, (params, grads)))
        called = updates(*jax.tree.map(lambda x: x + 0j, real))
        expected = updates(*real)
        straight, turned = jax.tree.map(np.asarray, (straight, turned))
    assert all((x != 0).any() for x in jax.tree.leaves(straight))
    # Yogi's first moment starts at 1e-6, as in Optax.
    limit = 1e-4 if name == "yogi" else 1e-6
    assert_near(turned, jax.tree.map(lambda x: x * phase, straight), limit)
    assert_near(called, expected, 1e-6)


# States.


@every_optimizer
def test_a_saved_state_is_adopted_bit_for_bit(name, tmp_path):
    params, _, _, state = after_three(name)
    file = tmp_path / "state.safetensors"
    adam_jax.save_state(file, state)
    adopted = adam_jax.adopt_state(make(name), adam_jax.read_state(file), params)
    assert adopted.started == adopted.dropped == ()
    assert_same(adopted.state, state)


@every_optimizer
def test_a_converted_state_goes_on_in_its_new_format(name):
    params, grads, _, state = after_three(name)
    takes = {  # what the optimizer calls it, and what convert_state does
        "mu_dtype": "mu_dtype",
        "nu_dtype": "nu_dtype",
        "accumulator_dtype": "mu_dtype",
    }
    takes = {k: v for k, v in takes.items() if k in storage_arguments(name)}
    if not takes:
        pytest.skip("its moments have one format")
    options = OPTIONS.get(name, {}) | dict.fromkeys(takes, "bfloat16")
    tx = MAKERS[name](RATE, **options)
    wanted = dict.fromkeys(takes.values(), "bfloat16")
    adopted = adam_jax.adopt_state(tx, state, params)
    if name != "normuon":  # which also has means over rows
        narrow = adam_jax.convert_state(state, **wanted, params=params)
        assert_same(narrow, adopted.state)
    updates, _ = jax.jit(tx.update)(grads, adopted.state, params)
    expected, _ = jax.jit(make(name).update)(grads, state, params)
    bound = 0.1 if name == "shampoo" else 0.02  # it divides by what is singular still
    for x, y in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
        assert rms(x - y) <= bound * rms(y)


@pytest.mark.parametrize("argument", ["mu_dtype", "nu_dtype"])
@every_optimizer
def test_a_converted_state_is_stepped_from_or_refused(name, argument):
    """Of those that have no such argument, second moments are shared, and stay so."""
    params, grads, _, state = after_three(name)
    called = {"mu_dtype": ("mu_dtype", "accumulator_dtype", "dtype_momentum")}
    takes = called.get(argument, (argument,))
    takes = [x for x in storage_arguments(name) if x in takes]
    for format in (*FORMATS.values(), "float32"):
        tx = MAKERS[name](RATE, **OPTIONS.get(name, {}) | dict.fromkeys(takes, format))
        try:
            converted = adam_jax.convert_state(
                state, **{argument: format}, params=params
            )
            jax.eval_shape(tx.update, grads, converted, params)
        except ValueError as refusal:
            assert argument == "nu_dtype" and (name == "normuon" or not takes)
            assert re.search(r"adopt_state\(tx, state, params\).state", str(refusal))
            adopted = adam_jax.adopt_state(tx, state, params)
            jax.eval_shape(tx.update, grads, adopted.state, params)


@every_optimizer
def test_states_are_sharded_like_their_parameters(name):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    shardings = {
        "w": NamedSharding(mesh, P("x", "y")),
        "b": NamedSharding(mesh, P()),
    }
    params = {
        k: jax.ShapeDtypeStruct(shape, "float32", sharding=shardings[k])
        for k, shape in SHAPES.items()
    }
    tx = make(name)
    found = adam_jax.state_shardings(tx, params)
    state = jax.eval_shape(tx.init, params)
    moments = 0
    for x, sharding in zip(*map(jax.tree.leaves, (state, found)), strict=True):
        if x.shape == SHAPES["w"]:
            assert sharding.is_equivalent_to(shardings["w"], 2)
            moments += 1
    assert moments or name in NONE_LIKE_PARAMETERS


NONE_LIKE_PARAMETERS = ("rowwise_adagrad",)


# Steps in one pass.


@every_optimizer
def test_the_fused_step_is_update_and_apply(name):
    params, grads, later, state = after_three(name)
    tx = make(name)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    fused = jax.jit(adam_jax.fused.step(tx))
    mine = expected = params, state
    for given in (grads, later):
        mine, expected = fused(mine[0], given, mine[1]), step(*expected, given)
    assert jax.tree.map(jax.typeof, mine) == jax.tree.map(jax.typeof, expected)
    assert_near(mine, expected, 1e-5)


# Crossings of one paper with another, against loops of a few lines.


def average(old, value, decay):
    return decay * old + (1 - decay) * value


def rectified_adabelief(grads, param):
    """RAdam's variance over AdaBelief's residuals."""
    mu = nu = 0.0
    b1, b2 = 0.9, 0.99
    longest = 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, b1)
        nu = average(nu, (g - mu) ** 2, b2) + 1e-16
        mean, variance = mu / (1 - b1**t), nu / (1 - b2**t)
        rho = longest - 2 * t * b2**t / (1 - b2**t)
        if rho < 5:
            yield -RATE * mean
            continue
        r = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        yield -RATE * r**0.5 * mean / (variance**0.5 + 1e-8)


def laprop_by_yogi(grads, param):
    """LaProp's momentum of gradients that Yogi's second moment has scaled."""
    mu, nu = 0.0, 1e-6
    for t, g in enumerate(grads, 1):
        nu -= 0.01 * math.copysign(1, nu - g * g) * g * g
        scaled = g / ((nu / (1 - 0.99**t)) ** 0.5 + 1e-3)
        mu = average(mu, scaled, 0.9)
        yield -RATE * mu / (1 - 0.9**t)


def greatest_infinity_norm(grads, param):
    """AMSGrad's maximum of AdaMax's norm, which then never decays; AdamW's decay."""
    mu = norm = greatest = 0.0
    for t, g in enumerate(grads, 1):
        mu = average(mu, g, 0.9)
        norm = max(0.5 * norm, abs(g) + 1e-8)
        greatest = max(greatest, norm)
        update = -RATE * (mu / (1 - 0.9**t) / greatest + 0.1 * param)
        param += update
        yield update


def grams_by_adagrad(grads, param):
    """The gradient's sign, the size of heavy-ball momentum over AdaGrad's sum."""
    trace, total = 0.0, 0.1
    for g in grads:
        trace = 0.9 * trace + g
        total += g * g
        size = abs(trace) / (total**0.5 + 1e-7)
        yield -RATE * size * (g > 0) + RATE * size * (g < 0)


def nadam_through_atan2(grads, param):
    """NAdam's look ahead, Adam-atan2's division."""
    mu = nu = 0.0
    for t, g in enumerate(grads, 1):
        mu, nu = average(mu, g, 0.9), average(nu, g * g, 0.99)
        ahead = 0.9 * mu / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        root = (nu / (1 - 0.99**t)) ** 0.5
        yield -RATE * 4 / math.pi * math.atan2(ahead, root)


def adopt_with_cautious_decay(grads, param):
    """ADOPT's order (the second moment before this gradient), momentum after it."""
    mu, nu = 0.0, None
    for t, g in enumerate(grads):
        scaled = 0.0 if nu is None else g / max(nu**0.5, 1e-3)
        nu = g * g if nu is None else average(nu, g * g, 0.99)
        scaled = max(-(t**0.25), min(scaled, t**0.25))
        mu = average(mu, scaled, 0.9)
        decay = 0.1 * param
        agrees = mu * param >= 0
        update = -RATE * (mu + agrees * decay)
        param += update
        yield update


def crossings():
    m, correct = adam_jax.scale_by_moments, adam_jax.bias_correct
    divide = adam_jax.precondition
    return {
        rectified_adabelief: (
            m(0.9, adam_jax.residual_variance(0.99)),
            correct(),
            adam_jax.rectified_precondition(),
        ),
        laprop_by_yogi: (
            m(None, adam_jax.yogi_average(0.99)),
            correct(),
            divide(1e-3),
            m(0.9, None),
            correct(),
        ),
        greatest_infinity_norm: (
            m(0.9, adam_jax.infinity_norm(0.5, eps=1e-8)),
            correct(),
            adam_jax.running_max(),
            divide(0.0),
            adam_jax.add_decayed_weights(0.1),
        ),
        grams_by_adagrad: (
            m(adam_jax.trace(0.9), adam_jax.total(0.1)),
            take_sign_of_gradient(),
            divide(1e-7),
        ),
        nadam_through_atan2: (
            m(adam_jax.ema(0.9, nesterov=True), 0.99),
            correct(),
            atan2_precondition(),
        ),
        adopt_with_cautious_decay: (
            m(None, adam_jax.delayed(adam_jax.average_from_first(0.99), math.inf)),
            adam_jax.floor_nu(1e-3),
            divide(0.0),
            adam_jax.clip_elements(lambda count: count**0.25),
            m(0.9, None),
            divide(),
            add_cautious_decay(0.1),
        ),
    }


@pytest.mark.parametrize("rule", crossings(), ids=lambda rule: rule.__name__)
def test_crossings_follow_their_loops(rule):
    stages = crossings()[rule]
    tx = optax.chain(*stages, adam_jax.scale_by_lr(RATE))
    adam_jax.assert_follows(tx, rule)


# Chains that no one has written down.


def chain_of(seed):
    """Return a chain of stages drawn at random, among those that go together."""
    rng = np.random.default_rng(seed)

    def choose(*options):
        return options[rng.integers(len(options))]

    def maybe(*stages):
        return choose([], list(stages))

    formats = (None, "bfloat16", adam_jax.eight_bit(min_size=1))
    mu = choose(
        None,
        0.9,
        adam_jax.trace(0.9, nesterov=True),
        adam_jax.lion_average(0.9, 0.99),
        adam_jax.ema(0.9, nesterov=True),
        adam_jax.mixture(adam_jax.ema(0.9), 0.7),
    )
    averages = choose(True, False)
    nu = choose(
        *(0.99, adam_jax.residual_variance(0.99), adam_jax.yogi_average(0.99))
        if averages
        else (adam_jax.total(0.1), adam_jax.infinity_norm(0.9, eps=1e-8))
    )
    storage = {"mu_dtype": choose(*formats), "nu_dtype": choose(*formats)}
    divide = [adam_jax.precondition(eps=1e-3), atan2_precondition()]
    divide += [adam_jax.rectified_precondition(eps=1e-3)] if averages else []
    return optax.chain(
        *maybe(adam_jax.add_decayed_weights(0.01)),
        adam_jax.scale_by_moments(mu, nu, **storage),
        *choose(
            [],
            [adam_jax.bias_correct()],
            [adam_jax.running_max(), adam_jax.bias_correct()],
            [adam_jax.bias_correct(), adam_jax.running_max()],
        ),
        *choose([], [take_sign_of_gradient()], [keep_agreeing()]),
        choose(*divide),
        *maybe(adam_jax.clip_elements(2.0)),
        *choose([], [adam_jax.add_decayed_weights(0.1)], [add_cautious_decay(0.1)]),
        adam_jax.scale_by_lr(choose(RATE, lambda count: RATE / (1 + count))),
    )


@pytest.mark.parametrize("seed", range(40))
def test_random_chains_run_and_equal_their_eager_selves(seed):
    tx = chain_of(seed)
    params, grads = draw(20, seed=seed)
    updates, params, state = jax.jit(walk, static_argnums=0)(tx, params, grads)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((updates, params)))
    assert all((x != 0).any() for x in jax.tree.leaves(updates))
    last = at(grads, -1)
    eager, _ = tx.update(last, state, params)
    jitted, _ = jax.jit(tx.update)(last, state, params)
    assert_near(eager, jitted, 1e-5)
