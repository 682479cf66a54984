"""Every documented error: raised at construction or at the first trace, with a cure."""

import dataclasses
import functools
import inspect
import math

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import often
from flax import nnx

import adam_jax
from adam_jax import (
    Accumulator,
    ema,
    precondition,
    scale_by_lr,
    scale_by_moments,
    scale_by_trace,
    trace,
)

RANGE = r"must be a decay rate in \[0, 1\), got"
FINITE = r"must be a finite number >= 0, got"


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan, jnp.float32(1.5), 2])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("b1", lambda v: adam_jax.adam(1e-3, b1=v)),
        ("b2", lambda v: adam_jax.adamw(1e-3, b2=v)),
        ("b1", lambda v: adam_jax.radam(1e-3, b1=v)),
        ("b2", lambda v: adam_jax.adamax(1e-3, b2=v)),
        ("b2", lambda v: adam_jax.adabelief(1e-3, b2=v)),
        ("b2", lambda v: adam_jax.yogi(1e-3, b2=v)),
        ("b1", lambda v: adam_jax.lion(1e-3, b1=v)),
        ("decay", lambda v: adam_jax.rmsprop(1e-3, decay=v)),
        ("momentum", lambda v: adam_jax.rmsprop(1e-3, momentum=v)),
        ("momentum", lambda v: adam_jax.sgd(1e-3, momentum=v)),
        ("b1", lambda v: scale_by_moments(b1=v)),
        ("decay", ema),
        ("decay", trace),
    ],
)
def test_decay_out_of_range(name, make, value):
    with pytest.raises(ValueError, match=f"^{name} {RANGE}"):
        make(value)


@pytest.mark.parametrize("value", [-1e-8, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("eps", lambda v: adam_jax.adam(1e-3, eps=v)),
        ("eps", lambda v: adam_jax.adamax(1e-3, eps=v)),
        ("eps_root", lambda v: adam_jax.adam(1e-3, eps_root=v)),
        ("eps_root", lambda v: adam_jax.adabelief(1e-3, eps_root=v)),
        ("eps", lambda v: adam_jax.adagrad(1e-3, eps=v)),
        ("eps", lambda v: adam_jax.rmsprop(1e-3, eps=v)),
        (
            "initial_accumulator_value",
            lambda v: adam_jax.adagrad(1e-3, initial_accumulator_value=v),
        ),
        ("initial_scale", lambda v: adam_jax.rmsprop(1e-3, initial_scale=v)),
        ("weight_decay", lambda v: adam_jax.adamw(1e-3, weight_decay=v)),
        ("learning_rate", adam_jax.adam),
        ("learning_rate", adam_jax.sgd),
        ("threshold", lambda v: adam_jax.radam(1e-3, threshold=v)),
    ],
)
def test_negative_or_not_finite(name, make, value):
    with pytest.raises(ValueError, match=f"^{name} {FINITE}"):
        make(value)


# Storage is looked at only where something is stored.
STORES = {name: {"momentum": 0.9} for name in ("sgd", "adafactor")}


@pytest.mark.parametrize("value", [math.nan, "x", -1.0, lambda count: math.nan])
@pytest.mark.parametrize("name", adam_jax.OPTIMIZERS)
def test_a_refusal_names_the_argument_of_the_optimizer(name, value):
    """And not that of a stage inside of it."""
    make, params = adam_jax.OPTIMIZERS[name], {"w": jnp.ones((4, 6)), "b": jnp.ones(3)}
    asked, must_refuse = 0, value != -1.0
    for argument in inspect.signature(make).parameters.values():
        if argument.annotation is bool or "mask" in argument.name:
            continue
        options = {"learning_rate": 1e-2} | STORES.get(name, {})
        refusal = None
        try:
            tx = make(**options | {argument.name: value})
            jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p), params)
        except (TypeError, ValueError) as error:
            refusal = str(error)
            asked += 1
        assert refusal is None or refusal.split()[0] == argument.name, refusal
        assert refusal or not must_refuse, f"{argument.name}={value} is accepted"
    assert asked > 0


