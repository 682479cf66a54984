"""Kernels step pieces of leaves as they step the whole."""

import functools

import pytest
from interpreted import interpret
from jax.sharding import PartitionSpec as P
from pieces import MAKERS, SHAPES, SPECS, draw, run, same, take_fused

import adam_jax
from adam_jax.fused.cpu import native
from adam_jax.fused.gpu import triton
from adam_jax.fused.tpu import mosaic

FEW = ("both", "columns", "three")
KERNELS = {
    "cpu": (native, "mixed", SPECS),
    "cpu, 8bit": (native, "8bit", SPECS),
    "tpu": (mosaic, "8bit", FEW),
    "gpu": (triton, "mixed", FEW),
}


crossing = functools.partial(pytest.param, marks=pytest.mark.crossing)


@pytest.mark.crossing
@pytest.mark.parametrize("name", ["cpu, 8bit", "gpu", crossing("cpu"), crossing("tpu")])
def test_a_kernel_steps_pieces_like_the_whole(name, monkeypatch):
    """All but a leaf that is cut along an axis between the first and the last two."""
    kernel, format, leaves = KERNELS[name]
    specs = {leaf: SPECS[leaf] for leaf in leaves}
    shapes = {leaf: SHAPES[leaf] for leaf in leaves}
    specs["four"], shapes["four"] = P(None, "data", None, "model"), (2, 2, 8, 128)
    if kernel is native:
        stepped = []
        original = native.step
        monkeypatch.setattr(
            native, "step", lambda g, *a: (stepped.extend(g), original(g, *a))[1]
        )
    else:
        stepped = interpret(kernel, monkeypatch)
    tx, params = adam_jax.round_to_params(MAKERS[format]()), draw(0, "bfloat16", shapes)
    same(*run(tx, take_fused, params, specs, check_vma=kernel is native))
    pieces = [group.whole for group in stepped if group.start is not None]
    assert len(pieces) >= 3 and shapes["four"] not in pieces
