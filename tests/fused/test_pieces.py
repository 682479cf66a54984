"""Kernels step pieces of leaves as they step the whole."""

import pytest
from interpreted import interpret
from jax.sharding import PartitionSpec as P
from pieces import MAKERS, SHAPES, SPECS, draw, run, same, take_fused

import adam_jax
from adam_jax.fused.cpu import native
from adam_jax.fused.gpu import triton
from adam_jax.fused.tpu import mosaic


@pytest.mark.parametrize("name", ["8bit", "mixed"])
@pytest.mark.parametrize("kernel", [native, mosaic, triton], ids=["cpu", "tpu", "gpu"])
def test_a_kernel_steps_pieces_like_the_whole(kernel, name, monkeypatch):
    """All but a leaf that is cut along an axis between the first and the last two."""
    tx = adam_jax.round_to_params(MAKERS[name]())
    specs = {**SPECS, "four": P(None, "data", None, "model")}
    params = draw(0, "bfloat16", {**SHAPES, "four": (2, 2, 8, 128)})
    if kernel is native:
        stepped = []
        original = native.step
        monkeypatch.setattr(
            native, "step", lambda g, *a: (stepped.extend(g), original(g, *a))[1]
        )
    else:
        stepped = interpret(kernel, monkeypatch)
    same(*run(tx, take_fused, params, specs, check_vma=kernel is native))
    pieces = [group.whole for group in stepped if group.start is not None]
    assert len(pieces) >= 4 and (2, 2, 8, 128) not in pieces