@pytest.mark.parametrize("value", ["0.9", None, True, [0.9]])
def test_not_a_number(value):
    with pytest.raises(TypeError, match="eps must be a number, a 0-d array or a sched"):
        adam_jax.adam(1e-3, eps=value)


@pytest.mark.parametrize(
    "value", [jnp.complex64(0.5), np.complex64(0.5), jnp.array(True)]
)
def test_not_a_real_number(value):
    with pytest.raises(TypeError, match="b1 must be a real number, got"):
        adam_jax.adam(1e-3, b1=value)


def test_not_a_scalar():
    with pytest.raises(ValueError, match=r"b2 must be a scalar, got shape \(2,\)"):
        adam_jax.adam(1e-3, b2=jnp.array([0.9, 0.99]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["b1", "b2", "eps"])
def test_half_precision_hyperparameters_are_refused(name, dtype):
    cure = f"{name} is a {jnp.dtype(dtype)} array.*hyperparam_dtype=jnp.float32"
    with pytest.raises(ValueError, match=cure):
        adam_jax.adam(1e-3, **{name: jnp.asarray(0.5, dtype)})
    injected = optax.inject_hyperparams(adam_jax.adam)(1e-3, **{name: 0.5})
    with pytest.raises(ValueError, match=cure):
        jax.jit(injected.init)(jnp.zeros(2, dtype))
    cured = optax.inject_hyperparams(adam_jax.adam, hyperparam_dtype=jnp.float32)
    cured(1e-3, **{name: 0.5}).init(jnp.zeros(2, dtype))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("initial_scale", lambda v: adam_jax.rmsprop(1e-3, initial_scale=v)),
        (
            "initial_accumulator_value",
            lambda v: adam_jax.adagrad(1e-3, initial_accumulator_value=v),
        ),
        ("initial", lambda v: adam_jax.ema(0.9, initial=v)),
    ],
)
def test_what_is_read_at_init_is_no_schedule(name, make):
    with pytest.raises(TypeError, match=f"^{name} must be a number, not a schedule"):
        make(lambda count: 0.1)


@pytest.mark.parametrize(
    ("optimizer", "argument"),
    [
        ("shampoo", "eps"),
        ("prodigy", "beta3"),
    ],
)
def test_an_error_names_the_argument_of_the_optimizer(optimizer, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be "):
        adam_jax.OPTIMIZERS[optimizer](1e-3, **{argument: -3.0})


def test_a_schedule_is_checked_at_the_first_trace():
    tx = adam_jax.adam(1e-3, b2=lambda count: jnp.bfloat16(0.999))
    with pytest.raises(ValueError, match="b2 is a bfloat16 array"):
        jax.jit(tx.update)(jnp.ones(2), tx.init(jnp.ones(2)))
    tx = adam_jax.adam(1e-3, b2=lambda count: 1.0)
    with pytest.raises(ValueError, match=f"b2 {RANGE}"):
        jax.jit(tx.update)(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_integer_and_boolean_leaves(name, dtype):
    tx = adam_jax.OPTIMIZERS[name](1e-3)
    params = {"w": jnp.ones(2), "n": jnp.ones(2, dtype)}
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype .*optax.masked"):
        jax.jit(tx.init)(params)
    floats = {"w": jnp.ones(2), "n": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"(grads|updates)\['n'\] has dtype"):
        jax.jit(tx.update)(params, tx.init(floats), floats)


NARROW = [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn]
AT_UPDATE = {
    "none": lambda tx: tx,
    "packed": adam_jax.packed,
    "record": adam_jax.record,
    "skip_nonfinite": adam_jax.skip_nonfinite,
    "round_to_params": adam_jax.round_to_params,
    "compensate_params": adam_jax.compensate_params,
}


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, *NARROW])
@pytest.mark.parametrize("wrapper", AT_UPDATE)
def test_parameters_are_checked_at_every_update(wrapper, dtype):
    """They may have another dtype than at init."""
    tx = AT_UPDATE[wrapper](adam_jax.adamw(1e-3))
    params = {"w": jnp.ones(2), "n": jnp.ones(2)}
    state, wrong = tx.init(params), {"w": jnp.ones(2), "n": jnp.ones(2, dtype)}
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype"):
        jax.jit(tx.update)(params, state, wrong)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype"):
        adam_jax.fused.step(tx)(wrong, params, state)
    with pytest.raises(TypeError, match=r"grads\['n'\] has dtype"):
        jax.jit(tx.update)(wrong, state, params)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype"):
        tx.init(wrong)


