"""The step of 8-bit moments on TPU: one Pallas kernel per leaf, one pass over memory.

XLA fuses the step of all other moments into one pass itself. Of codes it first needs
the exponents of whole blocks, which lie along the lanes of a register: it takes three
passes, and transposes what does not consist of whole tiles (`moments/tiles.py`).

The kernel is bound by arithmetic, not by memory: by the compiler's schedule, an element
takes 113 vector operations on v5e, of which up to four run at once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
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
from adam_jax.fused.tpu import registers
from adam_jax.fused.tpu.registers import LANES, ROWS
from adam_jax.moments.blocks import decode_values, encode_values

_LONGEST = 8192  # columns of a program: its blocks lie in 16 MB of VMEM, twice
_STRIPS = 8  # of a tile, at most: some go on while others wait
_ELEMENTS = 2**17  # of a program, about; in smaller ones each would wait for its start


def takes(group: Group) -> bool:
    """Return whether the kernel steps a leaf.

    It must have two axes or more, and codes whose blocks are of one size, a power of
    two from 8 to 128. And it must fill half of the tiles that its last axes are padded
    to: XLA lays what is padded more in another order. (It does so with some that are
    padded little, such as 768 x 50257, and then copies them.)

    Args:
      group: the leaf.
    """
    blocks, shape = count_blocks(group), group.mu.shape
    if blocks is None or len(shape) < 2 or not group.mu.size:
        return False
    leaf = _Leaf(shape[-2], shape[-1], blocks)
    known = leaf.block in registers.BLOCKS and leaf.width <= _LONGEST
    return known and leaf.padded <= 2 * leaf.rows * leaf.columns


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
    """How a leaf is cut into blocks, and these into programs.

    Attributes:
      rows: the length of its last axis but one.
      columns: the length of its last axis.
      blocks: the number of blocks in the last axis.
    """

    rows: int
    columns: int
    blocks: int

    @property
    def block(self) -> int:
        """The number of elements of a block; the last one of a row may have fewer."""
        return -(-self.columns // self.blocks)

    @property
    def padded(self) -> int:
        """The number of elements of rows times columns, padded to whole tiles."""
        tile = min(1 << (self.rows - 1).bit_length(), registers.SUBLANES)
        rows, columns = pl.cdiv(self.rows, tile), pl.cdiv(self.columns, LANES)
        return rows * tile * columns * LANES

    @property
    def tile(self) -> int:
        """The number of columns that are stepped at once, in at most eight strips."""
        strips = min(self.block, pl.cdiv(self.columns, LANES))
        return pl.cdiv(strips, pl.cdiv(strips, _STRIPS)) * LANES

    @property
    def width(self) -> int:
        """The number of columns that a program steps: tiles of at most 128 blocks."""
        return pl.cdiv(min(LANES * self.block, self.columns), self.tile) * self.tile

    @property
    def height(self) -> int:
        """The number of rows that a program steps."""
        groups = min(_ELEMENTS // (ROWS * self.width), pl.cdiv(self.rows, ROWS))
        return ROWS * max(groups, 1)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))  # traced once for each shape
def _step(
    leading: Leading,
    arrays: dict[str, jax.Array],
    options: Options,
    interpret: bool,
    whole: tuple[int, ...] | None,
) -> dict[str, jax.Array]:
    """Step one leaf: return all its arrays but the gradient."""
    deep = {name: x.reshape(-1, *x.shape[-2:]) for name, x in arrays.items()}
    coded = [name for name in ("mu", "nu") if f"{name}_exponents" in deep]
    depth, rows, columns = deep["mu"].shape
    leaf = _Leaf(rows, columns, deep[f"{coded[0]}_exponents"].shape[-1])
    merged = registers.Merged(leaf.block, len(coded) * registers.IN_STRIP)
    written = [name for name in deep if name != "grad"]
    sources = [deep[name] for name in ("grad", "param", "mu", "nu")]
    _, shared, _ = leading

    def spec(name: str) -> pl.BlockSpec:
        width = LANES if name.endswith("_exponents") else leaf.width
        return pl.BlockSpec((None, leaf.height, width), lambda *place: place)

    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    peaks = pl.cdiv(leaf.width // LANES, merged.copies)
    made = pl.pallas_call(
        functools.partial(
            _kernel,
            leaf,
            lengths(whole or (rows, columns)),
            merged,
            options,
            tuple(deep),
            tuple(written),
        ),
        out_shape=[
            result_type(deep[name], [deep[name], *sources], shared[0])
            for name in written
        ],
        grid=(depth, pl.cdiv(rows, leaf.height), pl.cdiv(columns, leaf.width)),
        in_specs=[*[scalar] * len(leading), *map(spec, deep)],
        out_specs=[*map(spec, written)],
        scratch_shapes=[pltpu.VMEM((peaks, *registers.SHAPE), jnp.int32)],
        # The gradient comes first, and is only read.
        input_output_aliases={len(leading) + 1 + i: i for i in range(len(written))},
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        name="adam_jax_fused_step",
    )(*leading, *deep.values())
    pairs = zip(written, made, strict=True)
    return {name: x.reshape(arrays[name].shape) for name, x in pairs}


def _kernel(
    leaf: _Leaf,
    whole: tuple[int, int],
    merged: registers.Merged,
    options: Options,
    names: tuple[str, ...],
    written: tuple[str, ...],
    factors: Any,
    shared: Any,
    own: Any,
    *refs: Any,
) -> None:
    """Step the rows and columns of one program."""
    peaks = refs[-1]
    read = dict(zip(names, refs, strict=False))
    write = dict(zip(written, refs[len(names) :], strict=False))
    coded = [name for name in ("mu", "nu") if f"{name}_exponents" in read]
    depth, down, across = map(pl.program_id, range(3))
    rows_left = jnp.minimum(leaf.height, leaf.rows - down * leaf.height)
    columns_left = jnp.minimum(leaf.width, leaf.columns - across * leaf.width)
    f, words, take = unpack(factors, shared, own)
    shape = ROWS, leaf.tile
    row, column = (lax.broadcasted_iota(jnp.int32, shape, i) for i in (0, 1))

    def step_tile(rows: Any, start: Any, exponents: dict[str, Any], first: Any) -> None:
        """Step rows from a column on; leave the exponents of their blocks in peaks."""
        at = rows, pl.ds(pl.multiple_of(first, LANES), leaf.tile)
        index = lax.bitcast_convert_type(start + first, jnp.uint32)
        block = (first + column) >> registers.log2(leaf.block)

        @functools.cache
        def bits(i: int) -> jax.Array:
            return randomness.hash_index(index, words[i])

        def load(name: str) -> jax.Array:
            if name in coded:
                spread = functools.partial(registers.permute, source=block)
                return decode_values(read[name][at], exponents[name], spread)
            return read[name][at].astype(jnp.float32)

        grad, param = numerics.bound(load("grad")), load("param")
        mu = f.b1 * load("mu") + f.one_minus_b1 * grad
        nu = f.b2 * load("nu") + f.one_minus_b2 * (grad * grad)
        ahead = mu
        if options.nesterov:
            ahead = f.look_ahead * mu + f.one_minus_b1 * grad
        root = jnp.sqrt(nu * f.nu + f.eps_root) + f.eps
        update = jnp.where(root == 0, 0, f.quotient * (ahead * _invert(root)))
        if options.decays:
            update = update + f.param * param
        moved = land(param, update, write["param"].dtype, options, lambda: bits(2))
        write["param"][at] = moved.astype(write["param"].dtype)

        moments = {"mu": mu, "nu": nu}
        sizes = [jnp.abs(moments[name]) for name in coded]
        if leaf.columns % leaf.block:
            inside = column < columns_left - first
            sizes = [jnp.where(inside, size, 0) for size in sizes]
        found = merged.find_exponents(sizes)
        merged.keep(peaks, first, found)
        # As in formats.LeafNoise; with one seed, the same hash serves both.
        other = int(options.seeds.mu != options.seeds.nu)
        noise = {"mu": bits(0), "nu": bits(other) << 16}
        for name, x in moments.items():
            if name in coded:
                spread = functools.partial(merged.spread, moment=coded.index(name))
                x = encode_values(x, found, noise[name], name == "mu", spread)
            elif write[name].dtype == jnp.bfloat16:
                x = numerics.round_to_bfloat16(x, noise[name])
            write[name][at] = x.astype(write[name].dtype)

    def step_rows(group: Any, _: Any) -> None:
        """Step the tiles of 32 rows."""
        rows = pl.ds(pl.multiple_of(group * ROWS, ROWS), ROWS)
        number = depth * whole[0] + down * leaf.height + group * ROWS + row
        start = number * whole[1] + across * leaf.width + column  # as if unsigned
        old = {
            name: read[f"{name}_exponents"][rows, :].astype(jnp.int32) for name in coded
        }

        def step_columns(i: Any, _: Any) -> None:
            step_tile(rows, start, old, i * leaf.tile)

        lax.fori_loop(0, _cdiv(columns_left, leaf.tile), step_columns, None)
        for name, new in zip(coded, merged.collect(peaks), strict=True):
            write[f"{name}_exponents"][rows, :] = new.astype(jnp.uint8)

    @pl.when(take)
    def _take() -> None:
        lax.fori_loop(0, _cdiv(rows_left, ROWS), step_rows, None)

    @pl.when(~take)
    def _keep() -> None:
        for name in written:
            write[name][...] = read[name][...]


def _invert(x: jax.Array) -> jax.Array:
    """Return 1 / x, for x > 0; on newer JAX in five operations instead of thirteen."""
    if reciprocal := getattr(pltpu, "reciprocal", None):
        return reciprocal(x, full_range=False)
    return 1 / x


def _cdiv(x: jax.Array, y: int) -> jax.Array:
    return lax.div(x + (y - 1), y)
