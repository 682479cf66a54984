"""Watch an optimizer at work: record figures of its steps in its state.

`record(tx)` computes the chosen figures inside `update` and keeps the latest ones in
its state. `named_figures` turns them into plain floats for a logger.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adam_jax.checks import prune
from adam_jax.figures.definitions import (
    QUANTILES,
    Figure,
    Step,
    choose_figures,
    step_bound,
)
from adam_jax.figures.leaves import MissingError
from adam_jax.figures.measuring import Measured, measure
from adam_jax.figures.native_sums import wait, wait_if_large
from adam_jax.hyperparams import (
    Hyperparam,
    at,
    check_no_schedule,
    check_non_negative,
)
from adam_jax.placement import AxisName
from adam_jax.recipes.notes import note_watch
from adam_jax.recipes.recipe import Watch
from adam_jax.stages.flow import (
    expect_optimizer,
    expect_state,
    expect_updates,
    expect_values,
    expect_whole,
)
from adam_jax.stages.gathering import MomentsState
from adam_jax.states.parts import drop_boxes
from adam_jax.states.reading import find_nodes, read_averages


class RecordState(NamedTuple):
    """State of `record`.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      count: int32 scalar, the number of calls of update so far.
      figures: dict from a figure's name to its `Measured`, from the last call that was
        measured; 0 before the first.
    """

    inner_state: Any
    count: Any
    figures: dict[str, Measured]


def record(
    tx: optax.GradientTransformation | None = None,
    figures: Sequence[str] | Mapping[str, Figure] | None = None,
    *,
    learning_rate: Hyperparam | None = None,
    bound: float = step_bound(0.9, 0.999),
    every: int = 1,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Record figures of the latest step of an optimizer in its state.

    Updates and inner state are those of `tx`. (XLA may fuse different products, which
    changes the last bit.) Read one figure with
    `optax.tree.get(state, "update_norm").total`, all of them with `named_figures`.

    On TPU and GPU, XLA sums the figures in the loop that takes the step, and reads
    nothing twice. On CPU the native step of `fused.step` does, where it steps all
    leaves and nothing outside of `record` changes the updates (quantiles and figures of
    your own excepted). Elsewhere on CPU, and in a call that is measured out of `every`,
    `tx` runs twice, once for the figures alone; for float32 leaves of up to 8,192
    elements, once. So put whatever is costly, or calls back to the host, outside
    `record`. Put guards inside, as in
    `record(skip_nonfinite(tx))`, to see what they skip.

    Args:
      tx: the optimizer to watch, or a chain of stages; it receives the extra arguments
        of `update`. None watches the updates that arrive, as the last stage of a chain;
        then there are no figures of gradients and moments.
      figures: names from `FIGURES`, or a dict of your own figures by name. None means
        all that `tx` allows, except the quantiles, which take long to compile.
      learning_rate: the learning rate of `tx`, for figures in units of it. A schedule
        is read at the count of `tx`'s moments.
      bound: the largest step to be expected, in learning rates: `step_bound(b1, b2)`.
      every: measure one call out of this many; the others cost nothing. (Under vmap
        every call is measured.)
      axis_name: in a `jax.shard_map`, the axes along which devices hold pieces of the
        leaves, as in `measure`: figures are those of the whole. `in_shard_map` names
        them.

    Raises:
      ValueError: if a figure is unknown or needs something that `tx` does not have, if
        it needs parameters and update() is called without them, or if the state holds
        other figures.
      TypeError: at the first trace, if the state is not a `RecordState`.

    Example: of two bfloat16 parameters, 1.0 is too large for a step of 1e-3.

      >>> import adam_jax
      >>> tx = record(adam_jax.adam(1e-3), ["signal_to_noise", "swallowed"])
      >>> params = {"w": jnp.array([1.0, 0.1], jnp.bfloat16)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> for name, value in named_figures(state, params).items():
      ...     print(f"{name} {value:.2f}")
      signal_to_noise 1.00
      signal_to_noise/w 1.00
      swallowed 0.50
      swallowed/w 0.50
    """
    inner = optax.identity() if tx is None else tx
    expect_optimizer(inner, "record")
    inner = optax.with_extra_args_support(inner)
    chosen = choose_figures(figures)
    if learning_rate is not None:
        learning_rate = check_non_negative(
            "learning_rate", learning_rate, half_precision=True
        )
    bound = check_no_schedule("bound", check_non_negative("bound", bound))
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a positive number of steps, got {every!r}.")

    def see(grads, updates, params, before, after, calls):
        nodes = find_nodes(before, MomentsState)
        past = nodes[0].count if nodes else calls
        rate = None
        if learning_rate is not None:
            rate = jnp.asarray(at(learning_rate, past, float))
        step = Step(
            grads=None if tx is None else grads,
            moments=read_averages(inner.init, after, updates),
            updates=updates,
            params=params,
            learning_rate=rate,
        )
        # Figures are not to be differentiated: their roots have no derivative at 0.
        return lax.stop_gradient(step)._replace(bound=bound)

    def init_fn(params):
        inner_state = inner.init(params)
        calls = jnp.zeros([], jnp.int32)
        measured = {}
        for name, figure in chosen.items():

            def try_out(params, inner_state, name=name, figure=figure):
                step = see(params, params, params, inner_state, inner_state, 0)
                return measure({name: figure}, step)[name]

            try:
                shapes = jax.eval_shape(try_out, params, inner_state)
            except MissingError:
                if figures is not None:
                    raise
            else:
                # Separate arrays: a buffer cannot be donated twice.
                measured[name] = jax.tree.map(
                    lambda x: jnp.zeros(x.shape, x.dtype), shapes
                )
        return RecordState(inner_state, calls, measured)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "record")
        expect_state(state, RecordState, "record", can_wrap=True)
        params = prune(params, updates)
        named = set() if figures is None else {*chosen}
        if not named <= {*state.figures} <= {*chosen}:
            raise ValueError(
                f"record() keeps {', '.join(chosen)}, but its state holds "
                f"{', '.join(state.figures) or 'no figures'}: name the same ones, or "
                "start from tx.init(params) and keep inner_state."
            )
        given, before = updates, state.inner_state
        count = jnp.asarray(optax.safe_increment(state.count))

        kept = {name: chosen[name] for name in state.figures}
        wanted = jnp.bool_(True) if every == 1 else count % every == 0

        def look(names):
            old = {name: state.figures[name] for name in names}

            def look_now(_):
                updates, after = inner.update(given, before, params, **extra_args)
                expect_whole(updates, "record")
                step = see(given, updates, params, before, after, state.count)
                figures = {name: kept[name] for name in names}
                measured = measure(figures, step, axis_name=axis_name)
                return jax.tree.map(
                    lambda new, old: new.astype(old.dtype), measured, old
                )

            if every == 1:
                measured = look_now(None)
            else:
                measured = lax.cond(wanted, look_now, lambda _: old, None)
            # All in one array: XLA would write an "and" of several into every loop.
            found = [m.leaves.reshape(-1) for m in measured.values()]
            found = jnp.concatenate(found) if found else jnp.zeros(0)
            return measured, jnp.all(~(found < -jnp.inf))

        measured, looked = look([*kept])
        if every == 1:
            grads = lax.platform_dependent(
                given, looked, cpu=wait_if_large, default=_go_on
            )
        else:
            grads = wait(given, looked)
        updates, inner_state = inner.update(grads, before, params, **extra_args)
        note_watch(
            Watch(
                figures=kept,
                found=measured,
                old=state.figures,
                wanted=wanted,
                grads=None if tx is None else grads,
                updates=updates,
                params=params,
                before=before,
                step=lambda: see(
                    grads, updates, params, before, inner_state, state.count
                ),
                look=look,
                looked=looked,
                axis_name=axis_name,
            )
        )
        return updates, RecordState(inner_state, count, measured)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _go_on(grads: Any, looked: jax.Array) -> Any:
    """Return the gradients: XLA sees that the step is the one that was measured.

    Then it makes one loop of both, which reads and writes each array once.
    """
    del looked
    return grads


