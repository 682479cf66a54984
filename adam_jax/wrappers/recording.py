"""Watch an optimizer at work: record figures of its steps inside its state.

`record(tx)` computes the figures that it is asked for inside `update`, and keeps the
latest in its state; `named_figures` turns them into plain floats for a logger.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from adam_jax.figures.definitions import (
    FIGURES,
    QUANTILES,
    Figure,
    MissingError,
    Step,
    step_bound,
)
from adam_jax.figures.measuring import Measured, measure
from adam_jax.hyperparams import Hyperparam, at, check_non_negative
from adam_jax.stages.flow import expect_state, expect_updates, expect_whole
from adam_jax.stages.gathering import MomentsState
from adam_jax.states.reading import find_nodes, read_moments


class RecordState(NamedTuple):
    """State of `record`.

    Attributes:
      inner_state: of the wrapped optimizer.
      count: int32 scalar, the calls of update so far.
      figures: `Measured` by the figure's name, of the last call that was measured; 0
        before the first.
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
) -> optax.GradientTransformationExtraArgs:
    """Keep figures of the latest step of an optimizer in its state.

    Updates and inner state are those of `tx` (XLA may contract other products, in the
    last bit). Read one figure with `optax.tree.get(state, "update_norm").total`, all of
    them with `named_figures`.

    A measured call runs `tx` twice, once for the figures alone: XLA then needs no
    memory for what both share. So put what is costly, or calls back, outside of it; and
    guards inside, `record(skip_nonfinite(tx))`, to see what they skip.

    Args:
      tx: the optimizer to watch, or a chain of stages; extra arguments of `update`
        reach it. None watches the updates that arrive, as the last stage of a chain:
        there are no figures of gradients and moments then.
      figures: names of `FIGURES`, or figures of your own by name; None: those that can
        be had of `tx`, without the quantiles, which take long to compile.
      learning_rate: as it was given to `tx`, for the figures that count in learning
        rates. A schedule is read at the count of `tx`'s moments.
      bound: the largest step to be expected, in learning rates: `step_bound(b1, b2)`.
      every: measure each so many-th call; those between cost nothing (except under
        vmap, where every call is measured).

    Raises:
      ValueError: for an unknown figure, one that needs what `tx` does not have, and one
        that needs parameters where update() is called without them.

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
    inner = optax.with_extra_args_support(tx or optax.identity())
    chosen = _choose(figures)
    if learning_rate is not None:
        learning_rate = check_non_negative(
            "learning_rate", learning_rate, half_precision=True
        )
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
            moments=read_moments(after, updates),
            updates=updates,
            params=params,
            learning_rate=rate,
        )
        # Nobody differentiates a figure: their roots have no derivative at 0.
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
                # Arrays of their own: a buffer cannot be donated twice.
                measured[name] = jax.tree.map(
                    lambda x: jnp.zeros(x.shape, x.dtype), shapes
                )
        return RecordState(inner_state, calls, measured)

    def update_fn(updates, state, params=None, **extra_args):
        expect_updates(updates, "record")
        expect_state(state, RecordState, "record")
        grads, before = updates, state.inner_state
        count = jnp.asarray(optax.safe_increment(state.count))

        def look(_):
            updates, after = inner.update(grads, before, params, **extra_args)
            expect_whole(updates, "record")
            step = see(grads, updates, params, before, after, state.count)
            measured = measure({name: chosen[name] for name in state.figures}, step)
            return jax.tree.map(
                lambda new, old: new.astype(old.dtype), measured, state.figures
            )

        if every == 1:
            measured = look(None)
        else:
            measured = lax.cond(count % every == 0, look, lambda _: state.figures, None)
        # The step itself waits for the look (below -inf there is nothing) and shares
        # nothing with it: XLA then keeps no copy of what the step overwrites.
        looked = [jnp.all(~(m.leaves < -jnp.inf)) for m in measured.values()]
        looked = jnp.all(jnp.array(looked, bool))
        grads = jax.tree.map(lambda g: jnp.where(looked, g, jnp.zeros_like(g)), grads)
        updates, inner_state = inner.update(grads, before, params, **extra_args)
        return updates, RecordState(inner_state, count, measured)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def named_figures(state: Any, params: Any) -> dict[str, float]:
    """Return the figures in an optimizer state as {"name/path": float}, for a logger.

    Call it on the host: it waits for the step. The figure of the whole tree goes by its
    name alone; quantiles go by "name/q50" and "name/q50/path".

    Args:
      state: a state that holds one `RecordState`, anywhere.
      params: the parameters, for their paths.

    Raises:
      ValueError: if the state holds none, several or a batch of them, or one of other
        leaves than these (inside `optax.masked` it is of those that the mask leaves).
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
      state: a state that holds one `RecordState`, which records `nonfinite`.
      params: the parameters, for their paths.

    Raises:
      ValueError: if it does not; or as `named_figures` does.
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
    return nodes[0]


def _paths(params: Any, recorded: RecordState) -> list[str]:
    name = jax.tree_util.keystr
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for measured in recorded.figures.values():
        if len(measured.leaves) != len(leaves):
            raise ValueError(
                f"record() saw {len(measured.leaves)} leaves, these parameters have "
                f"{len(leaves)}: pass the tree that it saw; inside a mask, with "
                "optax.MaskedNode() in the place of masked leaves."
            )
    return [name(path, simple=True, separator="/") for path, _ in leaves]


def _choose(figures: Any) -> Mapping[str, Figure]:
    if figures is None:
        return {k: v for k, v in FIGURES.items() if not k.endswith("_quantiles")}
    if isinstance(figures, Mapping):
        return figures
    if isinstance(figures, str):
        raise ValueError(f"figures must be a sequence of names: [{figures!r}].")
    for name in figures:
        if name not in FIGURES:
            raise ValueError(
                f"there is no figure {name!r}: choose from {', '.join(FIGURES)}, or "
                "pass a dict of figures of your own."
            )
    return {name: FIGURES[name] for name in figures}
