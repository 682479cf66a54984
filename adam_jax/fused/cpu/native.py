"""The native Adam step for CPUs: an XLA call into the library that the build made.

Here is the bare entry, over groups of leaves. Whether to take it, and what to do under
vmap or on a mesh, its callers decide.
"""

import ctypes
import functools
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import adam_jax.fused.cpu

_TARGET = "adam_jax_fused_step"
# 1,000 leaves of 64 elements compile in 1.2 s in calls of 224 arrays, in 1.5 s leaf by
# leaf, in 4.8 s by 1,792, in 64 s at once (jaxlib 0.12). The step takes equally long.
_ARRAYS_IN_A_CALL = 224
# XLA runs calls side by side: GPT-2's large leaves in one call take 10% longer.
_ELEMENTS_IN_A_CALL = 2**20


class Group(NamedTuple):
    """Leaves whose moments share arrays: one leaf, or several, one after the other.

    Attributes:
      place: the number of this group among the leaves of the moments' tree; random bits
        of moments are a hash of it.
      numbers: of the leaves in the tree of parameters; random bits of parameters are a
        hash of them.
      params: of each leaf, float32 or bfloat16.
      grads: of each leaf, float32 or bfloat16, of its parameter's shape.
      mu: the first moment as it is stored: float32, bfloat16 or int8 codes; of the
        leaf's shape or, for several leaves, flat. Several are not coded.
      nu: the second moment as it is stored: float32, bfloat16 or uint8 codes.
      mu_exponents: uint8, the exponents of the blocks of codes; None beside a moment
        that is not coded.
      nu_exponents: the same for nu.
    """

    place: int
    numbers: Sequence[int]
    params: Sequence[Any]
    grads: Sequence[Any]
    mu: Any
    nu: Any
    mu_exponents: Any = None
    nu_exponents: Any = None


class Stepped(NamedTuple):
    """A group after the step.

    Attributes:
      params: the new parameters.
      mu: the first moment as it is stored, and so on as in `Group`.
    """

    params: list[Any]
    mu: Any
    nu: Any
    mu_exponents: Any = None
    nu_exponents: Any = None


class Scalars(NamedTuple):
    """The numbers of one step, each a float or a float32 scalar.

    The complements come separately, because 1 - b1 of a float is rounded once, of an
    array twice. Weights are 1 where the bias is not corrected; `look_ahead` is, with
    nesterov, the weight that mu has seen over the weight after one more step.
    """

    b1: ArrayLike
    one_minus_b1: ArrayLike
    b2: ArrayLike
    one_minus_b2: ArrayLike
    learning_rate: ArrayLike
    eps: ArrayLike
    eps_root: ArrayLike
    weight_decay: ArrayLike
    mu_weight: ArrayLike
    nu_weight: ArrayLike
    look_ahead: ArrayLike = 1.0


class Counts(NamedTuple):
    """Steps before this one, int32 scalars.

    Attributes:
      moments: as `scale_by_moments` counts them.
      params: as `round_to_params` counts them.
    """

    moments: ArrayLike
    params: ArrayLike


class Seeds(NamedTuple):
    """The seeds of the random bits with which moments and parameters are rounded."""

    mu: int = 0
    nu: int = 0
    params: int = 0


def available() -> bool:
    """Return whether the library was built, can be loaded and suits this jaxlib."""
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, if `available()`; the first call registers it with XLA."""
    # An editable install has the library in a folder of its own.
    folders = [pathlib.Path(folder) for folder in adam_jax.fused.cpu.__path__]
    for path in [path for f in folders for path in sorted(f.glob("adam_step.*"))]:
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError:  # of another machine, or half a file
            continue
        # XLA would refuse a newer one as it starts, and so not start at all.
        if loaded.AdamJaxFfiMinorVersion() <= _ffi_minor_version():
            jax.ffi.register_ffi_target(
                _TARGET, jax.ffi.pycapsule(loaded.AdamJaxStep), platform="cpu"
            )
            return loaded
    return None


def _ffi_minor_version() -> int:
    """Return the version of XLA's FFI in jaxlib, which only its header tells."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h")
    if not header.is_file():
        return -1
    [version] = re.findall(r"#define XLA_FFI_API_MINOR (\d+)", header.read_text())
    return int(version)