@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_every_optimizer_checks_its_parameters(name):
    tx = adam_jax.OPTIMIZERS[name](0.1)
    state = tx.init({"w": 3.0})
    with pytest.raises(TypeError, match=r"params\['w'\] has dtype int32"):
        tx.update({"w": 1.0}, state, {"w": jnp.int32(3)})


def test_narrow_floats_are_refused_with_a_cure():
    cure = r"float8_e5m2, too narrow for an optimizer: keep .* bfloat16 or float32"
    with pytest.raises(TypeError, match=cure):
        scale_by_moments().init(jnp.ones(2, jnp.float8_e5m2))
    tx = optax.chain(scale_by_moments(), precondition(), adam_jax.cast_to_params())
    with pytest.raises(TypeError, match=cure):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2, jnp.float8_e5m2))


@pytest.mark.parametrize("give_params", [False, True])
@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_mismatched_trees(name, give_params):
    tx = adam_jax.OPTIMIZERS[name](1e-3)
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    takes = inspect.signature(adam_jax.OPTIMIZERS[name]).parameters
    needs_params = "weight_decay" in takes or name in ("sgd", "shampoo")
    state, given = tx.init(params), params if give_params or needs_params else None
    with pytest.raises(AssertionError, match=r"tx\.init\(params\)"):
        jax.jit(tx.update)({"w": jnp.ones(2)}, state, given)
    with pytest.raises(AssertionError, match=r"w.*shape \(1, 2\), not \([12],\)"):
        jax.jit(tx.update)({"w": jnp.ones((1, 2)), "b": jnp.ones(3)}, state, given)


@pytest.mark.parametrize("name", ["adamw", "nadamw", "adamaxw", "lion"])
def test_weight_decay_without_params(name):
    tx = adam_jax.OPTIMIZERS[name](1e-3)
    with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_a_complex_gradient_does_not_fit_a_real_moment():
    tx = adam_jax.adam(1e-3, mu_dtype=jnp.float32)
    params = jnp.ones(2, jnp.complex64)
    with pytest.raises(
        TypeError, match=r"complex64 gradient .* pass a complex mu_dtype"
    ):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("value", [jnp.int32, "float16", "4bit", 8])
def test_storage(value):
    with pytest.raises(ValueError, match=r"^mu_dtype must be a dtype, a format"):
        adam_jax.adam(1e-3, mu_dtype=value)
    with pytest.raises(ValueError, match=r"^accumulator_dtype must be a dtype"):
        adam_jax.sgd(1e-3, 0.9, accumulator_dtype=value)


@pytest.mark.parametrize("dtype", ["float64", jnp.float64, np.dtype("float64")])
def test_64_bits_need_x64(dtype):
    message = "mu_dtype .* cannot be stored as float64 unless .*jax_enable_x64"
    with pytest.raises(ValueError, match=message):
        adam_jax.adam(1e-3, mu_dtype=dtype)
    with pytest.raises(ValueError, match="stored as complex128 unless"):
        adam_jax.sgd(1e-3, 0.9, accumulator_dtype="complex128")
    with pytest.raises(ValueError, match=message):
        state = adam_jax.adam(1e-3).init(jnp.ones(2))
        adam_jax.convert_state(state, mu_dtype=dtype)
    with jax.enable_x64(True):
        state = adam_jax.adam(1e-3, mu_dtype=dtype).init(jnp.ones(2))
        assert state[0].mu.dtype == "float64"
    # The class is whatever JAX makes of Python's floats.
    assert (
        adam_jax.adam(1e-3, mu_dtype=float).init(jnp.ones(2))[0].mu.dtype == "float32"
    )


