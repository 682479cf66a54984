"""Moments in bfloat16 and in 8-bit blocks: true on average, small, and composable."""

import inspect
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import often, run
from flax import nnx, serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import (
    EightBit,
    Stored,
    convert_state,
    dense,
    eight_bit,
    load_moments,
    numerics,
    randomness,
)
from adam_jax.moments.blocks import decode_values, encode_blocks, encode_values
from adam_jax.moments.noise import LeafNoise, hash_leaf

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from moment_accuracy import measure_format, measure_optax, nearest

EIGHT_BIT = eight_bit(min_size=0)
SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["mu", "nu"])


def noise(seed):
    return lambda shape: randomness.random_bits(shape, [seed])


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("format", "spread"),
    [
        pytest.param(dense("bfloat16"), 0.03, marks=pytest.mark.crossing),
        (EIGHT_BIT, 0.10),
    ],
)
def test_second_moments_are_unbiased_and_tight(format, spread):
    """20,000 gradients whose scales span 1.5 decades inside each block."""
    with jax.enable_x64(True):
        figures = measure_format(format, steps=20_000, window=5_000)
    print(figures)
    assert abs(figures["mean"] - 1) < 0.01
    assert figures["spread"] < spread


def test_the_measure_finds_what_is_wrong():
    with jax.enable_x64(True):
        rounded = measure_format(nearest(EIGHT_BIT), steps=3000, window=500)
        bfloat16 = measure_optax(steps=3000, window=500)
    assert abs(rounded["mean"] - 1) > 0.1 and abs(bfloat16["mean"] - 1) > 0.1


@SIGNED
def test_codes_decode_to_what_they_encode(signed):
    """Every code of every exponent survives decoding and encoding."""
    codes = np.arange(-127, 128) if signed else np.arange(256)
    codes = codes.astype(np.int8 if signed else np.uint8)[:, None]
    # A largest code beside it fixes the exponent of the block.
    codes = np.concatenate([codes, np.full_like(codes, np.iinfo(codes.dtype).max)], 1)
    for exponent in (20, 100, 127, 254):
        exponents = np.full((len(codes), 1), exponent, np.uint8)
        stored = Stored(jnp.asarray(codes), EightBit(jnp.asarray(exponents)))
        again = encode_blocks(stored.decode(), 1, signed, noise(0))
        np.testing.assert_array_equal(again.values, codes)
        np.testing.assert_array_equal(again.format.exponents, exponents)


@SIGNED
def test_rounding_is_unbiased_and_at_most_one_code_off(signed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 64)).astype(np.float32) * 10 ** rng.uniform(-1, 0, (8, 64))
    x = jnp.asarray(x if signed else x**2, jnp.float32)

    @jax.jit
    def rounded(seed):
        return encode_blocks(x, 2, signed, noise(seed)).decode()

    samples = np.stack([rounded(seed) for seed in range(1000)])
    size = np.abs(x)
    block = size.reshape(8, 2, 32).max(-1).repeat(32, axis=1)
    # Within the normal range of the code its steps are 1/16 to 1/32 of the value.
    normal = size > block * 2.0 ** (-6 if signed else -14)
    step = np.where(normal, size / 16, block * 2.0**-10)
    assert np.all((np.abs(samples - x) <= step)[:, normal])
    # A step's standard deviation is at most half of it; 1000 samples, 5 sigma.
    error = np.abs(samples.mean(0) - x)
    assert np.all(error[normal] <= (step * 0.5 / 1000**0.5 * 5)[normal])


@SIGNED
@pytest.mark.parametrize("peak", [1.9374, 1.9375, 1.9376, 1.939, 1.9999])
def test_the_largest_element_of_a_block_is_true_on_average(signed, peak):
    """Above the largest code, 31/16, as well, and it is never clipped."""
    x = jnp.full((2**16, 1), peak, jnp.float32)
    each = jnp.arange(2**16, dtype=jnp.uint32)[:, None] << 16
    stored = encode_blocks(x, 1, signed, lambda shape: each)
    assert (stored.format.exponents == (127 if peak <= 31 / 16 else 128)).all()
    mean = np.asarray(stored.decode(), np.float64).mean()
    np.testing.assert_allclose(mean, x[0, 0], atol=2.0**-20)


