"""Figures that the native step sums, beside those of `tx.update`."""

import functools
import re

import interpreted
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import FIGURES, Figure, eight_bit, fused, named_figures, record
from adam_jax.native import library

pytestmark = pytest.mark.skipif(
    not library.available(), reason="the native library was not built"
)
RATE = 1e-2
FORMATS = {
    "float32": {},
    "bfloat16": {"mu_dtype": "bfloat16", "nu_dtype": "bfloat16"},
    "8bit": {"mu_dtype": eight_bit(min_size=64), "nu_dtype": eight_bit(min_size=64)},
    "mixed": {"mu_dtype": eight_bit(block=7, min_size=0), "nu_dtype": "bfloat16"},
}
DEFAULT = {name for name in FIGURES if not name.endswith("_quantiles")}
SHAPES = {"w": (5, 70), "b": (7,), "c": (), "none": (3, 0), "v": (3, 30_011)}

reference = jax.jit(interpreted.update_and_apply, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def take(tx, params, grads, state):
    return fused.step(tx)(params, grads, state)


def tree(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()}


def gradients(step, dtype="float32", spoiled=False):
    grads = tree(dtype, step + 1)
    if spoiled:
        v = grads["v"].at[2, 17].set(jnp.nan).at[0, 30_010].set(-jnp.inf)
        grads |= {"v": v, "b": grads["b"].at[0].set(jnp.inf)}
    return grads


def summed(tx, params):
    """Return whether the native step sums, and nothing else reads whole leaves."""
    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(fused.step(tx), donate_argnums=(0, 2))
    text = compiled.lower(params, params, state).compile().as_text()
    large = [
        line for line in text.splitlines() if "[3,30011]" in line and " = " in line
    ]
    made = [re.search(r"\} ([\w-]+)\(", line) for line in large]
    assert {m[1] for m in made if m} <= {
        "parameter",
        "get-tuple-element",
        "custom-call",
    }
    return bool(re.search(r"sums = true", text))


def assert_same_figures(tx, dtype="float32", spoiled=False, steps=3, rtol=1e-5):
    """Let both take steps, each in turn from where the fused one has come."""
    params = tree(dtype)
    state = jax.jit(tx.init)(params)
    for number in range(steps):
        grads = gradients(number, dtype, spoiled and number == steps - 1)
        _, expected = reference(tx, params, grads, state)
        params, state = take(tx, params, grads, state)
        actual = named_figures(state, params)
        expected = named_figures(expected, params)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol, 1e-9, err_msg=name)
    return actual


def guarded(tx, rounds):
    inner = adam_jax.round_to_params(tx) if rounds else tx
    return record(adam_jax.skip_nonfinite(inner), learning_rate=RATE)


@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_figures_of_every_format(name, rounds, spoiled):
    """Where gradients are spoiled, without a guard and with one, which skips."""
    tx = adam_jax.adamw(RATE, **FORMATS[name])
    dtype = "bfloat16" if rounds else "float32"
    wrapped = adam_jax.round_to_params(tx) if rounds else tx
    recorded = record(wrapped, learning_rate=RATE)
    found = assert_same_figures(recorded, dtype, spoiled)
    assert {name for name in found if "/" not in name} == DEFAULT
    assert found["nonfinite"] == 3 * spoiled and found["nonfinite/v"] == 2 * spoiled
    if spoiled:
        found = assert_same_figures(guarded(tx, rounds), dtype, spoiled)
        assert found["nonfinite"] == 3 and found["update_norm"] == 0


def test_bfloat16_parameters_that_are_rounded_to_nearest():
    """Few updates round by a last place as XLA contracts products in another way."""
    tx = record(adam_jax.adamw(1e-4), learning_rate=1e-4)
    assert assert_same_figures(tx, "bfloat16", rtol=2e-4)["swallowed"] > 0.1


def injected():
    make = optax.inject_hyperparams(lambda rate: record(adam_jax.adam(rate)))
    return make(rate=RATE)


PLACES = {
    "alone": lambda: record(adam_jax.adamw(RATE), learning_rate=RATE, bound=0.5),
    "nadam": lambda: record(adam_jax.nadam(RATE)),
    "uncorrected": lambda: record(
        optax.chain(
            adam_jax.scale_by_moments(),
            adam_jax.precondition(),
            adam_jax.scale_by_lr(RATE),
        )
    ),
    "a rate of 0": lambda: record(adam_jax.adam(0.0), learning_rate=0.0),
    "a schedule": lambda: record(
        adam_jax.adam(lambda n: RATE / (1 + n)), learning_rate=lambda n: RATE / (1 + n)
    ),
    "injected": injected,
    "beside a chain": lambda: optax.chain(
        record(adam_jax.adam(RATE)), optax.identity()
    ),
    "packed": lambda: record(adam_jax.packed(adam_jax.adam(RATE))),
    "a guard": lambda: record(adam_jax.skip_spikes(adam_jax.adam(RATE), warmup=1)),
    "one figure": lambda: record(adam_jax.adam(RATE), ["update_ratio"]),
}


@pytest.mark.parametrize("name", PLACES)
def test_figures_wherever_the_step_is_native(name):
    tx = PLACES[name]()
    if name not in ("packed", "a guard"):  # which read gradients, or concatenate them
        assert summed(tx, tree())
    assert_same_figures(tx)