def call(
    groups: Sequence[Group],
    scalars: Scalars,
    counts: Counts,
    *,
    rounding: Literal["nearest", "stochastic"],
    decays: Sequence[bool],
    seeds: Seeds,
    nesterov: bool = False,
) -> list[Stepped]:
    """Step every leaf, natively, in the memory of its arrays.

    XLA first copies what is needed still, as are arguments that are not donated.

    Args:
      groups: the leaves to step.
      scalars: the hyperparameters and weights of this step.
      counts: the steps before this one, of which random bits are a hash.
      rounding: of new bfloat16 parameters: "nearest" rounds the update to bfloat16 and
        adds it, "stochastic" rounds the sum as `round_to_params` does.
      decays: for each group, whether `weight_decay * param` is added to its updates.
      seeds: of the random bits.
      nesterov: whether mu is read one step ahead.

    Returns:
      The groups after the step, in order.

    Raises:
      RuntimeError: when it runs (as `jax.errors.JaxRuntimeError`), if shapes or dtypes
        do not fit; the message names the leaf.
    """
    packed = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars])
    steps = jnp.stack([jnp.asarray(x, jnp.int32) for x in counts])
    stepped = []
    for first, last in _cut(groups):
        stepped += _call(
            groups[first:last],
            packed,
            steps,
            places=np.array([group.place for group in groups[first:last]], np.int32),
            decays=_flags(decays[first:last]),
            nesterov=nesterov,
            rounding=rounding,
            mu_seed=seeds.mu,
            nu_seed=seeds.nu,
            param_seed=seeds.params,
        )
    return stepped


def _cut(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Cut groups into calls, each from one group up to another."""
    ends, arrays, elements = [0], 0, 0
    for i, group in enumerate(groups):
        count, size = 3 * len(group.numbers) + 2 * len(_stored(group)), group.mu.size
        arrays, elements = arrays + count, elements + size
        if arrays > _ARRAYS_IN_A_CALL or elements > _ELEMENTS_IN_A_CALL:
            ends, arrays, elements = [*ends, i], count, size
    ends = [*ends, len(groups)]
    # The first group may have been too large for any call.
    return [(first, last) for first, last in itertools.pairwise(ends) if first < last]


def _call(
    groups: Sequence[Group], scalars: jax.Array, counts: jax.Array, **attributes: Any
) -> list[Stepped]:
    """Step groups in one XLA call."""
    operands, results, aliases = [scalars, counts], [], {}

    def replace(operand, *sources):
        aliases[len(operands)] = len(results)
        operands.append(operand)
        results.append(_type(operand, [operand, *sources]))

    for group in groups:
        moments = [group.mu, group.nu]
        for param, grad in zip(group.params, group.grads, strict=True):
            replace(param, grad, *moments)
            operands.append(grad)
        for name in _stored(group):
            replace(getattr(group, name), *group.grads)
    flat = iter(
        jax.ffi.ffi_call(_TARGET, results, input_output_aliases=aliases)(
            *operands,
            group_sizes=np.array([len(g.numbers) for g in groups], np.int32),
            leaf_numbers=np.array([n for g in groups for n in g.numbers], np.int32),
            mu_coded=_flags(group.mu_exponents is not None for group in groups),
            nu_coded=_flags(group.nu_exponents is not None for group in groups),
            **attributes,
        )
    )
    return [
        Stepped(
            [next(flat) for _ in group.numbers],
            **{name: next(flat) for name in _stored(group)},
        )
        for group in groups
    ]


def _flags(values: Iterable[bool]) -> np.ndarray:
    return np.array([*values], np.int32)


def _type(like: jax.Array, sources: Sequence[jax.Array]) -> Any:
    """Return the type of a result, which in a shard_map varies as its sources do."""
    if jax.typeof(like).sharding.mesh.empty:
        return jax.ShapeDtypeStruct(like.shape, like.dtype)
    # Those of another shape, scales and what shares moments, vary in the same way.
    wide = [x.astype(jnp.float32) for x in sources if x.shape == like.shape]
    return jax.eval_shape(
        lambda *xs: functools.reduce(jnp.add, xs).astype(like.dtype), *wide
    )


def _stored(group: Group) -> list[str]:
    """Return which of a group's arrays are kept from step to step, in order."""
    names = ("mu", "nu", "mu_exponents", "nu_exponents")
    return [name for name in names if getattr(group, name) is not None]