@SIGNED
def test_a_start_is_rounded_to_the_nearest(signed):
    x = np.random.default_rng(0).uniform(1, 1.9, (64, 64))
    stored = eight_bit(min_size=0).init(jnp.asarray(x, jnp.float32), signed)
    error = np.abs(np.asarray(stored.decode(), np.float64) - x)
    assert error.max() <= (0.5 + 2.0**-16) / 16


def test_small_second_moments_never_become_zero():
    x = jnp.float32([[1.0, 1e-9, 2e-38, 0.0]])
    for seed in range(20):
        decoded = encode_blocks(x, 1, False, noise(seed)).decode()[0]
        assert decoded[1] > 0 and decoded[2] > 0 and decoded[3] == 0
        # Too large, if anything: the step is then too small.
        assert decoded[1] >= 1e-9
    assert (encode_blocks(0 * x, 1, False, noise(0)).decode() == 0).all()


@SIGNED
@pytest.mark.parametrize("poison", [jnp.inf, jnp.nan])
def test_a_poisoned_block_shows(poison, signed):
    x = jnp.ones((2, 4)).at[0, 1].set(poison)
    decoded = encode_blocks(x, 1, signed, noise(0)).decode()
    assert jnp.isnan(decoded[0]).any() and jnp.isfinite(decoded[1]).all()


def test_round_to_bfloat16():
    x = jnp.full(100_000, 1 + 1 / 512, jnp.float32)  # a quarter of the way to the next
    rounded = numerics.round_to_bfloat16(x, noise(0)(x.shape)).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1.0, 1 + 1 / 128}
    # Binomial: sigma of the mean is 0.43 / 128 / sqrt(1e5), 1.1e-5.
    np.testing.assert_allclose(rounded.mean(), 1 + 1 / 512, atol=5e-5)


@pytest.mark.parametrize("bits", [0, 2**16 - 1, 2**32 - 1])
def test_round_to_bfloat16_keeps_what_is_not_to_be_rounded(bits):
    """Also the NaN of NVIDIA, whose mantissa would overflow, and its negative."""
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    special = np.float32([np.inf, -np.inf, 0.0, -0.0, 1.0, -(2.0**-100), *nan])
    rounded = jax.jit(numerics.round_to_bfloat16)(special, jnp.full(9, bits, "uint32"))
    rounded = np.asarray(rounded.astype(jnp.float32))
    np.testing.assert_array_equal(rounded, special)
    np.testing.assert_array_equal(np.signbit(rounded[:6]), np.signbit(special[:6]))


@SIGNED
def test_special_elements(signed):
    """Zeros stay; infinities and NaN make their block NaN, whatever is beside them."""
    x = np.ones((6, 32), np.float32)
    x[0, 0], x[1, 0], x[2, 0], x[3, 0] = 0, np.inf, np.nan, np.float32(1e-40)
    x[4, 0], x[5] = np.array([0xFFFFFFFF], np.uint32).view(np.float32)[0], 0
    decoded = np.asarray(encode_blocks(jnp.asarray(x), 1, signed, noise(0)).decode())
    assert np.isnan(decoded[[1, 2, 4]]).all() and np.isfinite(decoded[[0, 3, 5]]).all()
    assert decoded[0, 0] == 0 and (decoded[5] == 0).all() and decoded[3, 0] <= 2**-14


def test_random_bits_are_uniform_and_unrelated():
    """Bits are fair; steps, leaves and elements do not correlate."""
    bits = np.stack(
        [
            randomness.random_bits((64, 64), [0, 0, i, t])
            for t in range(8)
            for i in (0, 1)
        ]
    ).reshape(16, -1)
    ones = np.unpackbits(bits.view(np.uint8)).reshape(-1, 32).mean(0)
    assert np.all(np.abs(ones - 0.5) < 5 * 0.5 / bits.size**0.5)
    correlation = np.corrcoef(bits.astype(np.float64) / 2**32)
    assert np.abs(correlation - np.eye(16)).max() < 5 / 4096**0.5
    shifted = np.corrcoef(bits[0, 1:] / 2**32, bits[0, :-1] / 2**32)[0, 1]
    assert abs(shifted) < 5 / 4096**0.5


