"""The fused optimizers: which leaves take the native step, and what the others do.

The composed chain of stages is the reference, and the way out: on other platforms, for
other dtypes and formats, under vmap, differentiated, or on a mesh. Its are also the
errors, and, run on no leaves, the counts and weights.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType

from adam_jax import numerics
from adam_jax.accumulators import ema
from adam_jax.formats import Format, Storage, as_format, decode_blocks, decode_dense
from adam_jax.fused import native
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_decay,
    check_non_negative,
    exact,
)
from adam_jax.packing import Packed, check_fits, packed
from adam_jax.rounding import RoundToParamsState, round_to_params
from adam_jax.transforms import MomentsState, bias_correct, scale_by_moments
from adam_jax.updates import Mask, add_decayed_weights, precondition, scale_by_lr

Rounding = Literal["stochastic", "nearest"]


class Fused(optax.GradientTransformation):
    """An Optax transformation that has a step of its own.

    Attributes:
      init: as of any transformation; the state is that of the composed optimizer.
      update: as of any transformation.
      step: (params, grads, state) -> (params, state), in one pass: in place where the
        arguments are donated to the jitted function that calls it.
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]

    def __new__(cls, init: Any, update: Any, step: Any):
        """Make the pair that Optax knows, and give it the step."""
        self = super().__new__(cls, init, update)
        self.step = step
        return self


def adam(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    nesterov: bool = False,
    nu_dtype: Storage = None,
    bias_correction: bool = True,
    rounding: Rounding = "stochastic",
    packed: bool = False,
) -> Fused:
    """Adam in one pass; arguments as in `adam_jax.adam`, and those of `adamw` below."""
    return _fuse(
        {
            "learning_rate": learning_rate,
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "eps_root": eps_root,
        },
        mu_dtype,
        nu_dtype,
        None,
        nesterov,
        bias_correction,
        rounding,
        packed,
    )


def adamw(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    weight_decay: Hyperparam = exact(1e-4),
    mask: Mask = None,
    *,
    nesterov: bool = False,
    nu_dtype: Storage = None,
    bias_correction: bool = True,
    rounding: Rounding = "stochastic",
    packed: bool = False,
) -> Fused:
    """AdamW in one pass; arguments as in `adam_jax.adamw`, and these:

    Args:
      bias_correction: False leaves `bias_correct()` out of the chain.
      rounding: how `step` rounds new bfloat16 parameters: as `round_to_params` does, or
        to the nearest, which loses updates smaller than 1/512 of their parameter.
        `update` emits updates, which `round_to_params(fused.adamw(...))` can round.

    Example: a training step that donates what it replaces.

      >>> tx = adamw(1e-3)
      >>> params = {"w": jnp.ones((64, 64))}
      >>> step = jax.jit(tx.step, donate_argnums=(0, 2))
      >>> params, state = step(params, {"w": jnp.ones((64, 64))}, tx.init(params))
      >>> print(f"{params['w'][0, 0]:.7f}")  # 1 - 1e-3 * (1 + 1e-4)
      0.9989999

    Reference: Loshchilov & Hutter 2017, Algorithm 2.
    """
    return _fuse(
        {
            "learning_rate": learning_rate,
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "eps_root": eps_root,
            "weight_decay": weight_decay,
        },
        mu_dtype,
        nu_dtype,
        mask,
        nesterov,
        bias_correction,
        rounding,
        packed,
    )


def backend() -> Literal["native", "xla"]:
    """Return what computes fused steps here: native code, or XLA.

    It is XLA on other platforms than CPU, and where the package was installed without
    a C++ compiler.
    """
    on_cpu = jax.default_backend() == "cpu"
    return "native" if on_cpu and native.available() else "xla"


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "adam_jax was installed without its native library, so fused optimizers run "
        "through XLA, with the same results. With a C++ compiler, pip install "
        "--force-reinstall adam_jax builds it.",
        stacklevel=4,
    )


class _Options(NamedTuple):
    """What of a fused optimizer is fixed when it is traced.

    Attributes:
      fixed: the hyperparameters that are floats or schedules, by name.
      mu_format: how mu is stored.
      nu_format: how nu is stored.
      mask: which parameters decay, as in `add_decayed_weights`.
      nesterov: whether mu looks one step ahead.
      bias_correction: whether moments are corrected.
      rounding: of new bfloat16 parameters.
      packed: whether small leaves share buffers for their moments.
    """

    fixed: dict[str, Any]
    mu_format: Format
    nu_format: Format
    mask: Mask
    nesterov: bool
    bias_correction: bool
    rounding: Rounding
    packed: bool


