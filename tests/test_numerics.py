"""Arithmetic on single arrays, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax import numerics, placement, randomness

DECAYS = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999]


def exact_weight(decay, counts):
    return -np.expm1(counts * np.log(decay)) if decay else np.ones_like(counts)


@pytest.mark.parametrize("decay", DECAYS)
def test_constant_weight_is_accurate_in_float32(decay):
    counts = np.arange(1, 20001)
    weights = jax.jit(lambda t: numerics.constant_weight(decay, t, "float32"))(counts)
    error = np.max(np.abs(weights / exact_weight(decay, counts.astype(float)) - 1))
    naive = np.max(
        np.abs(
            (1 - np.float32(decay) ** counts.astype(np.float32))
            / exact_weight(decay, counts.astype(float))
            - 1
        )
    )
    print(f"decay {decay}: relative error {error:.0e}, 1 - decay**t {naive:.0e}")
    # Two roundings in t * log(decay), 6e-8 each, and 4 of them in XLA's expm1.
    assert error < 4e-7


def test_a_weight_before_the_first_step():
    for decay in DECAYS:
        assert numerics.constant_weight(decay, 0, "float32") == 0


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999, 0.999999])
def test_no_length_is_computed_through_an_infinity(decay):
    """Not at decay 0, nor at steps whose exponential overflows."""
    for as_given in (float, jnp.float32):
        with jax.debug_infs(True), jax.debug_nans(True):
            for count in (1, 5, 1000, 10**8):
                above = numerics.sma_length_above(as_given(decay), count, 4, "float32")
                assert above >= -3 - 1e-5
    late = numerics.sma_length_above(decay, 10**9, 4, "float32")
    np.testing.assert_allclose(late, 2 / (1 - decay) - 5, rtol=1e-6)


@pytest.mark.parametrize("decay", DECAYS)
def test_running_weight_is_accurate_in_float32(decay):
    decay = np.float32(decay)

    def step(pair, _):
        pair = numerics.running_weight(pair, jnp.float32(decay))
        return pair, pair[0]

    scan = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(2), None, 20000)[1])
    expected = exact_weight(np.float64(decay), np.arange(1, 20001.0))
    # The rounding of each increment, 6e-8 of it, and that of the sum.
    np.testing.assert_allclose(scan(), expected, rtol=2e-7)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 2.0**60), ("float64", 2.0**508)]
)
def test_bound(dtype, limit):
    with jax.enable_x64(True):
        inside = jnp.array([0, 1, -limit, limit / 2], dtype)
        assert (numerics.bound(inside) == inside).all()
        outside = numerics.bound(jnp.array([-8 * limit, 8 * limit], dtype))
        assert (outside == jnp.array([-limit, limit], dtype)).all()
        poisoned = numerics.bound(jnp.array([jnp.inf, -jnp.inf, jnp.nan], dtype))
        assert jnp.isinf(poisoned[:2]).all() and jnp.isnan(poisoned[2])


def test_bound_keeps_the_phase_of_complex_numbers():
    x = numerics.bound(jnp.array([3e30 + 4e30j, 1 + 1j, jnp.inf + 0j]))
    np.testing.assert_allclose(x[0], 2.0**60 * (0.6 + 0.8j), rtol=1e-6)
    assert x[1] == 1 + 1j and jnp.isinf(x[2].real)


def test_the_slope_of_a_reciprocal_root_is_finite():
    """Of 1e-30 too, as where Adafactor has seen no gradient: x^-1.5 would overflow."""
    slope = jax.grad(lambda x, g: g * numerics.rsqrt_or_zero(x + g * g))
    assert jnp.isfinite(slope(jnp.float32(0), jnp.float32(0)))
    assert jnp.isfinite(slope(jnp.float32(1e-30), jnp.float32(0)))
    np.testing.assert_allclose(slope(jnp.float32(3), jnp.float32(1)), -1 / 16)


def test_sqrt_and_division_at_zero():
    def ratio(x, y):
        return numerics.divide_or_zero(x, numerics.sqrt(y))

    assert ratio(jnp.float32(0), jnp.float32(0)) == 0
    gradient = jax.grad(ratio, (0, 1))(jnp.float32(1), jnp.float32(0))
    assert jnp.isfinite(jnp.array(gradient)).all()
    assert jnp.isnan(ratio(jnp.float32(1), jnp.float32(jnp.nan)))
    slope = jax.grad(numerics.sqrt)
    for order, at_four in [(slope, 1 / 4), (jax.grad(slope), -1 / 32)]:
        assert (order(jnp.float32(4)), order(jnp.float32(0))) == (at_four, 0)
    np.testing.assert_allclose(numerics.divide(jnp.array([4 + 2j]), 2.0), [2 + 1j])


def test_dtypes_without_x64():
    assert numerics.compute_dtype("float64") == "float32"
    assert numerics.dtype_of(np.float64(1)) == "float32"
    assert numerics.dtype_of(True) == "bool"
    assert numerics.real_dtype("complex64") == "float32"
    assert numerics.cast(jnp.array([1 + 2j]), "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_a_traced_constant_depends_on_nothing_but_the_shape(dtype):
    x = jnp.array([0, -0.0, jnp.inf, -jnp.inf, jnp.nan, 3], dtype)
    full = jax.jit(lambda x: numerics.full_like(x, 0.25, "float32"))
    np.testing.assert_array_equal(full(x), np.full(6, 0.25, np.float32))
    if dtype == "float32":
        slope = jax.grad(lambda x: numerics.full_like(x, 0.25, dtype).sum())(x)
        np.testing.assert_array_equal(slope, 0)


def test_random_bits_of_more_than_2_32_elements():
    """Stacked layers, of which only a few elements are computed."""
    corner = jax.jit(
        lambda: randomness.random_bits((3, 2**16, 2**16), (1, 2))[:, :: 2**15, 5:9]
    )
    bits = np.asarray(corner())
    assert len(np.unique(bits)) == bits.size
    flat = jax.jit(lambda: randomness.random_bits((2**16, 2**16), (1, 2))[:2, :3])
    small = jax.jit(lambda: randomness.random_bits((2, 2**16), (1, 2))[:, :3])
    np.testing.assert_array_equal(flat(), small())  # up to there, as it always was


@pytest.mark.parametrize("cut", [(("x",), (), ()), ((), ("x",), ()), ((), (), ("x",))])
def test_pieces_of_more_than_2_32_elements_draw_the_bits_of_the_whole(cut):
    """XLA makes those that are looked at alone."""
    whole = (2, 2**17, 2**16)
    piece = tuple(n // 2 if names else n for n, names in zip(whole, cut, strict=True))

    def look(bits):
        return bits[:, :: 2**15, :: 2**14]

    def draw():
        like = jax.ShapeDtypeStruct(piece, "float32")
        with placement.in_pieces({(): cut}):
            bits = placement.at_leaf((), randomness.random_bits, piece, (1, 2), like)
        return look(bits)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    spec = jax.P(*[names or None for names in cut])
    found = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=(), out_specs=spec))()
    expected = jax.jit(lambda: look(randomness.random_bits(whole, (1, 2))))()
    np.testing.assert_array_equal(found, expected)


def test_of_every_word_the_lowest_32_bits_count():
    expected = randomness.random_bits((3,), (1, jnp.int32(2), 2**32 - 3, 4))
    bits = randomness.random_bits((3,), (1, jnp.int32(2), -3, 2**32 + 4))
    np.testing.assert_array_equal(bits, expected)


def test_random_bits_are_made_where_they_are_used():
    """On explicit axes each device makes its own, the same as without them."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P(None, "x"))
    x = jax.device_put(jnp.zeros((3, 16), "uint32"), sharding)
    draw = jax.jit(lambda x: x + randomness.random_bits(x.shape, (1, 2), x))
    bits = draw(x)
    assert bits.sharding.is_equivalent_to(sharding, 2)
    assert "u32[3,16]" not in draw.lower(x).compile().as_text()
    np.testing.assert_array_equal(bits, randomness.random_bits((3, 16), (1, 2)))