def draw_halves(seed=0, step=0, leaf=0, shape=(1024, 1024)):
    """Draw the noise of both moments, as a kernel does: 16 bits of each element."""
    like = jnp.zeros(shape)
    known = hash_leaf(seed, leaf)
    both = [LeafNoise(known, step, order, like)(shape) for order in (1, 2)]
    return [np.asarray(bits >> 16).reshape(-1) for bits in both]


def chi_square(x, y):
    """Return chi^2 of the upper 4 bits of each: 255 +- 23 if they are unrelated."""
    cells = np.bincount((x >> 12) * 16 + (y >> 12), minlength=256)
    expected = len(x) / 256
    return ((cells - expected) ** 2 / expected).sum()


def test_the_halves_of_a_hash_are_unrelated():
    """To each other, and to those of neighbours, rows, steps, seeds and leaves."""
    mu, nu = draw_halves()
    others = {
        "the next": [np.roll(half, 1) for half in (mu, nu)],
        "the row below": [np.roll(half, 1024) for half in (mu, nu)],
        "2^19 away": [np.roll(half, 2**19) for half in (mu, nu)],
        "the next step": draw_halves(step=1),
        "the next seed": draw_halves(seed=1),
        "the next leaf": draw_halves(leaf=1),
    }
    pairs = [("itself", mu, nu)]
    pairs += [(name, x, y) for name, ys in others.items() for x in (mu, nu) for y in ys]
    for name, x, y in pairs:
        correlation = np.corrcoef(x, y)[0, 1]
        assert abs(correlation) < 5 / len(x) ** 0.5, name
        assert chi_square(x, y) < 255 + 5 * (2 * 255) ** 0.5, name
    for half in (mu, nu):
        ones = (half[:, None] >> np.arange(16) & 1).mean(0)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / len(half) ** 0.5


def test_moments_and_parameters_are_rounded_by_different_bits():
    """The words of round_to_params are a seed, a leaf and a step, too."""
    params = np.asarray(randomness.random_bits((1024, 1024), [0, 0, 0]) >> 16).ravel()
    for half in draw_halves():
        assert abs(np.corrcoef(params, half)[0, 1]) < 5 / 1024


def test_one_seed_makes_one_hash_of_both_moments():
    """`make compiled` counts the hashes that XLA makes."""
    like = jnp.zeros((3, 40))
    mu, nu, other = (
        LeafNoise(hash_leaf(seed, 1), 7, order, like)(like.shape)
        for seed, order in [(3, 1), (3, 2), (4, 2)]
    )
    np.testing.assert_array_equal(mu << 16, nu)
    assert not np.array_equal(nu, other)


@SIGNED
def test_codes_are_drawn_with_all_16_bits(signed):
    """Each noise once: the share that is rounded up is the fraction, to 2^-17."""
    bits = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.random.default_rng(0).integers(2**16, size=2**16, dtype=np.uint32)
    encode = jax.jit(encode_values, static_argnums=3)
    errors = []
    # Steps of 1/16 at 1 and above; below the least normal, 2^-6 or 2^-14 of it.
    least = 2.0 ** (-6 if signed else -14)
    for size in np.random.default_rng(1).uniform(1, 1.9, 100):
        for x, step in [(size, 1 / 16), ((size - 0.5) * least, least / 16)]:
            x = np.float32(x)
            down = np.floor(x / step)
            exponents = jnp.full(1, 127)
            args = jnp.full(2**16, x), exponents
            codes = encode(*args, jnp.asarray(bits | lower), signed)
            np.testing.assert_array_equal(codes, encode(*args, bits, signed))
            values = np.asarray(decode_values(codes, exponents), np.float64)
            errors.append(np.mean(values / step - down) - (x / step - down))
    assert np.abs(errors).max() <= 1.2 * 2**-17  # sums round, too
    # Fractions have 19 bits, and half of the last is added: 2^-20.
    assert abs(np.mean(errors)) < 2.0**-19


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 33), (0, 4), (4, 0)])
def test_any_shape(shape):
    tx = adam_jax.adam(1e-2, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT)
    grads = jnp.ones((3, *shape))
    updates, _, _ = run(tx, grads, jnp.zeros(shape))
    # All gradients are 1, and so is the quotient; the code errs by 1/16 at most.
    np.testing.assert_allclose(updates, -1e-2, rtol=0.15)


