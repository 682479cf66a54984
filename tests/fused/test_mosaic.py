"""The TPU's kernel, interpreted on CPU, beside the chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interpreted import EXACT, half, interpret, update_and_apply

import adam_jax
from adam_jax import eight_bit, fused
from adam_jax.fused import dispatch, stepping
from adam_jax.fused.kernels import Counts, Group, Options, Scalars, Seeds
from adam_jax.fused.tpu import mosaic
from adam_jax.moments.blocks import encode_blocks
from adam_jax.randomness import hash_index, hash_words

# Several programs both ways, of rows and columns that they do not fill, the last block
# cut short; stacked convolutions; a row.
SHAPES = [(70, 4196), (2, 3, 40, 64), (1, 287)]
EIGHT_BIT = eight_bit(min_size=16)
CODED = {"mu_dtype": EIGHT_BIT, "nu_dtype": EIGHT_BIT}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Let the CPU interpret the kernel; give the leaves that it has stepped."""
    return interpret(mosaic, monkeypatch)


def draw(step, dtype, shapes, decades=8):
    rng = np.random.default_rng(step)
    return [
        jnp.asarray(rng.normal(size=s) * 10 ** rng.uniform(1 - decades, 1, s), dtype)
        for s in shapes
    ]


def assert_same(tx, dtype, shapes, interpreted, exact=True, rtol=1e-6):
    """Compare two steps; of moments every bit, if arithmetic is exact."""
    params = [x + 1 for x in draw(99, dtype, shapes, decades=1)]
    state = tx.init(params)
    expect = jax.jit(functools.partial(update_and_apply, tx))
    step = jax.jit(fused.step(tx))
    for number in range(2):
        grads = draw(number, dtype, shapes)
        grads[0] = grads[0].at[0, :7].set(0)
        moved, after = step(params, grads, state)
        landed, expected = expect(params, grads, state)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, expected)
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True)
        for x, y in pairs:
            different = np.float32(x) != np.float32(y)
            assert different.sum() <= (0 if exact or x.ndim == 0 else 0.01 * x.size)
        for x, y in zip(moved, landed, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(
                np.float32(x), np.float32(y), rtol=rtol, atol=rtol
            )
        params, state = landed, expected
    assert [group.mu.shape for group in interpreted] == list(shapes)


@pytest.mark.parametrize(
    ("dtype", "rounds", "nesterov", "shapes"),
    [
        ("float32", False, False, SHAPES),
        ("bfloat16", True, False, SHAPES[1:]),
        ("bfloat16", False, True, SHAPES[1:]),
    ],
)
def test_every_code_where_products_are_exact(
    dtype, rounds, nesterov, shapes, interpreted
):
    wrap = adam_jax.round_to_params if rounds else lambda tx: tx
    tx = wrap(adam_jax.adamw(2.0**-7, nesterov=nesterov, **EXACT, **CODED))
    # Where a quotient or root is rounded otherwise, a bfloat16 may go the other way.
    rtol = 1e-6 if dtype == "float32" else 2.0**-7
    assert_same(tx, jnp.dtype(dtype), shapes, interpreted, rtol=rtol)


@pytest.mark.parametrize("block", [8, 16, 64, 128])
def test_blocks_of_other_sizes(block, interpreted):
    formats = {name: eight_bit(block, 16, seed=5) for name in CODED}
    tx = adam_jax.adamw(2.0**-7, **EXACT, **formats)
    columns = (130 if block < 32 else 5) * block - 1
    assert_same(tx, jnp.float32, [(5, columns)], interpreted)


@pytest.mark.parametrize("dense", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CODED)
def test_one_moment_that_is_not_coded(name, dense, interpreted):
    tx = adam_jax.adamw(2.0**-7, **EXACT, **CODED | {name: dense})
    assert_same(tx, jnp.float32, [(3, 1151)], interpreted)


def test_other_rates(interpreted):
    """XLA may contract products and sums: then a few values go the other way."""
    tx = adam_jax.adamw(1e-2, weight_decay=0.01, **CODED)
    assert_same(tx, jnp.float32, SHAPES[1:2], interpreted, exact=False, rtol=1e-3)


def test_without_weights_or_decay(interpreted):
    tx = optax.chain(
        adam_jax.scale_by_moments(half, half, **CODED),
        adam_jax.precondition(eps=0.0, eps_root=1e-4),
        adam_jax.scale_by_lr(1e-2),
    )
    assert_same(tx, jnp.float32, SHAPES[1:2], interpreted)


def test_zero_over_zero_is_zero(interpreted):
    tx = adam_jax.adamw(1e-2, eps=0.0, **CODED)
    params, grads = jnp.ones((4, 64)), jnp.zeros((4, 64)).at[0, 0].set(1e-30)
    moved, _ = jax.jit(fused.step(tx))(params, grads, tx.init(params))
    landed, _ = update_and_apply(tx, params, grads, tx.init(params))
    assert interpreted
    np.testing.assert_allclose(moved, landed, rtol=1e-6)


def test_infinities_and_nan_show_in_their_block(interpreted):
    tx = adam_jax.adamw(1e-2, **EXACT, **CODED)
    params = jnp.ones((4, 64))
    grads = params.at[0, 3].set(jnp.inf).at[1, 40].set(jnp.nan).at[2, 0].set(-jnp.inf)
    grads = grads.at[3, 0].set(-jnp.nan).at[3, 40].set(3e38)
    step = jax.jit(fused.step(tx))
    expect = jax.jit(functools.partial(update_and_apply, tx))
    state = tx.init(params)
    for _ in range(2):
        moved, after = step(params, grads, state)
        landed, expected = expect(params, grads, state)
        np.testing.assert_allclose(moved, landed, rtol=1e-6)
        pairs = [adam_jax.load_moments(x) for x in (after, expected)]
        jax.tree.map(np.testing.assert_array_equal, *pairs)
        state = after
    assert interpreted and jnp.isnan(pairs[0][1]).sum() == 4 * 32


def test_positions_beyond_two_to_the_31(monkeypatch):
    """As if a leaf of 3 * 2^30 elements ended with this layer."""
    shape, before = (32, 64), 3 * 2**30 - 2048
    program_id = mosaic.pl.program_id

    def late(axis):
        return program_id(axis) + (before // 2048 if axis == 0 else 0)

    monkeypatch.setattr(mosaic.pl, "program_id", late)
    start = EIGHT_BIT.init(jnp.zeros(shape), signed=True)
    [grad] = draw(0, jnp.float32, [shape])
    group = Group(
        *(3, [3], [grad], [grad], start.values, abs(grad)),
        mu_exponents=start.format.exponents,
    )
    scalars = Scalars(0.5, 0.5, 0.5, 0.5, 1e-3, 1e-8, 0.0, 0.0, 1.0, 1.0)
    options = Options(False, "nearest", Seeds(mu=7))
    [stepped] = mosaic.step([group], scalars, Counts(4, 4), options, interpret=True)

    def noise(shape):
        index = before + np.arange(2048, dtype=np.uint32).reshape(shape)
        return hash_index(index, hash_words((7, 0, 3, 4)))

    expected = encode_blocks(0.5 * grad, 2, True, noise)
    np.testing.assert_array_equal(stepped.mu, expected.values)


def taken(shape, mu_block=32, nu_block=32, dense=None):
    def exponents(block):
        return jax.ShapeDtypeStruct((*shape[:-1], -(-shape[-1] // block)), jnp.uint8)

    values = jax.ShapeDtypeStruct(shape, jnp.int8)
    found = {"mu_exponents": exponents(mu_block), "nu_exponents": exponents(nu_block)}
    found = {name: x for name, x in found.items() if name not in (dense or ())}
    return mosaic.takes(Group(0, [0], [None], [None], values, values, **found))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((768, 2304), True),
        ((50257, 768), True),  # the last tile of rows is not full
        ((100, 1000), True),  # nor of columns
        ((24, 1024, 4096), True),
        ((3, 3, 512, 512), True),
        ((1, 8192), True),
        ((4096, 32, 128), True),
        ((16, 64), True),
        ((4096, 4, 128), True),
        ((4096,), False),
        ((24, 1, 4096), True),
        ((5, 64), False),  # padded to 8 rows and 128 columns
        ((768, 50257), True),  # laid column by column, and copied
        ((4096, 10), False),  # padded to 128 columns
        ((768, 12, 64), False),
        ((512, 256, 3, 3), False),
        ((64, 50), False),  # blocks of 25
        ((0, 64), False),
    ],
)
def test_which_shapes_are_taken(shape, expected):
    assert taken(shape) == expected


def test_which_formats_are_taken():
    shape = (64, 65536)
    assert not taken(shape, 32, 16)
    assert not taken(shape, dense=("mu_exponents", "nu_exponents"))
    assert taken(shape, dense=("mu_exponents",))
    assert [b for b in (4, 8, 12, 16, 32, 64, 128) if taken(shape, b, b)] == [
        *(8, 16, 32, 64),
    ]
    assert taken((64, 8192), 128, 128)


def test_the_backend_is_pallas(monkeypatch):
    monkeypatch.setattr(stepping, "kernels", dispatch.kernels)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert fused.backend() == "pallas"
