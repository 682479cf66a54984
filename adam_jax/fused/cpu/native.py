"""The native Adam step for CPUs: an XLA call into the compiled library.

This module is the bare entry, which steps groups of leaves. Its callers decide whether
to use it, and what to do under vmap or on a mesh.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adam_jax.fused.kernels import (
    Asked,
    Counts,
    Group,
    Options,
    Scalars,
    Stepped,
    lengths,
    result_type,
    stand_in_for_sums,
    stored_in,
)
from adam_jax.native import calls
from adam_jax.native.library import STEP

# 1,000 leaves of 64 elements compile in 1.2 s in calls of 224 arrays, in 1.5 s with one
# call per leaf, in 4.8 s in calls of 1,792 arrays, and in 64 s in a single call (jaxlib
# 0.12). The step itself takes equally long.
_ARRAYS_IN_A_CALL = 224
# XLA runs calls in parallel. In a single call, GPT-2's large leaves take 10% longer.
_ELEMENTS_IN_A_CALL = 2**20


def takes(group: Group) -> bool:
    """Return whether the library steps a group: any, but for enormous blocks.

    Args:
      group: the leaves.
    """
    exponents = (group.mu_exponents, group.nu_exponents)
    return all(x is None or calls.takes(group.mu.shape, x.shape[-1]) for x in exponents)


def step(
    groups: Sequence[Group],
    scalars: Scalars,
    counts: Counts,
    options: Options,
    take: ArrayLike = True,
) -> list[Stepped]:
    """Step every leaf natively, in place.

    XLA first copies arrays that are still needed, such as arguments that are not
    donated.

    Args:
      groups: the leaves to step.
      scalars: the hyperparameters and weights of this step.
      counts: the number of steps before this one; random bits are a hash of it.
      options: the options of the step.
      take: bool scalar; False leaves everything as it is.

    Returns:
      The groups after the step, in order.

    Raises:
      RuntimeError: (`jax.errors.JaxRuntimeError`) when the step runs, if shapes or
        dtypes do not fit; the message names the leaf.
    """
    leading = [*_stack(scalars, counts), jnp.asarray(take, bool)]
    stepped = []
    for first, last in _cut(groups):
        stepped += _step(groups[first:last], leading, options)[0]
    return stepped


def step_and_sum(
    groups: Sequence[Group],
    scalars: Scalars,
    counts: Counts,
    options: Options,
    take: ArrayLike,
    asked: Asked,
) -> tuple[list[Stepped], list[jax.Array]]:
    """Do what `step` does, and sum what figures need in the same pass.

    Args:
      groups: as for `step`.
      scalars: as for `step`.
      counts: as for `step`.
      options: as for `step`.
      take: as for `step`; where it is False, updates are 0.
      asked: what is to be summed.

    Returns:
      The groups after the step, and the `SUMS` over each leaf, in order.
    """
    leading = [*_stack(scalars, counts), jnp.asarray(take, bool)]
    wanted, large = jnp.asarray(asked.wanted, bool), iter(asked.large)
    stepped, sums = [], []
    for first, last in _cut(groups):
        number = sum(len(group.numbers) for group in groups[first:last])
        least = jnp.stack(
            [jnp.asarray(next(large), jnp.float32) for _ in range(number)]
        )
        some, own = _step(groups[first:last], leading, options, [wanted, least])
        stepped, sums = stepped + some, sums + own
    return stepped, sums


def _stack(scalars: Scalars, counts: Counts) -> tuple[jax.Array, jax.Array]:
    """Stack the scalars and counts into the two arrays that the library takes."""
    return (
        jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars]),
        jnp.stack([jnp.asarray(x, jnp.int32) for x in counts]),
    )


def _cut(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Cut groups into calls; return the first group of each, and the one after it."""
    ends, arrays, elements = [0], 0, 0
    for i, group in enumerate(groups):
        count, size = 3 * len(group.numbers) + 2 * len(stored_in(group)), group.mu.size
        arrays, elements = arrays + count, elements + size
        if arrays > _ARRAYS_IN_A_CALL or elements > _ELEMENTS_IN_A_CALL:
            ends, arrays, elements = [*ends, i], count, size
    ends = [*ends, len(groups)]
    # If the first group alone is too large for a call, the first range is empty.
    return [(first, last) for first, last in itertools.pairwise(ends) if first < last]


