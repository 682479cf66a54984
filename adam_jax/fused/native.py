"""The native Adam step for CPUs: an XLA call into the library that the build made.

Here is the bare entry, over a flat list of leaves. Whether to take it, and what to do
under vmap or on a mesh, its callers decide.
"""

import ctypes
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import adam_jax.fused

_TARGET = "adam_jax_fused_step"
# 1,000 leaves of 64 elements compile in 1.2 s in calls of 32, in 1.5 s one by one, in
# 4.8 s by 256, in 64 s at once (jaxlib 0.12). The step takes equally long.
_LEAVES_IN_A_CALL = 32


class Leaf(NamedTuple):
    """One parameter's arrays, all of one shape but for the scales.

    Attributes:
      param: float32 or bfloat16; None in updates that do not need it.
      grad: float32 or bfloat16.
      mu: the first moment as it is stored: float32, bfloat16 or int8 codes.
      nu: the second moment as it is stored: float32, bfloat16 or uint8 codes.
      mu_scales: uint8, the exponents of the blocks of codes, of no elements beside a
        moment that is not coded (a scalar beside a scalar); None if the format has no
        scales.
      nu_scales: the same for nu.
    """

    param: Any
    grad: Any
    mu: Any
    nu: Any
    mu_scales: Any = None
    nu_scales: Any = None


class Stepped(NamedTuple):
    """One leaf after the step.

    Attributes:
      out: the update or the new parameter, in the parameter's dtype (the gradient's
        where there is no parameter).
      mu: the first moment as it is stored, and so on as in `Leaf`.
    """

    out: Any
    mu: Any
    nu: Any
    mu_scales: Any = None
    nu_scales: Any = None


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
    folders = [pathlib.Path(folder) for folder in adam_jax.fused.__path__]
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
    leaves: Sequence[Leaf],
    scalars: Scalars,
    count: ArrayLike,
    *,
    output: Literal["update", "nearest", "stochastic"],
    decays: Sequence[bool],
    seeds: Seeds,
    nesterov: bool = False,
    leaf_numbers: Sequence[int] | None = None,
    in_place: bool = True,
    reuse_grads: bool = False,
) -> list[Stepped]:
    """Step every leaf, natively.

    Args:
      leaves: all with a param or none; scales all present or all None.
      scalars: the hyperparameters and weights of this step.
      count: int32 scalar, the steps before this one, of which random bits are a hash.
      output: "update" returns updates; "nearest" and "stochastic" return new
        parameters, which differ where they are bfloat16: updates rounded to bfloat16
        and added, or the sum rounded as `round_to_params` does.
      decays: for each leaf, whether `weight_decay * param` is added to its update.
      seeds: of the random bits.
      nesterov: whether mu is read one step ahead.
      leaf_numbers: for each leaf, its place in the whole tree, of which random bits
        are a hash as well; None: its place in `leaves`.
      in_place: whether new moments and new parameters take the memory of the old. XLA
        first copies what is needed still, as are arguments that are not donated.
      reuse_grads: whether updates take the memory of gradients of their dtype.

    Returns:
      The leaves after the step, in order.

    Raises:
      RuntimeError: when it runs (as `jax.errors.JaxRuntimeError`), if shapes or dtypes
        do not fit; the message names the leaf.
    """
    if leaf_numbers is None:
        leaf_numbers = range(len(leaves))
    packed = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars])
    count = jnp.asarray(count, jnp.int32)
    stepped = []
    for start in range(0, len(leaves), _LEAVES_IN_A_CALL):
        group = slice(start, start + _LEAVES_IN_A_CALL)
        stepped += _call_group(
            leaves[group],
            packed,
            count,
            output,
            in_place,
            reuse_grads,
            leaf_numbers=np.array(leaf_numbers[group], np.int32),
            decays=np.array(decays[group], np.int32),
            nesterov=nesterov,
            mu_seed=seeds.mu,
            nu_seed=seeds.nu,
            param_seed=seeds.params,
        )
    return stepped


def _call_group(
    leaves: Sequence[Leaf],
    scalars: jax.Array,
    count: jax.Array,
    output: str,
    in_place: bool,
    reuse_grads: bool,
    **attributes: Any,
) -> list[Stepped]:
    """Step leaves in one XLA call."""
    operands, results, aliases = [scalars, count], [], {}
    for leaf in leaves:
        places = {}
        for name, operand in leaf._asdict().items():
            if operand is not None:
                places[name] = len(operands)
                operands.append(operand)
        like = leaf.grad if leaf.param is None else leaf.param
        if output != "update":
            source = "param" if in_place and leaf.param is not None else None
        else:
            reuse = reuse_grads and leaf.grad.dtype == like.dtype
            source = "grad" if reuse else None
        if source:
            aliases[places[source]] = len(results)
        results.append(_type(like, [leaf.param, leaf.grad, leaf.mu, leaf.nu]))
        for name in _stored(leaf):
            if in_place:
                aliases[places[name]] = len(results)
            moment = getattr(leaf, name)
            results.append(_type(moment, [moment, leaf.grad]))
    first = leaves[0]
    flat = iter(
        jax.ffi.ffi_call(_TARGET, results, input_output_aliases=aliases)(
            *operands,
            has_params=first.param is not None,
            mu_scaled=first.mu_scales is not None,
            nu_scaled=first.nu_scales is not None,
            output=output,
            **attributes,
        )
    )
    return [
        Stepped(next(flat), **{name: next(flat) for name in _stored(leaf)})
        for leaf in leaves
    ]


def _type(like: jax.Array, sources: Sequence[jax.Array | None]) -> Any:
    """Return the type of a result, which in a shard_map varies as its sources do."""
    if jax.typeof(like).sharding.mesh.empty:
        return jax.ShapeDtypeStruct(like.shape, like.dtype)
    wide = [x.astype(jnp.float32) for x in sources if x is not None]
    wide = [x for x in wide if x.shape == like.shape]  # scales have another
    return jax.eval_shape(
        lambda *xs: functools.reduce(jnp.add, xs).astype(like.dtype), *wide
    )


def _stored(leaf: Leaf) -> list[str]:
    """Return which of a leaf's arrays are kept from step to step, in order."""
    names = ("mu", "nu", "mu_scales", "nu_scales")
    return [name for name in names if getattr(leaf, name) is not None]