@pytest.mark.parametrize("make", [adam_jax.adamw, adam_jax.lion])
def test_a_dtype_that_inject_hyperparams_calls(make):
    """A class can be called, so Optax takes it for a schedule."""
    tx = optax.inject_hyperparams(make)(1e-3, mu_dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"got an array.*write .*mu_dtype='bfloat16'"):
        tx.init(jnp.ones(2))
    tx = optax.inject_hyperparams(make)(1e-3, mu_dtype="bfloat16")
    state = tx.init(jnp.ones(2))
    assert optax.tree.get(state, "mu").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("value", "close"),
    [("8-bit", "8bit"), ("4bit", "8bit"), ("BF16", "bfloat16"), ("fp32", "float32")],
)
def test_storage_by_another_name(value, close):
    with pytest.raises(
        ValueError, match=f"8bit, got '{value}': did you mean '{close}'"
    ):
        adam_jax.adam(1e-3, nu_dtype=value)
    with pytest.raises(
        ValueError, match=f"stored in a dtype, such as .* got '{value}'"
    ):
        adam_jax.dense(value)


@pytest.mark.parametrize("value", [[], jnp.ones(2), object])
def test_no_storage_at_all(value):
    with pytest.raises(
        ValueError, match=r"^mu_dtype must be a dtype, a format or one o"
    ):
        adam_jax.adam(1e-3, mu_dtype=value)


def test_a_second_moment_is_real():
    tx = adam_jax.adam(1e-3, nu_dtype=jnp.complex64)
    with pytest.raises(ValueError, match="nu_dtype must be real, got complex64"):
        tx.init(jnp.ones(2))


@pytest.mark.parametrize("block", [0, -32, 1.5])
def test_block_size(block):
    with pytest.raises(ValueError, match="block must be a positive integer, got"):
        adam_jax.eight_bit(block=block)
    for min_size in (-1, True):
        with pytest.raises(ValueError, match="min_size must be an integer >= 0"):
            adam_jax.eight_bit(min_size=min_size)