OTHERS = {
    "clipped": lambda: record(
        optax.chain(optax.clip_by_global_norm(1.0), adam_jax.adam(RATE))
    ),
    "quantiles": lambda: record(adam_jax.adam(RATE), [*FIGURES], learning_rate=RATE),
    "one's own": lambda: record(
        adam_jax.adam(RATE),
        {
            "size": Figure(lambda leaf: (jnp.abs(leaf.grad),), lambda sums, _: sums[0]),
            "norm": FIGURES["update_norm"],
        },
    ),
    "a guard around": lambda: adam_jax.skip_nonfinite(record(adam_jax.adam(RATE))),
    "several": lambda: optax.multi_transform(
        {"a": record(adam_jax.adam(RATE)), "b": adam_jax.sgd(RATE)},
        {"w": "a", "b": "a", "c": "b", "none": "b", "v": "a"},
    ),
    "sgd beside": lambda: record(
        optax.multi_transform(
            {"a": adam_jax.adam(RATE), "b": adam_jax.sgd(RATE)},
            {"w": "a", "b": "a", "c": "b", "none": "b", "v": "a"},
        )
    ),
    "two adams": lambda: record(
        optax.multi_transform(
            {"a": adam_jax.adam(RATE), "b": adam_jax.adam(RATE, b2=0.9)},
            {"w": "a", "b": "a", "c": "b", "none": "b", "v": "a"},
        )
    ),
    "a record around another": lambda: record(
        record(adam_jax.adam(RATE), ["update_norm"]), ["gradient_norm"]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_figures_that_the_native_step_does_not_sum_or_not_all(name):
    tx = OTHERS[name]()
    if name in ("several", "a record around another"):
        params = tree()
        expected = reference(tx, params, gradients(0), tx.init(params))[1]
        actual = take(tx, params, gradients(0), tx.init(params))[1]
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)
        jax.tree.map(compare, actual, expected)
    else:
        assert_same_figures(tx)


def test_a_recorded_step_is_the_step():
    """Every bit of it, whether it is measured or not."""
    plain = adam_jax.adamw(RATE, mu_dtype="bfloat16", nu_dtype="8bit")
    tx, params = record(plain, every=2), tree()
    state, other = tx.init(params), (params, plain.init(params))
    for number in range(3):
        grads = gradients(number)
        params, state = take(tx, params, grads, state)
        other = take(plain, other[0], grads, other[1])
        jax.tree.map(
            np.testing.assert_array_equal, (params, state.inner_state), (*other,)
        )


@pytest.mark.parametrize("name", ["float32", "8bit"])
def test_every_other_step(name):
    tx = record(adam_jax.adam(RATE, **FORMATS[name]), every=2)
    params = tree()
    assert summed(tx, params)
    state, norms = tx.init(params), []
    for number in range(4):
        params, state = take(tx, params, gradients(number), state)
        norms.append(named_figures(state, params)["update_norm"])
    assert norms[0] == 0 < norms[1] == norms[2] != norms[3]
    assert_same_figures(tx, steps=4)


def test_sums_of_many_elements_are_exact_to_float32():
    """A single float32 would stop growing at 2^24 times what is added to it."""
    size = 2**23 + 1
    params = {"w": jnp.full(size, 1.0), "b": jnp.full(3, 2.0)}
    tx = record(adam_jax.adam(RATE), ["param_norm", "nonfinite"])
    grads = {"w": jnp.full(size, jnp.nan), "b": jnp.zeros(3)}
    _, state = take(tx, params, grads, tx.init(params))
    assert float(state.figures["nonfinite"].total) == size
    norm = float(state.figures["param_norm"].leaves[1])
    np.testing.assert_allclose(norm, np.sqrt(size), rtol=1e-7)


def test_pieces_in_a_shard_map():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    tx = record(adam_jax.adam(RATE), axis_name="x")
    params = {"w": jnp.arange(4096.0).reshape(8, 512), "b": jnp.ones(3)}
    grads = jax.tree.map(lambda p: jnp.cos(p) + 1, params)

    def spec(x):
        return P("x") if jnp.shape(x) == (8, 512) else P()

    def local(params, grads):
        params, state = fused.step(tx)(params, grads, tx.init(params))
        return params, state.figures

    found = jax.eval_shape(lambda p: tx.init(p).figures, params)
    places = jax.tree.map(spec, params)
    cut = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(places, places),
        out_specs=(places, jax.tree.map(lambda _: P(), found)),
    )
    is_native = "sums = true" in jax.jit(cut).lower(params, grads).as_text()
    assert is_native == (jax.__version_info__ >= (0, 10))
    expected = reference(
        tx_alone := record(adam_jax.adam(RATE)), params, grads, tx_alone.init(params)
    )
    actual = jax.jit(cut)(params, grads)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)
    jax.tree.map(compare, actual, (expected[0], expected[1].figures))


def test_figures_of_float32_leaves_where_there_are_wider_numbers():
    with jax.enable_x64(True):
        params = {"w": jnp.linspace(1, 2, 9, dtype="float32")}
        tx = record(adam_jax.adamw(1e-2), learning_rate=1e-2)
        _, state = fused.step(tx)(params, params, tx.init(params))
        _, expected = tx.update(params, tx.init(params), params)
    for name, figure in expected.figures.items():
        found = state.figures[name].total
        np.testing.assert_allclose(found, figure.total, rtol=1e-5, err_msg=name)
