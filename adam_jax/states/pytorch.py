"""Optimizer states of PyTorch, for `adopt_state`. PyTorch is not imported."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adam_jax.states.bitsandbytes import as_torch
from adam_jax.states.foreign import ForeignState, as_array, check_paths

# PyTorch's names, of all its optimizers that have a counterpart here.
_FIELDS = {
    "exp_avg": "mu",
    "grad_avg": "mu",
    "exp_avg_sq": "nu",
    "square_avg": "nu",
    "exp_inf": "nu",
    "sum": "nu",
    "max_exp_avg_sq": "raw_nu_max",
    "momentum_buffer": "trace",
}
# How the axes of a kernel are ordered in Flax and Keras, by their number.
TURNED: dict[int, tuple[int, ...]] = {
    2: (1, 0),
    3: (2, 1, 0),
    4: (2, 3, 1, 0),
    5: (2, 3, 4, 1, 0),
}


def read_torch(
    state_dict: Mapping[str, Any],
    params: Any,
    paths: Sequence[str],
    *,
    turned: Callable[[str], bool | tuple[int, ...]] | None = None,
) -> list[ForeignState]:
    """Return a PyTorch optimizer's state in a form that `adopt_state` continues.

    The new optimizer must mean the same as the old one:

      torch.optim             here
      AdamW                   adamw(lr, weight_decay=wd)
      Adam                    adam(lr)
      Adam(weight_decay)      chain(add_decayed_weights(wd), adam(lr))
      Adam(amsgrad=True)      chain(scale_by_moments(b1, b2), running_max(),
                              bias_correct(), precondition(eps), scale_by_lr(lr)), with
                              raw_nu_max as nu_max in the states that this returns. The
                              maximum of `amsgrad` is of corrected moments
      Adamax                  adamax(lr)
      RAdam                   radam(lr, eps=lambda n: eps / sqrt(1 - b2 ** (n + 1)))
      RMSprop                 rmsprop(lr, alpha, eps, eps_in_sqrt=False), with centered
                              and momentum as there
      Adagrad                 chain(scale_by_moments(None, total(initial)),
                              precondition(eps), scale_by_lr(lr))
      SGD                     sgd(lr, momentum), with nesterov as there

      bitsandbytes            here, whether its states are of 8 bits or 32
      Adam, AdamW             adamw(lr, weight_decay=wd): it is decoupled in both
      Lion                    lion(lr, b1, b2, weight_decay=wd)
      RMSprop                 rmsprop(lr, alpha, eps, eps_in_sqrt=False)
      Adagrad                 as above
      SGD                     sgd(lr, momentum)
      weight_decay of these   add_decayed_weights(wd) before each of the last three

    Give each its eps: PyTorch's defaults are not always Optax's. With dampening d, put
    `optax.scale(1 - d)` before `sgd`. NAdam's momentum follows a schedule of its own in
    PyTorch, so its state is refused. Parameters that had no gradient there have no
    moments, and `adopt_state` starts them.

    On CUDA, Adam of bitsandbytes decays the parameter after its step, which is
    `adamw(lr * (1 - lr * wd), weight_decay=wd / (1 - lr * wd))`. RMSprop's momentum and
    SGD's dampening and nesterov do nothing in bitsandbytes: leave them out. (With
    dampening, SGD's state is taken for that of Lion.) AdEMAMix, LAMB and LARS are
    refused.

    Args:
      state_dict: what `optimizer.state_dict()` returned, of tensors or NumPy arrays.
      params: the parameters to go on with.
      paths: for each parameter of the old optimizer, in its order (that of
        `model.named_parameters()`, if it was made from `model.parameters()`), its path
        in params, such as "dense/kernel".
      turned: a function from a path to whether the axes of this parameter lie in
        another order there: (out, in) for a kernel (in, out), and likewise for
        convolutions. It may return the order itself, as for `numpy.transpose`: that of
        a transposed convolution in Flax is (2, 3, 0, 1). None finds out from the shapes
        whether it is turned.

    Raises:
      ValueError: if state_dict is none of an optimizer; if paths do not fit the state
        or params; if a shape does not fit; if shapes do not tell whether a parameter is
        turned, as for a square kernel; for a state with something that has no
        counterpart.

    Example: after two steps with a kernel of shape (1, 2) there and (2, 1) here.

      >>> import jax.numpy as jnp, adam_jax
      >>> moments = {"exp_avg": np.ones((1, 2)), "exp_avg_sq": np.ones((1, 2))}
      >>> groups = [{"params": [0]}]
      >>> old = {"state": {0: {"step": 2, **moments}}, "param_groups": groups}
      >>> params = {"dense": {"kernel": jnp.ones((2, 1))}}
      >>> state = read_torch(old, params, ["dense/kernel"])
      >>> adopted = adam_jax.adopt_state(adam_jax.adam(1e-3), state, params)
      >>> print(adopted.placed, adopted.state[0].mu["dense"]["kernel"].shape)
      ('count', 'mu/dense/kernel', 'nu/dense/kernel') (2, 1)
    """
    order = list_order(state_dict)
    paths, known = list(paths), {index for index, _ in order}
    strange = [index for index in state_dict["state"] if index not in known]
    if strange:
        raise ValueError(
            f"the old state has a parameter {strange[0]!r}, which is in no group: keys "
            "are the numbers in param_groups."
        )
    shapes = check_paths(paths, params)
    if len(paths) != len(order):
        raise ValueError(
            f"the old optimizer has {len(order)} parameters, but there are "
            f"{len(paths)} paths: give one for each, in its order."
        )
    found: dict[int | None, dict[str, dict[str, np.ndarray]]] = {}
    for (index, group), path in zip(order, paths, strict=True):
        kept = as_torch(state_dict["state"].get(index, {}), group, path)
        if not kept:
            continue  # it had no gradient
        step = kept.pop("step", None)
        own = found.setdefault(None if step is None else int(as_array(step).item()), {})
        for key, value in kept.items():
            if value is None:
                continue
            if key not in _FIELDS:
                raise ValueError(
                    f"PyTorch's {key!r}, of {path}, has no counterpart here."
                )
            turn = turned(path) if turned else None
            moment = fit_axes(as_array(value), shapes[path], turn, path)
            if key == "momentum_buffer" and "square_avg" in kept:
                if "lr" not in group:
                    raise ValueError("RMSprop's momentum needs the lr of its group.")
                rate = as_array(group["lr"]).item()
                moment = -rate * moment  # here it follows the rate
            own.setdefault(_FIELDS[key], {})[path] = moment
    return [ForeignState(count, **trees) for count, trees in found.items()]


def list_order(state_dict: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """Return the numbers of an optimizer's parameters, each with its group, in order.

    Args:
      state_dict: what `optimizer.state_dict()` returned.

    Raises:
      ValueError: if it is something else, such as a whole checkpoint.
    """
    keys = [*state_dict] if isinstance(state_dict, Mapping) else []
    if not {"state", "param_groups"} <= {*keys}:
        found = ", ".join(map(str, keys[:5])) or type(state_dict).__name__
        raise ValueError(
            f"state_dict must have state and param_groups, got {found}: pass what "
            "optimizer.state_dict() returned, without what lies beside it in a file."
        )
    groups = state_dict["param_groups"]
    return [(index, group) for group in groups for index in group["params"]]


def fit_axes(
    x: np.ndarray,
    shape: tuple[int, ...],
    turn: bool | tuple[int, ...] | None,
    path: str,
    back: bool = False,
) -> np.ndarray:
    """Return an array with its axes in the order of a parameter.

    Args:
      x: the array.
      shape: of the parameter.
      turn: whether its axes lie in another order in PyTorch, or the order there; None
        finds out from the shape.
      path: of the parameter, for messages.
      back: whether the parameter is PyTorch's.

    Raises:
      ValueError: if the shape does not fit, or does not tell the order.
    """
    axes = turn if isinstance(turn, tuple) else TURNED.get(x.ndim)
    axes = tuple(np.argsort(axes)) if back and axes else axes
    turn = True if isinstance(turn, tuple) else turn
    other = x if axes is None else x.transpose(axes)
    if turn is None and axes and x.shape == other.shape == shape:
        raise ValueError(
            f"the shape {shape} of {path} does not tell whether its axes lie in "
            "another order in PyTorch: pass turned, as in "
            "turned=lambda path: path.endswith('kernel')."
        )
    for y in (x, other) if turn is None else (other if turn else x,):
        if y.shape == shape:
            return y
    raise ValueError(
        f"{path} has shape {shape}, but its moment in the old state {x.shape}"
        + (", turned." if turn else ".")
    )