@pytest.mark.parametrize("stage", [adam_jax.bias_correct, precondition])
def test_stages_out_of_order(stage):
    tx = optax.chain(stage(), scale_by_moments())
    with pytest.raises(TypeError, match=r"takes the Moments that scale_by_moments\(\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize(
    "stage",
    [scale_by_moments(), adam_jax.add_decayed_weights(0.1), scale_by_trace(0.9)],
)
def test_moments_where_updates_are_due(stage):
    tx = optax.chain(scale_by_moments(), stage)
    with pytest.raises(TypeError, match=r"got Moments: put precondition\(\) before it"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


def test_an_accumulator_of_one_s_own():
    def add(moment, value, h):
        return moment + value

    for hyperparams, options, message in [
        ({}, {"averages": True}, "^an Accumulator that averages needs a hyperparam"),
        ({"decay": 1.5}, {}, f"^decay {RANGE} 1.5"),
        ({"rate": math.inf}, {}, "^rate must be a finite number, got inf"),
        ({}, {"initial": -1.0}, f"^initial {FINITE} -1.0"),
        ({}, {"power": 3}, "^the power of a moment is 1 or 2, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            Accumulator(hyperparams, add, **options)


def test_updates_unlike_params():
    tx = scale_by_lr(1e-3)
    with pytest.raises(AssertionError, match="updates do not fit params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(3))


def test_shape_checks_are_chex_assertions():
    tx = adam_jax.adam(1e-3)
    state = tx.init(jnp.ones((1, 2)))
    chex.disable_asserts()
    try:
        tx.update(jnp.ones(2), state)
    finally:
        chex.enable_asserts()
    with pytest.raises(AssertionError, match="shape"):
        tx.update(jnp.ones(2), state)


@pytest.mark.parametrize(
    "wrap",
    [
        adam_jax.skip_nonfinite,
        adam_jax.skip_spikes,
        adam_jax.checked,
        adam_jax.record,
        adam_jax.round_to_params,
        adam_jax.compensate_params,
        adam_jax.fused.step,
    ],
)
def test_a_function_that_makes_an_optimizer_is_none(wrap):
    with pytest.raises(TypeError, match=r"takes an optimizer, got <function adam"):
        wrap(adam_jax.adam)
    with pytest.raises(TypeError, match=r"takes an optimizer, got 'adamw': pass one"):
        wrap("adamw")
    with pytest.raises(TypeError, match=r"takes an optimizer, got a dict: pass one"):
        wrap({"w": jnp.ones((30, 30))})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("w", "mask must be a pytree of booleans, .* got 'w'."),
        ({"w": 1.0, "b": True}, r"mask must be .* got 1.0 at \['w'\]"),
        (lambda params: params, r"mask must be .* got Array"),
        ({"x": True}, "mask is not a prefix of the parameters"),
    ],
)
def test_masks_are_booleans(mask, message):
    tx = adam_jax.adamw(1e-3, mask=mask)
    with pytest.raises((TypeError, ValueError), match=message):
        tx.init({"w": jnp.ones(2), "b": jnp.ones(2)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: adam_jax.dense("bfloat16", seed=2**40),
            r"^seed must be an integer in",
        ),
        (lambda: adam_jax.eight_bit(seed="a"), r"^seed must be an integer in"),
        (lambda: adam_jax.round_to_params(seed=-1), r"^seed must be an integer in"),
        (
            lambda: adam_jax.skip_spikes(adam_jax.adam(1.0), "5"),
            "^threshold must be a n",
        ),
        (
            lambda: adam_jax.adam(1e-3, nu_dtype=adam_jax.factored),
            "^nu_dtype must be a format, got a function: call <function factored",
        ),
        (
            lambda: adam_jax.adam(1e-3).init({"w": "x"}),
            r"^params\['w'\] is a str, not an array of numbers: keep it out",
        ),
        (
            lambda: adam_jax.Moment(adam_jax.ema(0.9), adam_jax.dense(), 3, "m", "m"),
            "^order must be 1 or 2, got 3",
        ),
    ],
)
def test_arguments_of_other_kinds(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_figures_of_another_state():
    params = jnp.ones(3)
    state = adam_jax.record(adam_jax.adam(1e-3), ["update_norm"]).init(params)
    tx = adam_jax.record(adam_jax.adam(1e-3), ["gradient_norm"])
    with pytest.raises(
        ValueError, match="keeps gradient_norm, but its state holds upd"
    ):
        tx.update(params, state, params)


def test_moments_without_their_format():
    tx, params = adam_jax.adam(1e-3), jnp.ones(3)
    first, *rest = tx.init(params)
    bare = first._replace(mu_format=None)
    with pytest.raises(ValueError, match="has no mu_format, which tells how to read"):
        tx.update(params, (bare, *rest), params)


def test_formats_that_return_something_else():
    class Wrong(adam_jax.Format):
        reader = adam_jax.Dense

        def init(self, x, signed):
            return x

        def encode(self, x, old, noise):
            return adam_jax.Stored(x.astype("bfloat16"), adam_jax.Dense())

    class Drifting(Wrong):
        def init(self, x, signed):
            return adam_jax.Stored(x, adam_jax.Dense())

    params = jnp.ones(3)
    with pytest.raises(
        TypeError, match="Wrong must return a Stored whose format is it"
    ):
        adam_jax.adam(1e-3, nu_dtype=Wrong()).init(params)
    tx = adam_jax.adam(1e-3, nu_dtype=Drifting())
    with pytest.raises(TypeError, match=r"held float32.3., it returned bfloat16.3."):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("seed", [2**32 - 1, np.int64(2**31)])
def test_seeds_of_32_bits(seed):
    tx = adam_jax.round_to_params(
        adam_jax.adam(1e-3, nu_dtype=adam_jax.dense("bfloat16", seed)), seed=seed
    )
    params = jnp.ones(3, jnp.bfloat16)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jnp.isfinite(updates).all()


def test_masks_that_optax_takes():
    """A tree that can be called; and what tree.map_params asks with."""
    model = eqx.filter(eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)), eqx.is_array)
    mask = jax.tree.map(lambda p: p.ndim > 1, model)
    assert callable(mask)
    for tx in (
        adam_jax.adamw(1e-3, mask=mask),
        adam_jax.packed(functools.partial(adam_jax.adamw, 1e-3), mask=mask),
    ):
        tx.update(model, tx.init(model), model)
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    for mask in ({"w": True, "b": False}, lambda p: {k: k == "w" for k in p}):
        tx = adam_jax.adamw(1e-3, mask=mask)
        mapped = optax.tree.map_params(tx, lambda x: x + 1, tx.init(params))
        np.testing.assert_array_equal(optax.tree.get(mapped, "nu")["w"], 1.0)