def named_figures(state: Any, params: Any) -> dict[str, float]:
    """Return the figures in an optimizer state as {"name/path": float}, for a logger.

    Call it on the host: it waits for the step to finish. The key of a figure of the
    whole tree is its name alone. The keys of quantiles are "name/q50" and
    "name/q50/path". Boxes of Flax are left out: `kernel.value` is "kernel".

    Args:
      state: a state that contains one `RecordState`, at any depth.
      params: the parameters, for their paths.

    Raises:
      ValueError: if the state contains no `RecordState`, several, or a batch of them;
        or if its leaves are not those of params. (Inside `optax.masked` they are the
        leaves that the mask selects.)

    Example: the norms of the gradients of two leaves, and of both together.

      >>> import adam_jax
      >>> params = {"w": jnp.array([3.0, 4.0]), "b": jnp.float32(12)}
      >>> tx = record(adam_jax.adam(1e-3), ["gradient_norm"])
      >>> _, state = tx.update(params, tx.init(params))
      >>> print(named_figures(state, params))
      {'gradient_norm': 13.0, 'gradient_norm/b': 12.0, 'gradient_norm/w': 5.0}
    """
    recorded = _recorded(state)
    paths = _paths(params, recorded)
    flat = {}
    for name, measured in jax.device_get(recorded.figures).items():
        total, leaves = np.asarray(measured.total), np.asarray(measured.leaves)
        parts = [f"/{quantile}" for quantile in QUANTILES] if total.ndim else [""]
        columns = leaves.reshape(len(paths), len(parts)).T
        for part, value, column in zip(parts, total.reshape(-1), columns, strict=True):
            flat[name + part] = float(value)
            for path, x in zip(paths, column, strict=True):
                flat[f"{name}{part}/{path}"] = float(x)
    return flat


