"""The step of 8-bit moments on GPU: one Pallas kernel per leaf, one pass over memory.

XLA fuses the step of all other moments into one pass itself. Codes it first transposes:
their blocks lie along the axis along which a warp reads.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import AbstractDevice, AbstractMesh
from jax.typing import ArrayLike

from adam_jax import numerics, randomness
from adam_jax.fused.kernels import (
    Counts,
    Group,
    Leading,
    Options,
    Scalars,
    Stepped,
    count_blocks,
    land,
    lengths,
    result_type,
    step_alone,
    unpack,
)
from adam_jax.moments.blocks import decode_values, encode_values, find_exponents

# Measured on an H100 at 2^27: the fastest of 512 to 4,096 elements and 1 to 8 warps.
_ELEMENTS, _WARPS = 1024, 4
_LARGEST = 2**31 - _ELEMENTS  # indices are int32


def takes(group: Group) -> bool:
    """Return whether the kernel steps a leaf: it has codes, in blocks of one size.

    Args:
      group: the leaf.
    """
    blocks = count_blocks(group)
    if blocks is None or not 0 < group.mu.size < _LARGEST:
        return False
    return -(-group.mu.shape[-1] // blocks) <= _ELEMENTS


def step(
    groups: Sequence[Group],
    scalars: Scalars,
    counts: Counts,
    options: Options,
    take: ArrayLike = True,
    *,
    interpret: bool = False,
) -> list[Stepped]:
    """Step leaves in place.

    Args:
      groups: leaves that `takes` accepts.
      scalars: the hyperparameters and weights of this step.
      counts: the number of steps before this one; random bits are a hash of it.
      options: the options of the step.
      take: bool scalar; False leaves everything as it is.
      interpret: run the kernel step by step, on any platform, for tests.

    Returns:
      The leaves after the step, in order.
    """

    def step_leaf(leading, arrays, whole):
        return _step(leading, arrays, options, interpret, whole)

    return step_alone(groups, scalars, counts, options, take, step_leaf)


class _Leaf(NamedTuple):
    """How a leaf is cut into blocks.

    Attributes:
      columns: the length of its last axis.
      blocks: the number of blocks in the last axis.
      total: the number of blocks in the leaf.
    """

    columns: int
    blocks: int
    total: int

    @property
    def block(self) -> int:
        """The number of elements of a block; the last one of a row may have fewer."""
        return -(-self.columns // self.blocks)

    @property
    def lanes(self) -> int:
        """The number of elements that are read of a block: a power of two."""
        return 1 << (self.block - 1).bit_length()

    @property
    def rows(self) -> int:
        """The number of blocks that one program steps: a power of two."""
        return max(_ELEMENTS // self.lanes, 1)

    @property
    def is_even(self) -> bool:
        """Whether all blocks are of one size, a power of two, and all programs full."""
        whole = self.columns == self.blocks * self.lanes
        return whole and self.total % self.rows == 0


@functools.partial(jax.jit, static_argnums=(2, 3, 4))  # traced once for each shape
def _step(
    leading: Leading,
    arrays: dict[str, jax.Array],
    options: Options,
    interpret: bool,
    whole: tuple[int, ...] | None,
) -> dict[str, jax.Array]:
    """Step one leaf: return all its arrays but the gradient."""
    exponents = next(x for name, x in arrays.items() if name.endswith("_exponents"))
    columns, blocks = arrays["mu"].shape[-1], exponents.shape[-1]
    leaf = _Leaf(columns, blocks, exponents.size)
    rows, _ = lengths(arrays["mu"].shape)
    flat = {name: x.reshape(-1) for name, x in arrays.items()}
    written = [name for name in flat if name != "grad"]
    sources = [flat[name] for name in ("grad", "param", "mu", "nu")]
    _, shared, _ = leading
    call = pl.pallas_call(
        functools.partial(
            _kernel,
            leaf,
            (rows, *lengths(whole)) if whole else None,
            options,
            interpret,
            tuple(flat),
            tuple(written),
        ),
        out_shape=[
            result_type(flat[name], [flat[name], *sources], shared[0])
            for name in written
        ],
        grid=(pl.cdiv(leaf.total, leaf.rows),),
        # The gradient comes first, and is only read.
        input_output_aliases={len(leading) + 1 + i: i for i in range(len(written))},
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS),
        name="adam_jax_fused_step",
    )
    with contextlib.nullcontext() if interpret else _some_gpu():
        made = call(*leading, *flat.values())
    pairs = zip(written, made, strict=True)
    return {name: x.reshape(arrays[name].shape) for name, x in pairs}


def _kernel(
    leaf: _Leaf,
    piece: tuple[int, int, int] | None,
    options: Options,
    interpret: bool,
    names: tuple[str, ...],
    written: tuple[str, ...],
    factors: Any,
    shared: Any,
    own: Any,
    *refs: Any,
) -> None:
    """Step the blocks of one program, one block a row.

    Of a piece, `piece` is the number of rows in its last axis but one, and the last two
    lengths of the leaf that it was cut from.
    """
    read = dict(zip(names, refs, strict=False))
    write = dict(zip(written, refs[len(names) :], strict=True))
    f, words, take = unpack(factors, shared, own)
    block = pl.program_id(0) * leaf.rows + jnp.arange(leaf.rows, dtype=jnp.int32)
    lane = jnp.arange(leaf.lanes, dtype=jnp.int32)[None, :]
    row, number = block // leaf.blocks, block % leaf.blocks
    column = number[:, None] * leaf.block + lane
    if leaf.is_even:  # blocks follow each other without gaps
        index = block[:, None] * leaf.block + lane
        block_exists = exists = None
        keep_block = jnp.broadcast_to(take, block.shape)
        keep = jnp.broadcast_to(take, index.shape)
    else:
        index = row[:, None] * leaf.columns + column
        block_exists = block < leaf.total
        exists = block_exists[:, None] & (lane < leaf.block) & (column < leaf.columns)
        keep_block, keep = block_exists & take, exists & take

    position = index
    if piece:
        rows, whole_rows, whole_columns = piece
        position = (row // rows * whole_rows + row % rows)[:, None] * whole_columns
        position = position + column

    def load_where(mask: jax.Array | None, ref: Any, at: jax.Array) -> jax.Array:
        other = None if mask is None else 0
        return plgpu.load(ref.at[at], mask=mask, other=other)

    def load(name: str) -> jax.Array:
        values = load_where(exists, read[name], index)
        if f"{name}_exponents" not in read:
            return values.astype(jnp.float32)
        exponents = load_where(block_exists, read[f"{name}_exponents"], block)
        return decode_values(values, exponents.astype(jnp.int32)[:, None])

    @functools.cache
    def bits(i: int) -> jax.Array:
        unsigned = jax.lax.bitcast_convert_type(position, jnp.uint32)
        return randomness.hash_index(unsigned, words[i])

    def store(name: str, x: jax.Array, noise: jax.Array) -> None:
        ref = write[name]
        if f"{name}_exponents" in write:
            sizes = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
            sizes = sizes if exists is None else jnp.where(exists, sizes, 0)
            peaks = jnp.max(sizes, axis=1)
            peaks = jax.lax.bitcast_convert_type(peaks, jnp.float32)
            exponents = find_exponents(peaks)
            plgpu.store(
                write[f"{name}_exponents"].at[block],
                exponents.astype(jnp.uint8),
                mask=keep_block,
            )
            x = encode_values(x, exponents[:, None], noise, signed=name == "mu")
        elif ref.dtype == jnp.bfloat16:
            x = numerics.round_to_bfloat16(x, noise)
        plgpu.store(ref.at[index], x, mask=keep)

    grad, param = numerics.bound(load("grad")), load("param")
    mu = f.b1 * load("mu") + f.one_minus_b1 * grad
    nu = f.b2 * load("nu") + f.one_minus_b2 * (grad * grad)
    ahead = mu
    if options.nesterov:
        ahead = f.look_ahead * mu + f.one_minus_b1 * grad
    sqrt, invert = (jnp.sqrt, jnp.reciprocal) if interpret else (_sqrt, _invert)
    root = sqrt(nu * f.nu + f.eps_root) + f.eps
    update = jnp.where(root == 0, 0, f.quotient * (ahead * invert(root)))
    if options.decays:
        update = update + f.param * param
    moved = land(param, update, write["param"].dtype, options, lambda: bits(2))
    if not interpret:
        plgpu.debug_barrier()  # what is stored below, another warp may have to load
    # As in formats.LeafNoise; with one seed, the same hash serves both.
    store("mu", mu, bits(0))
    store("nu", nu, bits(int(options.seeds.mu != options.seeds.nu)) << 16)
    moved = moved.astype(write["param"].dtype)
    plgpu.store(write["param"].at[index], moved, mask=keep)


def _sqrt(x: jax.Array) -> jax.Array:
    """Return the square root to one unit in the last place, 0 for subnormals."""
    return _run_ptx("sqrt.approx.ftz.f32", x)


def _invert(x: jax.Array) -> jax.Array:
    """Return 1 / x to one unit in the last place, in one instruction for nine."""
    return _run_ptx("rcp.approx.ftz.f32", x)


def _run_ptx(instruction: str, x: jax.Array) -> jax.Array:
    [y] = plgpu.elementwise_inline_asm(
        f"{instruction} $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return y


def _some_gpu() -> Any:
    """Let Pallas lower for an H100 where no device is named, as to compile for one."""
    named = not jax.sharding.get_abstract_mesh().empty
    if named or jax.default_backend() == "gpu":
        return contextlib.nullcontext()
    name = "NVIDIA H100 80GB HBM3"
    h100 = {"device_kind": name, "num_cores": 132, "platform": "cuda"}
    known = dataclasses.fields(AbstractDevice)  # in older jax, not the platform
    device = AbstractDevice(**{field.name: h100[field.name] for field in known})
    mesh = AbstractMesh((1,), ("x",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)
