"""The GPU's kernel, interpreted on CPU, beside the chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interpreted import EXACT, half, interpret, update_and_apply

import adam_jax
from adam_jax import eight_bit, fused
from adam_jax.fused.gpu import triton

# Whole blocks; short last blocks of stacked layers; blocks of 25, in one row; one axis.
SHAPES = [(8, 64), (2, 3, 70), (1, 50), (130,)]
CODED = {"mu_dtype": eight_bit(min_size=16), "nu_dtype": eight_bit(min_size=16)}
PLAIN = {"weight_decay": 0.01}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Let the CPU interpret the kernel; give the leaves that it has stepped."""
    return interpret(triton, monkeypatch)


def draw(step, dtype, shapes=SHAPES, decades=6):
    rng = np.random.default_rng(step)
    return [
        jnp.asarray(rng.normal(size=s) * 10 ** rng.uniform(-decades, 1, s), dtype)
        for s in shapes
    ]


def assert_same(tx, dtype, interpreted, rtol, codes, steps=3, shapes=SHAPES):
    """Compare the codes, all but a share of them, and parameters."""
    params = [x + 1 for x in draw(99, dtype, shapes, decades=0)]
    state = tx.init(params)
    expect = jax.jit(functools.partial(update_and_apply, tx))
    step = jax.jit(fused.step(tx))
    for number in range(steps):
        grads = draw(number, dtype, shapes)
        moved, after = step(params, grads, state)
        landed, expected = expect(params, grads, state)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, expected)
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True)
        for x, y in pairs:
            if x.dtype in ("int8", "uint8", "bfloat16"):
                different = np.float32(x) != np.float32(y)
                assert different.sum() <= codes * x.size
            else:
                np.testing.assert_allclose(x, y, rtol=1e-6)
        for x, y in zip(moved, landed, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=rtol)
        params, state = landed, expected
    assert {group.place for group in interpreted} == set(range(len(shapes)))


@pytest.mark.parametrize(
    ("rounds", "dtype", "nesterov"),
    [
        (False, "float32", False),
        (False, "float32", True),
        (False, "bfloat16", False),
        (True, "bfloat16", False),
    ],
)
def test_every_code_where_products_are_exact(rounds, dtype, nesterov, interpreted):
    wrap = adam_jax.round_to_params if rounds else lambda tx: tx
    tx = wrap(adam_jax.adamw(2.0**-7, nesterov=nesterov, **EXACT, **CODED))
    # Where XLA rounds otherwise in a quotient or root, a bfloat16 may go the other way.
    rtol = 1e-6 if dtype == "float32" else 2.0**-7
    assert_same(tx, jnp.dtype(dtype), interpreted, rtol, codes=0)


@pytest.mark.parametrize(
    "formats",
    [
        CODED,
        {"mu_dtype": "bfloat16", "nu_dtype": eight_bit(min_size=16)},
        {"mu_dtype": eight_bit(min_size=16), "nu_dtype": None},
        {k: eight_bit(block=12, min_size=16, seed=5) for k in CODED},
    ],
)
def test_other_formats_and_rates(formats, interpreted):
    """XLA may contract products and sums: then a few values go the other way."""
    tx = adam_jax.adamw(1e-2, **PLAIN, **formats)
    assert_same(tx, jnp.float32, interpreted, 1e-3, codes=0.02)


def test_without_weights_or_decay(interpreted):
    tx = optax.chain(
        adam_jax.scale_by_moments(half, half, **CODED),
        adam_jax.precondition(eps=1e-3, eps_root=1e-4),
        adam_jax.scale_by_lr(1e-2),
    )
    assert_same(tx, jnp.float32, interpreted, 1e-6, codes=0)


def test_infinities_and_nan_show_in_their_block(interpreted):
    tx = adam_jax.adamw(1e-2, **EXACT, **CODED)
    params = jnp.ones((4, 64))
    grads = params.at[0, 3].set(jnp.inf).at[1, 40].set(jnp.nan)
    step, expect = fused.step(tx), functools.partial(update_and_apply, tx)
    _, state = jax.jit(step)(params, grads, tx.init(params))
    _, expected = jax.jit(expect)(params, grads, tx.init(params))
    assert interpreted and jnp.isnan(adam_jax.load_moments(state)[1]).sum() == 64
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_other_leaves_go_through_xla(interpreted):
    """Small ones, what shares a buffer, blocks of two sizes, moments without codes."""
    params = {"w": jnp.ones((2, 2048)), "b": jnp.ones(7)}
    for tx, taken in (
        (adam_jax.adamw(1e-2, **CODED), 1),
        (adam_jax.adamw(1e-2, mu_dtype="bfloat16"), 0),
        (adam_jax.packed(adam_jax.adamw(1e-2)), 0),
        (adam_jax.adamw(1e-2, **CODED | {"mu_dtype": eight_bit(16, 16)}), 0),
        (adam_jax.adamw(1e-2, **{k: eight_bit(2048, 16) for k in CODED}), 0),
    ):
        interpreted.clear()
        moved, _ = fused.step(tx)(params, params, tx.init(params))
        assert len(interpreted) == taken
        landed, _ = update_and_apply(tx, params, params, tx.init(params))
        np.testing.assert_allclose(moved["b"], landed["b"], rtol=1e-6)


def test_leaves_of_one_call_that_are_not_all_taken(interpreted):
    """Blocks of two sizes, where the last axis does not make them one."""
    params = {"even": jnp.ones((8, 16)), "not": jnp.ones((8, 128))}
    formats = {"mu_dtype": eight_bit(32, 16), "nu_dtype": eight_bit(64, 16)}
    tx = adam_jax.adamw(2.0**-7, **EXACT, **formats)
    _, state = fused.step(tx)(params, params, tx.init(params))
    assert [group.mu.shape for group in interpreted] == [(8, 16)]
    expected = update_and_apply(tx, params, params, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, state, expected[1])