@pytest.mark.parametrize("format", ["bfloat16", EIGHT_BIT], ids=["bfloat16", "8bit"])
@pytest.mark.parametrize(
    "accumulators",
    [
        (0.9, 0.99),
        (None, adam_jax.total(0.1)),
        (0.9, adam_jax.infinity_norm(0.99)),
        (0.9, adam_jax.residual_variance(0.99)),
        (0.9, adam_jax.yogi_average(0.99)),
        (adam_jax.trace(0.9), None),
        (adam_jax.lion_average(0.9, 0.99), None),
        (adam_jax.ema(0.9, nesterov=True), 0.99),
    ],
    ids=["adam", "adagrad", "adamax", "adabelief", "yogi", "sgd", "lion", "nadam"],
)
def test_any_accumulator_in_any_format(accumulators, format):
    """Close to float32 on average over 512 parameters, and never far from it."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 16, 32))
    grads = jnp.asarray(1 + 0.3 * noise, jnp.float32)
    params = jnp.zeros((16, 32))

    def last_update(**storage):
        stages = adam_jax.scale_by_moments(*accumulators, **storage)
        tx = optax.chain(stages, adam_jax.bias_correct(), adam_jax.scale_by_lr(1.0))
        return run(tx, grads, params)[0][-1]

    exact = last_update()
    rounded = last_update(mu_dtype=format, nu_dtype=format)
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded.mean(), exact.mean(), rtol=0.03)
    np.testing.assert_allclose(rounded, exact, rtol=0.5)


@pytest.mark.parametrize("format", ["bfloat16", "8bit"])
def test_the_state_keeps_its_types_and_its_size(format):
    params = {"w": jnp.ones((256, 128)), "b": jnp.ones(128)}
    tx = adam_jax.adamw(1e-3, mu_dtype=format, nu_dtype=format)
    grads = jax.tree.map(lambda p: jnp.stack([p] * 3), params)
    _, _, state = run(tx, grads, params)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, tx.init(params))
    moments = state[0]
    own = [moments.mu, moments.nu, *moments.mu_format, *moments.nu_format]
    per_parameter = nbytes([tree["w"] for tree in own]) / params["w"].size
    print(f"{format}: {per_parameter:.3f} bytes a parameter")
    assert per_parameter <= (2.15 if format == "8bit" else 4)
    if format == "8bit":  # the bias is below the threshold
        assert optax.tree.get(state, "nu")["b"].dtype == jnp.float32


def test_composes_with_optax():
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(4)}
    tx = optax.inject_hyperparams(adam_jax.adamw)(
        1e-3, mu_dtype="8bit", nu_dtype="8bit"
    )
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(params, state, params)
    assert update._cache_size() == 1
    np.testing.assert_allclose(updates["w"], -1e-3, rtol=0.2)
    mapped = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    batch = jax.vmap(tx.init)({"w": jnp.ones((2, 64, 64)), "b": jnp.ones((2, 4))})
    assert optax.tree.get(batch, "nu")["w"].shape == (2, 64, 64)


@pytest.mark.parametrize("format", ["float32", "bfloat16", "8bit"])
def test_state_maps_to_specs_and_survives_flax(format):
    """Each leaf of mu and nu is one array: for specs, NNX, and msgpack."""
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(4)}
    tx = adam_jax.adam(1e-2, mu_dtype=format, nu_dtype=format)
    state = tx.init(params)
    specs = {"w": P("x"), "b": P()}
    mapped = optax.tree.map_params(tx, lambda x, spec: spec, state, specs)
    assert optax.tree.get(mapped, "nu") == specs
    _, state = tx.update(params, state)
    data = serialization.to_bytes(state)
    restored = serialization.from_bytes(tx.init(params), data)
    jax.tree.map(np.testing.assert_array_equal, restored, state)

    model = nnx.Linear(64, 64, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = model.kernel[...]
    for _ in range(3):
        grads = nnx.grad(lambda m: m(jnp.ones((2, 64))).sum())(model)
        optimizer.update(model, grads)
    np.testing.assert_allclose(model.kernel[...] - before, -0.03, rtol=0.15)


def test_an_eight_bit_mu_beside_a_float32_nu_keeps_the_step_bounded():
    """One gradient of size 1 in a block of tiny ones: no leap to the first code."""
    scale = jnp.full((1, 32), 1e-7).at[0, 0].set(1.0)
    grads = scale * jax.random.normal(jax.random.key(0), (300, 1, 32))
    tx = adam_jax.adam(1.0, mu_dtype=EIGHT_BIT)
    updates, _, _ = run(tx, grads, jnp.zeros((1, 32)))
    # At most four times the bound of an exact mu, (1 - b1) / sqrt(1 - b2) = 3.16.
    assert np.abs(updates).max() < 4 * 3.17


def test_load_moments():
    params = {"w": jnp.ones((64, 64))}
    tx = optax.chain(optax.clip(1.0), adam_jax.adam(1e-2, mu_dtype="8bit"))
    _, state = tx.update(params, tx.init(params))
    mu, nu = load_moments(state)
    np.testing.assert_allclose(mu["w"], 0.1, rtol=1 / 16)
    np.testing.assert_allclose(nu["w"], 0.001, rtol=1e-5)
    with pytest.raises(ValueError, match="found no MomentsState in the state"):
        load_moments(optax.sgd(1.0).init(params))


# These hold a maximum, or a place of the parameters, beside the moments; the last two a
# second moment in a format of its own.
FLOATS = (
    *("amsgrad", "madgrad", "padam", "adapnm", "lookahead", "prodigy"),
    *("schedule_free_adamw", "schedule_free_radam", "adafactor", "came"),
)


@pytest.mark.parametrize("name", often(adam_jax.OPTIMIZERS))
def test_every_optimizer_takes_every_format(name):
    keys = inspect.signature(adam_jax.OPTIMIZERS[name]).parameters
    keys = [k for k in keys if k in ("mu_dtype", "nu_dtype", "accumulator_dtype")]
    options = {"momentum": 0.9} if name == "sgd" else {}
    rng = np.random.default_rng(0)  # of full rank, for those that look at matrices
    params = {"w": jnp.asarray(rng.normal(size=(8, 32)), "f"), "b": jnp.ones(3)}
    expected = None
    for format in ("float32", "bfloat16", EIGHT_BIT):
        storage = dict.fromkeys(keys, format)
        tx = adam_jax.OPTIMIZERS[name](1e-2, **options, **storage)
        state = tx.init(params)
        types = jax.tree.map(jax.typeof, state)
        for _ in range(2):
            updates, state = jax.jit(tx.update)(params, state, params)
        assert jax.tree.map(jax.typeof, state) == types
        if expected is None:
            expected = updates
        error = jnp.linalg.norm(updates["w"] - expected["w"])
        assert error <= 0.15 * jnp.linalg.norm(expected["w"])
    sizes = [x.dtype.itemsize for x in jax.tree.leaves(state) if x.shape == (8, 32)]
    assert bool(sizes) == (name != "rowwise_adagrad")  # all that it has is shared
    assert sizes.count(1) == len(sizes) or name in FLOATS


@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", "y"), P()])
@pytest.mark.parametrize("format", ["bfloat16", EIGHT_BIT], ids=["bfloat16", "8bit"])
def test_sharding_changes_nothing_and_gathers_nothing(format, spec):
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=auto)
    sharding = NamedSharding(mesh, spec)
    tx = adam_jax.adam(1e-2, mu_dtype=format, nu_dtype=format)
    plain = jnp.asarray(np.random.default_rng(0).normal(size=(16, 256)), jnp.float32)
    sharded = jax.device_put(plain, sharding)

    def steps(params, init, update):
        state = init(params)
        for _ in range(3):
            updates, state = update(params, state, params)
        return updates, state

    init, update = jax.jit(tx.init), jax.jit(tx.update)
    expected = steps(plain, init, update)
    actual = steps(sharded, init, update)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for leaf in jax.tree.leaves(actual):
        if leaf.shape in ((16, 256), (16, 8)):  # and the exponents' PartitionSpec
            assert leaf.sharding.is_equivalent_to(sharding, 2)
    text = update.lower(sharded, actual[1], sharded).compile().as_text()
    assert not any(collective in text for collective in COLLECTIVES)


COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


@pytest.mark.parametrize("columns", [128, 8 * 52, 8 * 7])
def test_blocks_fit_explicit_shards(columns):
    """A shard of 16, 52 or 7 elements is no whole number of blocks of 32."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(None, "x"))
        plain = jnp.linspace(-1, 1, 4 * columns).reshape(4, columns)
        params = jax.device_put(plain, sharding)
        tx = adam_jax.adam(1e-2, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT)
        state = tx.init(params)
        types = jax.tree.map(jax.typeof, state)
        assert jax.tree.map(jax.typeof, jax.jit(tx.init)(params)) == types
        update = jax.jit(tx.update)
        text = update.lower(params, state, params).compile().as_text()
        updates, state = update(params, state, params)
    exponents = optax.tree.get(state, "nu_format").exponents
    block = columns // exponents.shape[-1]
    assert block == {128: 16, 416: 26, 56: 7}[columns]
    assert exponents.sharding.is_equivalent_to(sharding, 2)
    assert not any(collective in text for collective in COLLECTIVES)
    fits = eight_bit(block=block, min_size=0)
    tx = adam_jax.adam(1e-2, mu_dtype=fits, nu_dtype=fits)
    expected, _ = jax.jit(tx.update)(plain, tx.init(plain), plain)
    np.testing.assert_array_equal(updates, expected)


