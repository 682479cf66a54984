"""The step: which programs use a kernel, and what the others do.

The reference is the optimizer's own `update`, followed by `optax.apply_updates`. It is
also the fallback: on other platforms, under vmap, in derivatives, on a mesh, and for
everything that the kernel does not know.
"""

import functools
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.extend.backend import get_backend
from jax.extend.core import jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from adam_jax.checks import check_arrays, prune
from adam_jax.choice import choose, is_sharded
from adam_jax.fused.accumulation import take_apart
from adam_jax.fused.dispatch import kernels
from adam_jax.fused.figures import Reading, find_readings
from adam_jax.fused.plan import Call, make_plan
from adam_jax.native import library
from adam_jax.recipes.notes import collecting
from adam_jax.stages.flow import expect_optimizer, expect_whole

Step = Callable[..., tuple[Any, Any]]


def step(tx: optax.GradientTransformation) -> Step:
    """Return the step of an optimizer, in one pass over memory where possible.

    It is `tx.update` followed by `optax.apply_updates`, with the same state. On CPU,
    native code steps Adam and AdamW (also `nadam`, `nadamw`, `simplified_adam`, and the
    same stages in your own chain). Parameters may be float32 or bfloat16; moments may
    be stored in float32, bfloat16 or 8 bits. On NVIDIA GPUs and on TPUs, a Pallas
    kernel steps the leaves of these optimizers that have 8-bit moments (if both have,
    in blocks of one size); the others XLA fuses by itself. On TPUs, such a leaf must
    have blocks of 8, 16, 32, 64 or 128 elements, and two axes or more, of which the
    last two fill half of their tiles of 8 x 128. All other leaves, and all on other
    platforms, go through XLA, and so do programs for several devices, outside of a
    shard_map.

    Anything may come before the optimizer: clipping, zero_nans, L2. Wrappers around it
    must pass updates and new moments on unchanged, as do `optax.chain`, `masked`,
    `multi_transform`, `inject_hyperparams` and `named_chain`. Of the other wrappers,
    `packed`, `record`, `round_to_params`, `skip_nonfinite` and `skip_spikes` are known,
    and `optax.MultiSteps`, if it is outermost. Optimizers in other wrappers that choose
    between old and new state, such as `optax.apply_if_finite`, go through XLA, and so
    do steps with callbacks or checks. (Where `MultiSteps` takes no step, a NaN changes
    nothing; in Optax, 0 * NaN makes the parameters NaN.)

    Args:
      tx: any gradient transformation.

    Returns:
      (params, grads, state, **extra_args) -> (params, state). It works in place if you
      donate params and state to the jitted function that calls it. It passes extra
      arguments to `tx`. Those that are not arrays compile the step for each new value.
      Where grads has None, params stay as they are, whatever they are.

    Warns:
      UserWarning: on CPU, if the package was installed without its native library.

    Example: clipping, then AdamW with moments in bfloat16.

      >>> import adam_jax, jax.numpy as jnp
      >>> adamw = adam_jax.adamw(1e-3, mu_dtype="bfloat16", nu_dtype="bfloat16")
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), adamw)
      >>> params, grads = jnp.ones((64, 64)), jnp.full((64, 64), 3.0)
      >>> update = jax.jit(step(tx), donate_argnums=(0, 2))
      >>> params, state = update(params, grads, tx.init(params))
      >>> print(f"{params.mean():.4f}")
      0.9990

    Reference: Loshchilov & Hutter 2017, Algorithm 2.
    """
    expect_optimizer(tx, "fused.step")
    if not library.available() and jax.default_backend() == "cpu":
        _warn_once()

    update = tx.update
    if not isinstance(update, Hashable):
        update = functools.partial(update)  # which is

    def run(params: Any, grads: Any, state: Any, **extra_args: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(extra_args)
        arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
        others = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        stepped = prune(params, grads)
        try:
            made, state = _run(
                update, (structure, others), stepped, grads, state, arrays
            )
        except TypeError:  # jit speaks of its own arguments
            check_arrays(stepped, "params")
            check_arrays(grads, "grads")
            raise
        return (made if stepped is params else _graft(made, params)), state

    return run


def backend() -> Literal["native", "pallas", "xla"]:
    """Return which code computes fused steps here: "native", "pallas" or "xla".

    It is "native" on CPU, unless the package was installed without a C++ compiler;
    "pallas" on NVIDIA GPUs and on TPUs, for 8-bit moments; and "xla" elsewhere.
    """
    version = get_backend().platform_version
    platform = "cuda" if "cuda" in version else jax.default_backend()
    names: Any = {"cpu": "native", "cuda": "pallas", "tpu": "pallas"}
    return names[platform] if platform in kernels() else "xla"


def _graft(params: Any, whole: Any) -> Any:
    """Return `whole` with the leaves of `params`; where these have None, its own."""
    leaves, structure = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    pairs = zip(leaves, structure.flatten_up_to(whole), strict=True)
    return structure.unflatten([old if new is None else new for new, old in pairs])


def _is_array(x: Any) -> bool:
    numbers = (jax.Array, np.ndarray, np.generic, int, float, complex)
    return isinstance(x, numbers) and not isinstance(x, bool)


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "adam_jax was installed without its native library, so fused steps run "
        "through XLA, with the same results. To build the library, install a C++ "
        "compiler and run pip install --force-reinstall adam_jax.",
        stacklevel=3,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(
    update: Any, fixed: Any, params: Any, grads: Any, state: Any, arrays: Any
) -> tuple[Any, Any]:
    """Take one step."""
    _check_order(params, grads, state)
    arguments, others = fixed  # structure of the extra arguments, those not arrays
    extra_args = arguments.unflatten(
        [x if y is None else y for x, y in zip(arrays, others, strict=True)]
    )
    update = take_apart(update)
    given, structure = jax.tree.flatten((params, grads, state))

    def trace(*given):
        """Return the result of the step, and the operands of the kernel calls."""
        nonlocal calls, readings
        params, grads, state = structure.unflatten(given)
        with collecting() as notes:
            updates, after = update(grads, state, params, **extra_args)
        expect_whole(updates, "fused.step")
        made = optax.apply_updates(params, updates), after
        calls, operands, readings, watched = [], [], [], []
        if not any(map(is_sharded, given)):
            calls, operands = make_plan(notes, params, updates, after)
            emitted = jax.tree.structure(params).flatten_up_to(updates)
            readings, watched = find_readings(
                notes.watches, calls, operands, emitted, after
            )
        return made, operands, watched

    calls: list[Call] = []
    readings: list[Reading] = []
    jaxpr, shapes = jax.make_jaxpr(trace, return_shape=True)(*given)
    number, made = len(jax.tree.leaves(params)), jax.tree.structure(shapes[0])
    # Of each output, its number.
    shape = jax.tree.structure(shapes)
    outputs, operands, watched = shape.unflatten(range(shape.num_leaves))
    outputs = jax.tree.leaves(outputs)

    def fuse(kernel, chosen):
        """Return the function that leaves these calls to a kernel."""
        summed = [
            (reading, own)
            for reading, own in zip(readings, watched, strict=True)
            if hasattr(kernel, "step_and_sum") and reading.calls <= {*chosen}
        ]
        replaced = {leaf for i in chosen for leaf in calls[i].replaces(number)}
        replaced |= {number + i for reading, _ in summed for i in reading.replaces}
        kept = {i: output for i, output in enumerate(outputs) if i not in replaced}
        arrays = {i: operands[i] for i in chosen}

        def fused(*values):
            known = {}
            for _, own in summed:
                [known[own.looked]] = _compute(jaxpr, [own.others_looked], values)
            asked = [own.asked for _, own in summed]
            leaves, given, asked = _compute(jaxpr, (kept, arrays, asked), values, known)
            sums = {}
            for i in chosen:
                ask = None
                for (reading, _), own in zip(summed, asked, strict=True):
                    if i in reading.calls:
                        ask = reading.ask(own, i, calls[i])
                stepped, rows = calls[i].step(kernel, given[i], number, ask)
                leaves |= stepped
                sums |= {(i, k): row for k, row in enumerate(rows)}
            for reading, own in summed:
                rows = [sums[leaf] for leaf in reading.leaves]
                known |= dict(zip(own.sums, rows, strict=True))
                figures = _compute(jaxpr, own.figures, values, known)
                places = [number + i for i in reading.replaces]
                leaves |= dict(zip(places, figures, strict=True))
            return [leaves[i] for i in range(len(outputs))]

        return fused

    def composed(*values):
        return _compute(jaxpr, outputs, values)

    fused = {}
    if calls and not _needs_its_trace(jaxpr):
        for platform, kernel in kernels().items():
            chosen = [i for i, call in enumerate(calls) if platform in call.platforms]
            if chosen:
                fused[platform] = fuse(kernel, chosen)
    values = [*jaxpr.consts, *given]  # `fused` must not close over tracers
    results = (choose(fused, composed) if fused else composed)(*values)
    return made.unflatten(results)


def _check_order(params: Any, grads: Any, state: Any) -> None:
    """Refuse arguments in the order of `update`, whose last ones are params."""
    like_params, like_grads, last = map(jax.tree.structure, (params, grads, state))
    if like_params != like_grads and last in (like_params, like_grads):
        raise TypeError(
            "fused.step(tx) takes (params, grads, state), but the last argument has "
            "the structure of another one: call it with the state last. (tx.update "
            "takes grads, state, params.)"
        )


def _compute(
    closed: Any, wanted: Any, values: Sequence[Any], known: Mapping[int, Any] = {}
) -> Any:
    """Return outputs of a jaxpr, and trace nothing else.

    Args:
      closed: the jaxpr.
      wanted: a pytree of numbers of its outputs.
      values: its constants and its inputs.
      known: the values of outputs that are not to be computed, by their numbers.
    """
    jaxpr = closed.jaxpr
    given = [jaxpr.outvars[i] for i in known]
    jaxpr = jaxpr.replace(
        constvars=[],
        invars=[*jaxpr.constvars, *jaxpr.invars, *given],
        eqns=[eqn for eqn in jaxpr.eqns if not {*eqn.outvars} & {*given}],
    )
    numbers, structure = jax.tree.flatten(wanted)
    used = [i in numbers for i in range(len(jaxpr.outvars))]
    pruned, _ = dce_jaxpr(jaxpr, used, instantiate=True)
    results = jaxpr_as_fun(type(closed)(pruned, []))(*values, *known.values())
    found = dict(zip(sorted({*numbers}), results, strict=True))
    return structure.unflatten([found[i] for i in numbers])


def _needs_its_trace(closed: Any) -> bool:
    """Return whether a step has checks, callbacks, or collectives over a vmapped axis.

    `choose` would hide them from the transformations that they are meant for.
    """
    mapped = jax.sharding.get_abstract_mesh().axis_names
    return any(getattr(effect, "name", None) not in mapped for effect in closed.effects)