def _operands(group: Group) -> list[Any]:
    """Return the arrays of a group in the order in which the library takes them."""
    pairs = zip(group.params, group.grads, strict=True)
    leaves = [x for pair in pairs for x in pair]
    return [*leaves, *(getattr(group, name) for name in stored_in(group))]


def _step(
    groups: Sequence[Group],
    leading: Sequence[jax.Array],
    options: Options,
    asked: Sequence[jax.Array] = (),
) -> tuple[list[Stepped], list[jax.Array]]:
    """Step groups in one XLA call; return the sums over their leaves, too, if asked."""
    scalars, counts, take = leading
    if any(group.start is not None for group in groups):
        counts = jnp.concatenate([counts, *map(_where, groups)])
    operands, results, aliases = [scalars, counts, take], [], {}
    for group in groups:
        arrays = _operands(group)
        grads = len(group.numbers)
        for i, operand in enumerate(arrays):
            if i < 2 * grads and i % 2:  # a gradient, which is only read
                continue
            sources = [group.mu, group.nu, *group.grads]
            aliases[len(operands) + i] = len(results)
            results.append(result_type(operand, [operand, *sources], leading[-1]))
        operands += arrays
    if asked:
        operands += asked
        results += [_sums_type(x, grad, take) for x in groups for grad in x.grads]
    flat = iter(
        jax.ffi.ffi_call(STEP, results, input_output_aliases=aliases)(
            *operands, sums=bool(asked), **_attributes(options, groups)
        )
    )
    stepped = [
        Stepped(
            [next(flat) for _ in group.numbers],
            **{name: next(flat) for name in stored_in(group)},
        )
        for group in groups
    ]
    return stepped, [*flat]


def _sums_type(group: Group, grad: jax.Array, take: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the type of the sums over a leaf; in a shard_map they vary as it does."""
    if jax.typeof(take).sharding.mesh.empty:
        return jax.ShapeDtypeStruct((len(calls.SUMS),), jnp.float32)
    return jax.eval_shape(stand_in_for_sums, [take, grad, *group.params, group.mu])


def _where(group: Group) -> jax.Array:
    """Return where a piece starts in its leaf, and that leaf's last two lengths."""
    if group.start is None or group.whole is None:
        return jnp.zeros([3], jnp.int32)
    start = jax.lax.bitcast_convert_type(group.start, jnp.int32)
    rows, columns = np.array(lengths(group.whole)).astype(np.uint32).view(np.int32)
    return jnp.stack([start, jnp.int32(rows), jnp.int32(columns)])


def _attributes(options: Options, groups: Sequence[Group]) -> dict[str, Any]:
    """Return the attributes of an XLA call for these groups."""
    numbers = [n for group in groups for n in group.numbers]
    return {
        "group_sizes": _integers(len(group.numbers) for group in groups),
        "leaf_numbers": _integers(numbers),
        "places": _integers(group.place for group in groups),
        "decays": _integers(options.decays for _ in groups),
        "mu_coded": _integers(group.mu_exponents is not None for group in groups),
        "nu_coded": _integers(group.nu_exponents is not None for group in groups),
        "nesterov": options.nesterov,
        "rounding": options.rounding,
        "mu_seed": options.seeds.mu,
        "nu_seed": options.seeds.nu,
        "param_seed": options.seeds.params,
    }


def _integers(values: Iterable[int]) -> np.ndarray:
    return np.array([*values], np.int32)
