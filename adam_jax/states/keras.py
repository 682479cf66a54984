"""Optimizer states of Keras 3, for `adopt_state`, and back. Keras is not imported."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adam_jax.hyperparams import shown
from adam_jax.states.foreign import ForeignState, Held, hold_moments
from adam_jax.states.keras_variables import Slot, arrange
from adam_jax.states.parts import iterate_nodes

# What Keras keeps, and what of ours may mean something else.
_UNLIKE = (("raw_nu_max", "nu_max"), ("scaled_trace", "trace"))


def read_keras(
    variables: Mapping[str, Any] | Sequence[Any],
    params: Any,
    paths: Sequence[str],
    optimizer: Mapping[str, Any],
) -> list[ForeignState]:
    """Return a Keras 3 optimizer's state in a form that `adopt_state` continues.

    The new optimizer must mean the same as the old one:

      keras.optimizers    here
      Adam, AdamW         chain(scale_by_moments(b1, b2), correct_step_size(),
                          precondition(eps), scale_by_lr(lr)). It is adam with eps as in
                          `lambda n: eps / sqrt(1 - b2 ** (n + 1))`
      amsgrad=True        the same with running_max() before correct_step_size(), and
                          raw_nu_max as nu_max in the states that this returns
      Adamax              chain(scale_by_moments(b1, infinity_norm(b2)),
                          bias_correct(), precondition(eps), scale_by_lr(lr))
      Nadam               nadam(lr), once its schedule of momentum is at its end: after
                          some 700 steps at the default decay rates
      RMSprop             rmsprop(lr, rho, eps), with centered and momentum as there
      Adagrad             adagrad(lr), with initial_accumulator_value and eps as there
      SGD                 sgd(lr, momentum), with nesterov as there, and the same lr
                          from now on. If lr follows a schedule there,
                          chain(scale_by_lr(lr), scale_by_trace(momentum, nesterov)),
                          and scaled_trace as trace in the states that this returns
      Lion                lion(lr, weight_decay=wd), 0 if there is none
      weight_decay        add_decayed_weights(wd, mask) before scale_by_lr. Where a
                          trace follows, optax.add_decayed_weights(-lr * wd) at the end
      clipnorm            optax.projections.projection_l2_ball, of each gradient alone
      global_clipnorm     optax.clip_by_global_norm
      clipvalue           optax.clip
      gradient_...        optax.MultiSteps(tx, gradient_accumulation_steps). Schedules
                          count gradients there: `lambda n: schedule(k * n + k - 1)`
      use_ema             optax.incremental_update(params, average, 1 - ema_momentum),
                          with average from the states that this returns

    Give each its eps: Keras' default is 1e-7. That of weight_decay is 0.004 in AdamW.
    The scale of a LossScaleOptimizer is left out: give gradients that are not scaled.

    Args:
      variables: `model.optimizer.variables`, or their arrays, in this order; or a
        mapping of names to them in this order, such as
        `{v.path: np.asarray(v) for v in model.optimizer.variables}`; or the group
        "optimizer/vars" of "model.weights.h5", which a `.keras` archive holds.
      params: the parameters to go on with. They must lie as they did there.
      paths: for each of `model.trainable_variables`, in this order, its path in params,
        such as "dense/kernel".
      optimizer: the old one as `keras.optimizers.serialize(model.optimizer)`. In a
        `.keras` archive, "config.json" holds it under "compile_config", "optimizer".
        What it lacks is as Keras has it by default: `{"class_name": "Adam"}` will do.

    Raises:
      ValueError: if variables are not those of such an optimizer with such parameters;
        if paths do not fit params; for a state with something that has no counterpart.

    Example: after two steps.

      >>> import jax.numpy as jnp, adam_jax
      >>> params = {"dense": {"kernel": jnp.ones((2, 1))}}
      >>> variables = {
      ...     "adam/iteration": np.int32(2),
      ...     "adam/learning_rate": np.float32(1e-3),
      ...     "adam/dense_kernel_momentum": np.ones((2, 1)),
      ...     "adam/dense_kernel_velocity": np.ones((2, 1)),
      ... }
      >>> state = read_keras(
      ...     variables, params, ["dense/kernel"], {"class_name": "Adam"}
      ... )
      >>> adopted = adam_jax.adopt_state(adam_jax.adam(1e-3), state, params)
      >>> print(adopted.placed, adopted.state[0].count)
      ('count', 'mu/dense/kernel', 'nu/dense/kernel') 2
    """
    kept = arrange(variables, params, paths, optimizer)
    count = kept.count
    if kept.name == "Nadam":
        _check_schedule(count, kept.config)
    trees: dict[str, dict[str, np.ndarray]] = {}
    for slot, value in kept.values.items():
        if slot.path is not None and slot.field is not None:
            value = value / kept.scale_of(slot.field)
            trees.setdefault(slot.field, {})[slot.path] = value
    return [ForeignState(count, **trees)]


def write_keras(
    state: Any,
    variables: Mapping[str, Any] | Sequence[Any],
    params: Any,
    paths: Sequence[str],
    optimizer: Mapping[str, Any],
    *,
    count: int | None = None,
) -> list[Any]:
    """Return variables with which a Keras 3 optimizer continues a state.

    It is the inverse of `read_keras`, whose table says which optimizer there is which
    one here:

        model.optimizer.build(model.trainable_variables)
        variables = model.optimizer.variables
        optimizer = keras.optimizers.serialize(model.optimizer)
        written = adam_jax.write_keras(state, variables, params, paths, optimizer)
        for variable, value in zip(variables, written):
            variable.assign(value)

    Args:
      state: the state, of this package or of Optax, or what `read_state` returned.
      variables: as in `read_keras`, of the new optimizer. Its averages of weights are
        returned as they are, and so is its learning rate.
      params: the parameters that the state belongs to.
      paths: as in `read_keras`.
      optimizer: as in `read_keras`, of the new optimizer.
      count: the number of steps; needed if the state has no count.

    Returns:
      The values of all variables, in Keras' order.

    Raises:
      ValueError: as in `read_keras`; if the state holds a moment for which that
        optimizer has no place, or lacks one that it needs; for a maximum, or a trace of
        scaled updates, that `read_keras` did not return: give a `ForeignState` that has
        it as `raw_nu_max` or `scaled_trace`; if steps are not the same for all.

    Example: one step was taken here.

      >>> import jax.numpy as jnp, adam_jax
      >>> params = {"w": jnp.ones(2)}
      >>> tx = adam_jax.adam(1e-3)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> fresh = [np.int32(0), np.float32(1e-3), np.zeros(2), np.zeros(2)]
      >>> written = write_keras(state, fresh, params, ["w"], {"class_name": "Adam"})
      >>> print(written[0], written[2])
      1 [0.1 0.1]
    """
    kept = arrange(variables, params, paths, optimizer)
    held = hold_moments(state, count)
    held.expect_all()
    if any(getattr(node, "mini_step", 0) for node in iterate_nodes(state)):
        raise ValueError(
            "gradients have been added up for the next step, which write_keras does "
            "not write: take that step first."
        )
    counts = {*held.counts.values()}
    if len(counts) != 1:
        raise ValueError(
            f"Keras has one count of steps, but the state has {shown(sorted(counts))}"
            + ("." if counts else ": pass count.")
        )
    [count] = counts
    places = {(x.field, x.path) for x in kept.values if x.field and x.path}
    places = {(field, path) for field, path in places if field != "average"}
    _expect_moments(held, places, kept.name)

    def write(slot: Slot, fresh: np.ndarray) -> Any:
        if slot.ending == "iteration":
            return count * kept.every
        if slot.ending == "variable":  # of Nadam
            return np.prod([_decay(n, kept.config) for n in range(1, count + 1)])
        if (slot.field, slot.path) not in places:
            return fresh
        field, path = slot.field or "", slot.path or ""
        return held.moments[field][path] * kept.scale_of(field)

    return kept.wrapping + [
        np.asarray(write(slot, fresh), fresh.dtype)
        for slot, fresh in kept.values.items()
    ]


def _expect_moments(held: Held, places: set[tuple[str, str]], name: str) -> None:
    """Refuse moments that are not those of Keras' optimizer.

    Args:
      held: the moments of a state.
      places: the names of the moments that Keras keeps, and the paths of parameters.
      name: the class of the optimizer.

    Raises:
      ValueError: if it keeps others.
    """
    there = {(field, path) for field, own in held.moments.items() for path in own}
    others = places ^ {(field, path) for field, path in there if field != "average"}
    if not others:
        return
    field, path = min(others)
    alike = [x for pair in _UNLIKE if field in pair for x in pair if x != field]
    found = [x for x in alike if (x, path) in others]
    sides = "the state", f"Keras' {name}, as it is configured,"
    has, lacks = sides if (field, path) in there else sides[::-1]
    raise ValueError(
        f"{has} has {field} of {path}, but {lacks} has not"
        + (f": {found[0]} means something else." if found else ".")
    )


def _check_schedule(count: int, config: Mapping[str, Any]) -> None:
    """Refuse a state of Nadam while its schedule of momentum matters."""
    slowest = max(0.96, config.get("beta_1", 0.9))  # as what is left of it falls
    needed = math.ceil(math.log(1e-12, slowest))
    if count < needed:
        raise ValueError(
            f"Keras' Nadam follows a schedule of momentum until step {needed}, which "
            f"has no counterpart here, and this state has taken {count}: let it take "
            "the others there, or start anew."
        )


def _decay(step: int, config: Mapping[str, Any]) -> float:
    """Return Nadam's decay rate of the first moment in a step."""
    return config.get("beta_1", 0.9) * (1 - 0.5 * 0.96**step)