def test_blocks_that_do_not_fit_automatic_shards():
    """Their shapes are the same however init is called; where it can, it warns."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jax.device_put(jnp.ones((4, 128)), NamedSharding(mesh, P(None, "x")))
    tx = adam_jax.adam(1e-2, nu_dtype=EIGHT_BIT)
    message = (
        r"pieces of 16, which are no whole .* blocks of 32: .*eight_bit\(block=16\)"
    )
    with pytest.warns(UserWarning, match=message):
        state = tx.init(params)
    shapes = jax.tree.map(jnp.shape, state)
    assert jax.tree.map(jnp.shape, jax.eval_shape(tx.init, params)) == shapes
    tx = adam_jax.adam(1e-2, nu_dtype=eight_bit(block=16, min_size=0))
    text = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
    assert not any(collective in text for collective in COLLECTIVES)


def test_blocks_that_do_not_fit_explicit_shards_are_refused():
    """As in a checkpoint of a run on fewer devices."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    tx = adam_jax.adam(1e-2, nu_dtype=EIGHT_BIT)
    state = tx.init(jnp.ones((4, 128)))
    with jax.set_mesh(mesh):
        grads = jax.device_put(jnp.ones((4, 128)), NamedSharding(mesh, P(None, "x")))
        sharded = jax.tree.map(
            lambda x: jax.device_put(x, grads.sharding) if x.shape == (4, 128) else x,
            state,
        )
        with pytest.raises(
            ValueError, match=r"blocks of 32, .* pieces of 16: .*eight_bit\(block=16\)"
        ):
            jax.jit(tx.update)(grads, sharded, grads)