def _fuse(
    hyperparams: dict[str, Any],
    mu_dtype: Storage,
    nu_dtype: Storage,
    mask: Mask,
    nesterov: bool,
    bias_correction: bool,
    rounding: Rounding,
    packed: bool,
) -> Fused:
    if rounding not in ("stochastic", "nearest"):
        raise ValueError(
            f"rounding must be 'stochastic' or 'nearest', got {rounding!r}."
        )
    checked = {}
    for name, value in hyperparams.items():
        if name in ("b1", "b2"):
            checked[name] = check_decay(name, value)
        else:
            half = name in ("learning_rate", "weight_decay")
            checked[name] = check_non_negative(name, value, half_precision=half)
    # Arrays may be tracers, which no function below may close over.
    arrays = {k: v for k, v in checked.items() if isinstance(v, jax.Array)}
    options = _Options(
        {k: v for k, v in checked.items() if k not in arrays},
        as_format("mu_dtype", mu_dtype),
        as_format("nu_dtype", nu_dtype),
        mask,
        nesterov,
        bias_correction,
        rounding,
        packed,
    )
    if not native.available() and jax.default_backend() == "cpu":
        _warn_once()
    tx = _compose(options, arrays)
    run_step = _dispatch(options)

    def step(params, grads, state):
        return run_step(arrays, params, grads, state)

    return Fused(tx.init, tx.update, step)


def _compose(options: _Options, arrays: Any) -> optax.GradientTransformation:
    """Return the optimizer whose step is native."""
    if not options.packed:
        return _chain(options, arrays, options.mask)
    if options.mask is None:
        return packed(_chain(options, arrays, None))
    return packed(functools.partial(_chain, options, arrays), mask=options.mask)


def _chain(options: _Options, arrays: Any, mask: Mask) -> optax.GradientTransformation:
    h = options.fixed | arrays
    stages = [
        scale_by_moments(
            b1=ema(h["b1"], nesterov=options.nesterov),
            b2=h["b2"],
            mu_dtype=options.mu_format,
            nu_dtype=options.nu_format,
        )
    ]
    if options.bias_correction:
        stages += [bias_correct()]
    stages += [precondition(eps=h["eps"], eps_root=h["eps_root"])]
    if "weight_decay" in h:
        stages += [add_decayed_weights(h["weight_decay"], mask)]
    return optax.chain(*stages, scale_by_lr(h["learning_rate"]))


def _dispatch(options: _Options) -> Callable[..., Any]:
    """Return (arrays, params, grads, state) -> (new params, new state)."""
    composed = functools.partial(_composed, options)
    fused = functools.partial(_native, options)

    @custom_vmap
    def switch(*operands):
        return jax.lax.platform_dependent(*operands, cpu=fused, default=composed)

    @switch.def_vmap
    def vectorise(axis_size, batched, *operands):
        axes = jax.tree.map(lambda b: 0 if b else None, batched)
        mapped = jax.vmap(composed, in_axes=axes, axis_size=axis_size)(*operands)
        return mapped, jax.tree.map(lambda _: True, mapped)

    choose = jax.custom_jvp(switch)

    @choose.defjvp
    def differentiate(primals, tangents):
        return jax.jvp(composed, primals, tangents)

    @jax.jit
    def run(*operands):
        return (choose if _suit(options, *operands) else composed)(*operands)

    return run


def _composed(
    options: _Options, arrays: Any, params: Any, grads: Any, state: Any
) -> tuple[Any, Any]:
    """Do it with the chain."""
    tx = _compose(options, arrays)
    if options.rounding == "nearest" or not _has_bfloat16(params):
        updates, state = tx.update(grads, state, params)
    else:
        rounding = round_to_params(tx)
        rounded: Any = RoundToParamsState(state, state[0].count)
        updates, rounded = rounding.update(grads, rounded, params)
        state = rounded.inner_state
    return optax.apply_updates(params, updates), state


def _native(
    options: _Options, arrays: Any, params: Any, grads: Any, state: Any
) -> tuple[Any, Any]:
    """Do it in native code. The chain, given no leaves, says what else it keeps."""
    before = state[0]
    names = ("mu", "nu", "mu_scales", "nu_scales")
    kept = {k: getattr(before, k) for k in names if getattr(before, k) is not None}
    nothing = (before._replace(**dict.fromkeys(kept, ())), *state[1:])
    no_mask = None if options.mask is None else ()
    state_after: Any = _chain(options, arrays, no_mask).update((), nothing, ())[1]
    after, *others = state_after
    h = options.fixed | arrays
    groups = _groups(params, grads, before)
    stepped = native.call(
        groups,
        _scalars(h, options, state, after.weights[:, 0]),
        before.count,
        rounding=options.rounding,
        decays=_decays(options, params, before)
        if "weight_decay" in h
        else [False] * len(groups),
        nesterov=options.nesterov,
        seeds=native.Seeds(options.mu_format.seed, options.nu_format.seed),
    )
    moments = {
        name: jax.tree.structure(tree).unflatten([getattr(x, name) for x in stepped])
        for name, tree in kept.items()
    }
    placed = {
        number: param
        for group, after in zip(groups, stepped, strict=True)
        for number, param in zip(group.numbers, after.params, strict=True)
    }
    out = [placed[i] for i in range(len(placed))]
    new_params = jax.tree.structure(params).unflatten(out)
    return new_params, (after._replace(**moments), *others)