@dataclasses.dataclass
class Layer:
    """A class that is no pytree."""

    w: jax.Array


WRAPPERS = {
    "adamw": lambda tx: tx,
    "packed": adam_jax.packed,
    "record": adam_jax.record,
    "skip_nonfinite": adam_jax.skip_nonfinite,
    "skip_spikes": adam_jax.skip_spikes,
    "round_to_params": adam_jax.round_to_params,
    "compensate_params": adam_jax.compensate_params,
    "checked": adam_jax.checked,
}


@pytest.mark.parametrize("leaf", ["relu", "float32", jnp.float32, Layer(jnp.ones(2))])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_leaves_that_are_no_arrays(wrap, leaf):
    tx = wrap(adam_jax.adamw(1e-3))
    bad, good = {"w": jnp.ones(2), "x": leaf}, {"w": jnp.ones(2), "x": jnp.ones(2)}
    state, found = tx.init(good), type(leaf).__name__
    message = rf"\['x'\] is a.? {found}, not an array of numbers: keep it out"
    with pytest.raises(TypeError, match=f"^params{message}"):
        tx.init(bad)
    for arguments in ((bad, state, good), (good, state, bad)):
        with pytest.raises(TypeError, match=message):
            tx.update(*arguments)
    with pytest.raises(TypeError, match=f"^grads{message}"):
        adam_jax.fused.step(tx)(good, bad, state)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_arguments_in_another_order(wrap):
    tx = wrap(adam_jax.adamw(1e-3))
    params, grads = ({"w": jnp.ones(2), "b": jnp.ones(3)} for _ in range(2))
    state, step = tx.init(params), jax.jit(adam_jax.fused.step(tx))
    for arguments in ((grads, params, state), (state, grads, params)):
        with pytest.raises(
            TypeError, match=r"a dict .*update takes grads, state, params"
        ):
            tx.update(*arguments)
    for arguments in ((grads, state, params), (state, params, grads)):
        with pytest.raises(
            TypeError, match=r"^fused.step\(tx\) takes \(params, grads, s"
        ):
            step(*arguments)


@pytest.mark.parametrize("state", [None, (), (jnp.ones(2), jnp.ones(3)), {}])
def test_no_state(state):
    params = (jnp.ones(2), jnp.ones(3))
    for tx in (adam_jax.adam(1e-3), adam_jax.skip_nonfinite(adam_jax.adam(1e-3))):
        with pytest.raises(
            TypeError, match=r"was given .* for its state.* another order"
        ):
            tx.update(params, state, params)


def test_a_step_of_optax_in_the_order_of_update():
    params = {"w": jnp.ones(2)}
    for tx in (optax.sgd(1e-3), optax.adam(1e-3)):
        with pytest.raises(TypeError, match="call it with the state last"):
            adam_jax.fused.step(tx)(params, tx.init(params), params)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "checked"][1:])