def first_nonfinite(state: Any, params: Any) -> str | None:
    """Return the path of the first leaf whose gradient was not finite, or None.

    Args:
      state: a state that contains one `RecordState`, which records `nonfinite`.
      params: the parameters, for their paths.

    Raises:
      ValueError: if the state does not record `nonfinite`, or for the reasons that
        `named_figures` gives.

    Example: the second of three leaves has a NaN.

      >>> import adam_jax
      >>> tx = record(adam_jax.adam(1e-3), ["nonfinite"])
      >>> grads = {"a": jnp.ones(2), "b": jnp.array([1, jnp.nan]), "c": jnp.ones(2)}
      >>> _, state = tx.update(grads, tx.init(grads))
      >>> print(first_nonfinite(state, grads))
      b
    """
    recorded = _recorded(state)
    if "nonfinite" not in recorded.figures:
        raise ValueError("the state records no 'nonfinite': name it in record().")
    counts = np.asarray(recorded.figures["nonfinite"].leaves)
    bad = (path for path, n in zip(_paths(params, recorded), counts, strict=True) if n)
    return next(bad, None)


def _recorded(state: Any) -> RecordState:
    nodes = find_nodes(state, RecordState)
    if len(nodes) != 1:
        raise ValueError(
            f"expected one RecordState in the state, found {len(nodes)}: wrap the "
            "optimizer in record()."
        )
    if np.ndim(nodes[0].count):
        raise ValueError(
            "the state is a batch of states (vmap): take one, as in "
            "jax.tree.map(lambda x: x[0], state)."
        )
    expect_values(nodes[0].count, "figures")
    return nodes[0]


def _paths(params: Any, recorded: RecordState) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for measured in recorded.figures.values():
        if len(measured.leaves) != len(leaves):
            raise ValueError(
                f"record() saw {len(measured.leaves)} leaves, these parameters have "
                f"{len(leaves)}: pass the tree that it saw. Inside a mask, replace the "
                "masked leaves by optax.MaskedNode()."
            )
    kept = drop_boxes([path for path, _ in leaves])
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in kept]