def _groups(params: Any, grads: Any, moments: MomentsState) -> list[native.Group]:
    """Return what the native step takes; float16 gradients widened.

    Raises:
      ValueError, AssertionError: if the trees differ in structure.
    """
    leaves, structure = jax.tree.flatten(grads)
    given = structure.flatten_up_to(params)
    narrow = [jnp.asarray(x) for x in leaves]
    wide = [numerics.widen(x) if x.dtype == jnp.float16 else x for x in narrow]
    if isinstance(moments.mu, Packed):
        check_fits(moments.mu.layout, grads)
        numbers, structure = moments.mu.layout.groups, jax.tree.structure(moments.mu)
    else:
        numbers = [(i,) for i in range(len(leaves))]
    trees = (moments.mu, moments.nu, moments.mu_scales, moments.nu_scales)
    columns = [
        [None] * len(numbers) if tree is None else structure.flatten_up_to(tree)
        for tree in trees
    ]
    return [
        native.Group(group, [given[i] for i in group], [wide[i] for i in group], *row)
        for group, *row in zip(numbers, *columns, strict=True)
    ]


def _scalars(
    h: dict[str, Any], options: _Options, state: Any, weights: jax.Array
) -> native.Scalars:
    """Return the numbers of this step, as the stages of the chain come to them."""
    past = state[0].count

    def scheduled(name, stage_state):
        # A stage that follows a schedule keeps its count, and nothing else.
        counts = jax.tree.leaves(stage_state)
        return at(h[name], counts[0] if counts else past, jnp.float32)

    b1, b2 = (at(h[name], past, jnp.float32) for name in ("b1", "b2"))
    one = jnp.ones([], jnp.float32)
    mu_weight, nu_weight = weights if options.bias_correction else (one, one)
    decay = scheduled("weight_decay", state[-2]) if "weight_decay" in h else 0.0
    return native.Scalars(
        b1=b1,
        one_minus_b1=1 - b1,
        b2=b2,
        one_minus_b2=1 - b2,
        learning_rate=scheduled("learning_rate", state[-1]),
        eps=at(h["eps"], past, jnp.float32),
        eps_root=at(h["eps_root"], past, jnp.float32),
        weight_decay=decay,
        mu_weight=mu_weight,
        nu_weight=nu_weight,
        look_ahead=weights[0] / (b1 * weights[0] + (1 - b1)),
    )


def _decays(options: _Options, params: Any, moments: MomentsState) -> list[bool]:
    """Return which groups the mask lets decay."""
    if isinstance(moments.mu, Packed):
        return list(moments.mu.layout.marks)
    mask = True if options.mask is None else options.mask
    mask = mask(params) if callable(mask) else mask
    return [bool(x) for x in jax.tree.leaves(jax.tree.broadcast(mask, params))]


def _has_bfloat16(params: Any) -> bool:
    leaves = jax.tree.leaves(params)
    return any(numerics.dtype_of(leaf) == jnp.bfloat16 for leaf in leaves)


def _suit(options: _Options, _arrays: Any, params: Any, grads: Any, state: Any) -> bool:
    """Return whether native code can step these leaves."""
    formats = {options.mu_format.decode, options.nu_format.decode}
    if not native.available() or not formats <= {decode_dense, decode_blocks}:
        return False
    if any(map(_on_mesh, jax.tree.leaves((params, grads, state)))):
        return False
    try:
        groups = _groups(params, grads, state[0])
    except (ValueError, AssertionError):
        return False  # the chain has a word to say
    return all(map(_suits, groups))


def _on_mesh(operand: Any) -> bool:
    """Return whether a leaf may be sharded by XLA, which does not know how."""
    mesh = jax.typeof(operand).sharding.mesh
    return not mesh.empty and any(t != AxisType.Manual for t in mesh.axis_types)


def _suits(group: native.Group) -> bool:
    """Return whether the native step knows the shapes and dtypes of a group."""
    floats = (jnp.float32, jnp.bfloat16)
    shapes = [jnp.shape(param) for param in group.params]
    alone = len(shapes) == 1
    stored = shapes[0] if alone else (sum(map(math.prod, shapes)),)
    return (
        shapes == [jnp.shape(grad) for grad in group.grads]
        and jnp.shape(group.mu) == jnp.shape(group.nu) == stored
        and all(numerics.dtype_of(x) in floats for x in (*group.params, *group.grads))
        and group.mu.dtype in ((*floats, jnp.int8) if alone else floats)
        and group.nu.dtype in ((*floats, jnp.uint8) if alone else floats)
    )