def test_a_wrapper_put_on_or_taken_off_in_mid_run(name):
    """The cure that the message names is one."""
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    adamw = adam_jax.adamw(1e-3)
    _, state = adamw.update(params, adamw.init(params), params)
    tx = WRAPPERS[name](adamw)
    cure = "" if name == "packed" else rf".*if only {name}\(\) is new, go on from tx.in"
    with pytest.raises(TypeError, match=f"^{name}.. was given a tuple for its{cure}"):
        tx.update(params, state, params)
    wrapped = tx.init(params)
    if name != "packed":
        wrapped = wrapped._replace(inner_state=state)
    _, wrapped = tx.update(params, wrapped, params)
    cure = "adam_jax.unpack" if name == "packed" else "state.inner_state"
    with pytest.raises(TypeError, match=f"another optimizer: .*go on from {cure}"):
        adamw.update(params, wrapped, params)
    bare = adam_jax.unpack(wrapped) if name == "packed" else wrapped.inner_state
    _, bare = adamw.update(params, bare, params)
    assert bare[0].count == (2 if name == "packed" else 3)


def test_residuals_of_other_params():
    tx = adam_jax.compensate_params()
    half = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3)}
    state = tx.init(half)
    for params, message in [
        ({"w": half["w"]}, r"\['b'\] is missing"),
        ({**half, "x": jnp.ones(2)}, r"\['x'\] is not in the residual"),
        (
            {**half, "w": jnp.ones(4, jnp.bfloat16)},
            r"\['w'\] has shape \(4,\), not \(2",
        ),
    ]:
        with pytest.raises(AssertionError, match=f"^params do not fit .*: {message}"):
            tx.update(params, state, params)


def test_casting_updates_unlike_params():
    tx = adam_jax.cast_to_params()
    for params in ({"w": jnp.ones(3)}, {"x": jnp.ones(2)}):
        with pytest.raises(AssertionError, match=r"^updates do not fit params"):
            tx.update({"w": jnp.ones(2)}, optax.EmptyState(), params)


def test_packed_takes_an_optimizer_or_with_a_mask_a_function():
    adam, mask = adam_jax.adam(1e-3), {"w": True}
    for tx, chosen in (("adamw", None), ("adamw", mask), (adam, mask), (None, None)):
        with pytest.raises(
            ValueError, match=r"^packed\(tx\) takes an .* Got ('adamw'|a Gr|None)"
        ):
            adam_jax.packed(tx, mask=chosen)
    with pytest.raises(TypeError, match=r"^packed\(\) takes an optimizer, got None"):
        adam_jax.packed(lambda mask: None, mask=mask).init({"w": jnp.ones(2)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, s: adam_jax.measure(s, f), "^figures must be a dict .* got a Step"),
        (lambda f, s: adam_jax.measure([*f], s), r"^figures must be .* got \['norm'\]"),
        (
            lambda f, s: adam_jax.measure(f, {"grads": s.grads}),
            "takes a Step, .* a dict",
        ),
        (
            lambda f, s: adam_jax.measure(f, s._replace(moments=[optax.EmptyState()])),
            "that read_moments.state. returns, got an EmptyState",
        ),
        (
            lambda f, s: adam_jax.measure({"x": lambda leaf: leaf.grad}, s),
            "^figures must be a dict from names to Figures, .* got <function",
        ),
        (
            lambda f, s: adam_jax.measure({"x": f["norm"]._replace(sums=_grad)}, s),
            "^the sums of the figure 'x' must be a tuple of arrays .* got shape",
        ),
        (
            lambda f, s: adam_jax.measure({"x": f["norm"]._replace(read=_sums)}, s),
            r"^the figure 'x' must read a scalar or shape \(5,\) .* got shape \(1,\)",
        ),
        (
            lambda f, s: adam_jax.record(None, {"x": "update_norm"}),
            "^figures must be a dict from names to Figures, .* got 'update_norm'",
        ),
        (lambda f, s: adam_jax.record(None, 3), "^figures must be a sequence of names"),
        (lambda f, s: adam_jax.record(None, bound=None), "^bound must be a number"),
        (lambda f, s: adam_jax.step_bound(lambda t: 0.9, 0.9), "^b1 .* not a schedule"),
    ],
)
def test_figures_of_other_kinds(call, message):
    figures = {"norm": adam_jax.FIGURES["gradient_norm"]}
    with pytest.raises((TypeError, ValueError), match=message):
        call(figures, adam_jax.Step(grads={"w": jnp.ones(2), "b": jnp.ones(3)}))


