"""Small moments that native code reads and stores: the same bits, where it may."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax.moments.blocks import encode_blocks
from adam_jax.moments.formats import Dense, Stored, dense
from adam_jax.moments.noise import LeafNoise, hash_leaf
from adam_jax.native import calls, library

pytestmark = pytest.mark.skipif(
    not library.available(), reason="the native library was not built"
)

SHAPES = [(5000,), (64, 100), (7, 33, 35), (3, 2000), (1,), (130, 31)]


def without_native_code(function, *args):
    """Return what a function that reads or stores moments returns through XLA alone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls, "SMALL", 0)
        return jax.jit(lambda *args: function(*args))(*args)


def same_bits(function, *args):
    """Assert that native code was called, and that it returns what XLA does."""
    jitted = jax.jit(function)
    assert count_calls(jitted, *args) == 1
    native, composed = jitted(*args), without_native_code(function, *args)
    for x, y in zip(*map(jax.tree.leaves, (native, composed)), strict=True):
        x, y = (np.asarray(array).view(f"u{array.dtype.itemsize}") for array in (x, y))
        np.testing.assert_array_equal(x, y, strict=True)
    return native


def count_calls(function, *args):
    text = jax.jit(function).lower(*args).as_text()
    return len(re.findall(r"@adam_jax_(?:load|store)_moment", text))


def values(shape, signed):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=shape) * np.exp(8 * rng.normal(size=shape)))
    flat = x.reshape(-1)
    if x.size > 1000:
        flat[:200], flat[300], flat[-1] = 0, np.nan, np.inf
    return jnp.asarray(x if signed else np.abs(x))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("block", [32, 7, 1, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_the_same_bit_for_bit(shape, block, order):
    blocks = -(-shape[-1] // block) + (block == 7)  # or one too many

    def store(x, past):
        noise = LeafNoise(hash_leaf(3, 5), past, order, x)
        return encode_blocks(x, blocks, order == 1, noise)

    stored = same_bits(store, values(shape, order == 1), jnp.int32(11))
    same_bits(lambda stored: stored.decode(), stored)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_the_same_bit_for_bit(shape, order):
    def store(x, past):
        noise = LeafNoise(hash_leaf(3, 5), past, order, x)
        old = Stored(jnp.zeros(x.shape, jnp.bfloat16), Dense())
        return dense("bfloat16").encode(x, old, noise).values

    same_bits(store, values(shape, order == 1), jnp.int32(2**31 - 1))


def step_of(format):
    tx = adam_jax.adam(1e-3, mu_dtype=format, nu_dtype=format)

    def step(params, grads):
        return tx.update(grads, tx.init(params), params)

    return step


@pytest.mark.parametrize(("format", "number"), [("bfloat16", 2), ("8bit", 4)])
def test_a_step_calls_it_for_small_leaves(format, number):
    step, small, large = step_of(format), jnp.ones((64, 128)), jnp.ones((64, 129))
    assert count_calls(step, small, small) == number
    assert count_calls(step, large, large) == 0
    assert count_calls(step, [small, large], [small, large]) == number


@pytest.mark.parametrize("format", ["bfloat16", "8bit"])
def test_a_step_goes_through_xla_elsewhere(format):
    step, x = step_of(format), jnp.ones((64, 64))
    one = jax.jit(step)(x, x)
    many = jax.jit(jax.vmap(step))(*2 * [jnp.ones((2, 64, 64))])
    assert count_calls(jax.vmap(step), *2 * [jnp.ones((2, 64, 64))]) == 0
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[1]), one, many)

    mesh = Mesh(np.array(jax.devices()[:2]), "x")
    cut = jax.device_put(x, NamedSharding(mesh, P("x")))
    assert count_calls(step, cut, cut) == 0
    jax.tree.map(np.testing.assert_array_equal, one, jax.jit(step)(cut, cut))

    text = jax.jit(step).trace(x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert "adam_jax" not in text


@pytest.mark.parametrize("format", ["bfloat16", "8bit"])
def test_a_step_can_be_exported(format):
    step, x = step_of(format), jnp.linspace(0, 1, 4096)
    exported = jax.export.export(jax.jit(step))(x, x)
    updates, state = exported.call(x, x)
    expected, after = jax.jit(step)(x, x)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        optax.tree.get(state, "count"), optax.tree.get(after, "count")
    )


@pytest.mark.parametrize("format", ["bfloat16", "8bit"])
def test_a_step_has_a_derivative(format):
    def total(grads):
        updates, _ = step_of(format)(grads, grads)
        return (updates * jnp.arange(4096.0)).sum()

    x = jnp.linspace(0.1, 1, 4096)
    found = jax.jit(jax.grad(total))(x)
    np.testing.assert_array_equal(found, without_native_code(jax.grad(total), x))


U32 = jnp.uint32
WRONG = {
    "codes are F32.4,40., expected int8": lambda: calls.load(
        jnp.zeros((4, 40)), jnp.zeros((4, 2), "uint8")
    ),
    "exponents are U8.3,2., expected the shape of S8.4,40.": lambda: calls.load(
        jnp.zeros((4, 40), "int8"), jnp.zeros((3, 2), "uint8")
    ),
    "exponents are S8.4,2., expected uint8": lambda: calls.load(
        jnp.zeros((4, 40), "int8"), jnp.zeros((4, 2), "int8")
    ),
    "S32.4. is stored as BF16.4., expected F32": lambda: calls.store(
        jnp.zeros(4, "int32"), jnp.zeros(2, U32), 0, 1
    ),
    "with 0 known words": lambda: calls.store(jnp.zeros(4), jnp.zeros(0, U32), 0, 1),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_operands_are_errors(message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(WRONG[message]())


def test_enormous_blocks_are_not_for_it():
    takes = functools.partial(calls.takes, (2**24,))
    assert takes() and takes(2) and not takes(1)
