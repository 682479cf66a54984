"""What blocks share: on a TPU the same numbers by other ways, where they fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adam_jax.moments import tiles
from adam_jax.moments.blocks import _find_bytes, _find_exponents


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    monkeypatch.setattr(tiles, "_LEAST_SIZE", 0)


SHAPES = [(64, 1024), (3, 16, 256), (2048,), (8, 128)]
LACKING_ROWS = [(61, 1024), (3, 15, 256), (5, 128)]


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES + LACKING_ROWS)
def test_tiles_give_every_bit(shape, block):
    rng, blocks = np.random.default_rng(0), shape[-1] // block
    x = np.abs(rng.normal(size=shape) * 10 ** rng.uniform(-30, 30, shape))
    x = np.float32(x).reshape(-1)
    x[5], x[100], x[700:900] = np.nan, np.inf, 0
    bits = lax.bitcast_convert_type(jnp.asarray(x.reshape(shape)), jnp.int32)
    expected = tiles._find_largest(bits, shape, blocks)
    np.testing.assert_array_equal(
        tiles._find_largest_of_tiles(bits, shape, blocks), expected, strict=True
    )
    scales = np.float32(2.0 ** rng.integers(-126, 128, expected.shape))
    scales.reshape(-1)[3] = np.nan
    np.testing.assert_array_equal(
        tiles._spread_to_tiles(jnp.asarray(scales), shape, blocks),
        tiles._spread(jnp.asarray(scales), shape, blocks),
        strict=True,
    )


def uses_tiles(function, *args, platform="tpu"):
    """Return whether a program would use tiles on a platform that need not be here."""
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    return "stablehlo.xor" in lowered.as_text()  # of lanes


def both(x, blocks):
    """Return an array whose blocks' maxima are found and spread."""
    return x * tiles.spread(tiles.find_peaks(x, blocks), x.shape)


@pytest.mark.parametrize(
    ("shape", "block", "expected"),
    [
        *((shape, 32, True) for shape in SHAPES + LACKING_ROWS),
        ((64, 1024), 128, True),
        ((64, 1024), 16, False),  # eight in a row of a tile
        ((60, 1152), 32, False),  # rows are missing, and columns of tiles too many
        ((64, 960), 32, False),  # the last column of tiles is not full
        ((2048 + 32,), 32, False),
    ],
)
def test_tiles_are_used_where_they_are_whole(shape, block, expected):
    step = functools.partial(both, blocks=-(-shape[-1] // block))
    assert uses_tiles(step, jnp.ones(shape)) == expected
    assert not uses_tiles(step, jnp.ones(shape), platform="cpu")
    assert not uses_tiles(jax.vmap(step), jnp.ones((2, *shape)))


def test_small_leaves_are_not_viewed_as_tiles(monkeypatch):
    step = functools.partial(both, blocks=32)
    monkeypatch.undo()
    assert uses_tiles(step, jnp.ones((256, 1024)))
    assert not uses_tiles(step, jnp.ones((248, 1024)))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 1024), True), ((64, 384), False), ((24, 1024), False), ((20, 256), False)],
)
def test_tiles_are_used_where_no_cut_goes_through_one(shape, expected):
    mesh = Mesh(np.array(jax.devices()[:2]), "x")
    for spec in P("x", None), P(None, "x"):
        x = jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))
        step = functools.partial(both, blocks=shape[-1] // 32)
        assert uses_tiles(step, x) == expected
        columns = x.sharding.shard_shape(shape)[-1]
        step = functools.partial(both, blocks=columns // 32)
        mapped = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec)
        assert uses_tiles(mapped, x) == (columns % 128 == 0)


@pytest.mark.parametrize(("shape", "blocks"), [((5, 96), 3), ((5, 97), 5), ((700,), 8)])
def test_exponents_are_found_among_bytes(shape, blocks):
    rng = np.random.default_rng(0)
    size = np.float32(2.0 ** rng.uniform(-140, 127, shape))
    size.reshape(-1)[[5, 40, 70]] = np.nan, np.inf, 0
    found = [find(jnp.asarray(size), blocks) for find in (_find_bytes, _find_exponents)]
    np.testing.assert_array_equal(*found, strict=True)


def test_derivatives_are_those_of_all_elements():
    total = jax.grad(lambda x: tiles.spread(x, (8, 128)).sum())(jnp.ones((8, 4)))
    np.testing.assert_array_equal(total, 32)