def _grad(leaf):
    return leaf.grad


def _sums(sums, leaf):
    return sums


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones(2)}, r"\['b'\] is missing"),
        ({"w": jnp.ones(4), "b": jnp.ones(3)}, r"\['w'\] has shape \(4,\), not \(2,\)"),
    ],
)
def test_a_step_of_trees_that_differ(params, message):
    grads = {"w": jnp.ones(2), "b": jnp.ones(3)}
    step = adam_jax.Step(grads=grads, updates=grads, params=params)
    with pytest.raises(AssertionError, match=f"^params do not fit grads: {message}"):
        adam_jax.measure({"x": adam_jax.FIGURES["update_ratio"]}, step)


def test_values_of_a_traced_state():
    tx = adam_jax.record(adam_jax.skip_nonfinite(adam_jax.adam(1e-3)), ["nonfinite"])
    params = jnp.ones(2)
    state = tx.init(params)
    for read in (
        lambda state: adam_jax.named_figures(state, params),
        lambda state: adam_jax.first_nonfinite(state, params),
        lambda state: adam_jax.check_skips(state, 3),
    ):
        read(state)
        with pytest.raises(TypeError, match=r"of a traced state .* outside of jax.jit"):
            jax.jit(read)(state)
    with pytest.raises(TypeError, match="takes a number of steps, got a RecordState"):
        adam_jax.check_skips(3, state)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones((3, 2))}, r"\['w'\] has shape \(3, 2\), its moment \(2, 3\)"),
        ({"w": {"x": jnp.ones((2, 3))}}, r"\['w'\] is a dict, not an array"),
        ({"x": jnp.ones((2, 3))}, r"\['w'\] is not in them"),
    ],
)
def test_reading_states_of_other_params(params, message):
    tx = adam_jax.rmsprop(1e-3, nu_dtype=adam_jax.mean_over())
    if "shape" in message:  # a mean fits any shape
        tx = adam_jax.adam(1e-3, nu_dtype=adam_jax.mean_over())
    state = tx.init({"w": jnp.ones((2, 3))})
    message = f"^params do not fit the state: {message}.*Pass the parameters"
    with pytest.raises(ValueError, match=message):
        adam_jax.load_moments(state, params)
    with pytest.raises(ValueError, match=message):
        adam_jax.convert_state(state, nu_dtype="float32", params=params)


def test_accumulators_and_moments_of_other_kinds():
    for hyperparams, add in ((["decay"], max), (0.9, max), ({}, 0.9)):
        with pytest.raises(TypeError, match=r"^an Accumulator takes a dict of hyper"):
            Accumulator(hyperparams, add)
    for accumulator, format in ((0.9, adam_jax.dense()), (ema(0.9), "8bit")):
        with pytest.raises(
            TypeError, match=r"^a Moment takes an Accumulator and a Form"
        ):
            adam_jax.Moment(accumulator, format, 1, "m", "m_dtype")


class Model(nnx.Module):
    """One parameter."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones(3))


def test_training_states_of_other_kinds():
    model, tx = Model(), adam_jax.adamw(1e-3)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda model: model.w[...].sum())(model)
    for arguments in (
        (model, optimizer, grads),
        (optimizer, grads, model),
        (grads, model, optimizer),
        (tx, model, grads),
    ):
        with pytest.raises(
            TypeError, match=r"^fused.update_model\(optimizer, model, gr"
        ):
            adam_jax.fused.update_model(*arguments)
    np.testing.assert_array_equal(grads["w"][...], 1.0)  # no step was taken
    for state in (model, optimizer, {"w": jnp.ones(3)}):
        with pytest.raises(TypeError, match="takes a TrainState first, got a"):
            adam_jax.fused.apply_gradients(state, grads)