@pytest.mark.parametrize("spec", [P("x"), P(None, "x")])
def test_in_a_shard_map_the_whole_leaf_counts(spec):
    """16,384 elements, of which a shard has 2,048."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = adam_jax.adam(1e-2, nu_dtype="8bit")

    def start(params):
        return tx.init(params)[0].nu

    sharded = jax.shard_map(start, mesh=mesh, in_specs=spec, out_specs=spec)
    assert jax.eval_shape(sharded, jnp.ones((128, 128))).dtype == jnp.uint8
    assert jax.eval_shape(sharded, jnp.ones((16, 128))).dtype == jnp.float32
    copied = jax.shard_map(start, mesh=mesh, in_specs=P(), out_specs=P())
    assert jax.eval_shape(copied, jnp.ones((16, 128))).dtype == jnp.float32


HOST = ["float32", "bfloat16", EIGHT_BIT, adam_jax.factored()]


@pytest.mark.parametrize("nu_dtype", HOST, ids=str)
def test_moments_of_parameters_in_host_memory(nu_dtype):
    """They start there too, with the values that they have elsewhere, and stay."""
    params = {"w": jnp.ones((8, 64)), "h": jnp.ones((4, 32), jnp.bfloat16)}
    tx = adam_jax.compensate_params(adam_jax.adam(1e-3, nu_dtype=nu_dtype))
    tx = adam_jax.record(tx)
    expected = tx.init(params)
    host = jax.device_put(params, jax.memory.Space.Host)
    if host["w"].sharding.memory_kind != "pinned_host":
        pytest.skip("this JAX has no host memory beside that of CPU devices")
    for state in (tx.init(host), jax.jit(tx.init)(host)):
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        moments = optax.tree.get(state, "nu"), optax.tree.get(state, "nu_format")
        for leaf in jax.tree.leaves((moments, optax.tree.get(state, "residual"))):
            assert leaf.sharding.memory_kind == "pinned_host"
        assert optax.tree.get(state, "weights").sharding.memory_kind == "device"
        converted = convert_state(state, nu_dtype="bfloat16", params=host)
        nu = optax.tree.get(converted, "nu")["w"]
        assert (nu.dtype, nu.sharding.memory_kind) == ("bfloat16", "pinned_host")
        guarded = adam_jax.skip_nonfinite(tx)
        update = jax.jit(guarded.update)
        updates, state = update(params, guarded.init(host), params)
        expected_updates, after = update(params, guarded.init(params), params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected_updates)
        jax.tree.map(np.testing.assert_array_equal, state, after)
        names = ("mu", "nu", "nu_format", "residual")
        for leaf in jax.tree.leaves([optax.tree.get(state, name) for name in names]):
            assert leaf.sharding.memory_kind == "pinned_host"


@pytest.mark.parametrize("source", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("target", ["float32", "bfloat16", "8bit"])
def test_a_run_goes_on_in_another_format(source, target):
    grads = np.random.default_rng(0).normal(size=(100, 64, 64)) + 1
    grads, params = jnp.asarray(grads, jnp.float32), jnp.zeros((64, 64))
    before = adam_jax.adam(1e-2, mu_dtype=source, nu_dtype=source)
    after = adam_jax.adam(1e-2, mu_dtype=target, nu_dtype=target)
    _, _, state = run(before, grads, params)
    converted = convert_state(state, mu_dtype=target, nu_dtype=target)
    # After the 100 steps it has the types of the target's own state.
    own = jax.tree.map(jax.typeof, after.init(params))
    assert jax.tree.map(jax.typeof, converted) == own
    updates, _ = jax.jit(after.update)(grads[0], converted)
    kept, _ = jax.jit(before.update)(grads[0], state)
    # Two roundings of mu, 3% each at most, and of nu, half as much.
    np.testing.assert_allclose(updates, kept, rtol=0.15, atol=1e-4)
    same = convert_state(state)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize(("source", "target"), [("8bit", None), ("float32", "8bit")])
def test_a_state_in_another_format_is_refused(source, target):
    """Codes must not be taken for moments."""
    params = jnp.ones((64, 64))
    state = adam_jax.adam(1e-3, mu_dtype=source, nu_dtype=source).init(params)
    tx = adam_jax.adam(1e-3, mu_dtype=target, nu_dtype=target)
    with pytest.raises(ValueError, match=r"another format .* adam_jax\.adopt_state"):
        jax.jit(tx.update)(params, state)


def test_traces_convert_too():
    state = adam_jax.sgd(1e-2, momentum=0.9).init(jnp.ones((64, 64)))
    converted = convert_state(state, mu_dtype="8bit")
    assert optax.tree.get(converted, "trace").dtype == jnp.int8


def test_conversion_refuses_what_it_would_lose():
    with pytest.raises(ValueError, match=r"convert_state\(\) found no moments"):
        convert_state(optax.adam(1e-3).init(jnp.ones(2)), mu_dtype="8bit")
    state = adam_jax.adam(1e-3).init(jnp.ones(2, jnp.complex64))
    with pytest.raises(TypeError, match="complex64 moment cannot be stored as float32"):
        convert_state(state, mu_dtype="float32")


def test_seeds_differ_and_repeat():
    def updates(seed):
        format = eight_bit(min_size=0, seed=seed)
        tx = adam_jax.adam(1e-2, mu_dtype=format)
        grads = jnp.asarray(np.random.default_rng(0).normal(size=(5, 32)), jnp.float32)
        return run(tx, grads, jnp.zeros(32))[0]

    assert np.array_equal(updates(0), updates(0))
    assert not np.array_equal(updates(0), updates(1))
