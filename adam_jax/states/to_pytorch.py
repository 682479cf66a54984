"""Moments for an optimizer of PyTorch. PyTorch is not imported."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adam_jax.hyperparams import shown
from adam_jax.states.foreign import expect_each_once, hold_moments
from adam_jax.states.pytorch import fit_axes, list_order

_ADAM = {"mu": "exp_avg", "nu": "exp_avg_sq"}
# By a key that a group has for this optimizer and for none above it: PyTorch's names.
_FIELDS: dict[str, dict[str, str]] = {
    "momentum_decay": {},  # NAdam
    "amsgrad": _ADAM | {"raw_nu_max": "max_exp_avg_sq"},
    "decoupled_weight_decay": _ADAM,  # RAdam
    "betas": {"mu": "exp_avg", "nu": "exp_inf"},  # Adamax
    "alpha": {"mu": "grad_avg", "nu": "square_avg", "trace": "momentum_buffer"},
    "lr_decay": {"nu": "sum"},  # Adagrad
    "dampening": {"trace": "momentum_buffer"},  # SGD
}


def write_torch(
    state: Any,
    state_dict: Mapping[str, Any],
    paths: Sequence[str],
    shapes: Sequence[Sequence[int]],
    *,
    count: int | None = None,
    turned: Callable[[str], bool | tuple[int, ...]] | None = None,
) -> dict[str, Any]:
    """Return a state_dict with which a PyTorch optimizer continues a state.

    It is the inverse of `read_torch`, whose docstring says which optimizer there is
    which one here. NumPy arrays in it must become tensors:

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        shapes = [p.shape for p in model.parameters()]
        written = adam_jax.write_torch(state, optimizer.state_dict(), paths, shapes)
        for own in written["state"].values():
            own.update({key: torch.from_numpy(x) for key, x in own.items()})
        optimizer.load_state_dict(written)

    Args:
      state: the state, of this package or of Optax, or what `read_state` returned.
      state_dict: that of the new optimizer, whose groups are kept.
      paths: for each of its parameters, in its order, the path here, such as
        "dense/kernel".
      shapes: their shapes there.
      count: the number of steps; needed if the state has no count.
      turned: as in `read_torch`: whether the axes of a parameter lie in another order
        there, or the order; None finds out from the shapes.

    Raises:
      ValueError: if the state holds a moment for which that optimizer has no place, or
        lacks one that it needs; for NAdam, and for AMSGrad but after `read_torch`,
        whose meaning is another there; if paths or shapes do not fit.

    Example: one step was taken here.

      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((2, 1))}}
      >>> tx = adam_jax.adamw(1e-3)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> group = {"params": [0], "betas": (0.9, 0.999), "amsgrad": False}
      >>> new = {"state": {}, "param_groups": [group]}
      >>> written = write_torch(state, new, ["dense/kernel"], [(1, 2)])
      >>> print(written["state"][0]["step"], written["state"][0]["exp_avg"])
      1.0 [[0.1 0.1]]
    """
    held = hold_moments(state, count)
    held.expect_all()
    order = list_order(state_dict)
    for name, given in (("paths", paths), ("shapes", shapes)):
        if len(given) != len(order):
            raise ValueError(
                f"the new optimizer has {len(order)} parameters, but there are "
                f"{len(given)} {name}: give one for each, in its order."
            )
    expect_each_once(paths)
    strange = {path for tree in held.moments.values() for path in tree} - {*paths}
    if strange:
        raise ValueError(
            f"the state has moments of {shown(min(strange))}, which is not among paths."
        )
    written: dict[Any, dict[str, np.ndarray]] = {}
    for (index, group), path, shape in zip(order, paths, shapes, strict=True):
        own = {name: tree[path] for name, tree in held.moments.items() if path in tree}
        if not own:
            continue  # it starts anew
        fields = _choose_fields(group)
        _expect_fields(own, group, fields, path)
        turn = turned(path) if turned else None
        written[index] = {
            fields[name]: np.array(
                fit_axes(x, tuple(shape), turn, path, back=True), order="C"
            )
            for name, x in own.items()
        }
        if "alpha" in group and "trace" in own:  # here it follows the rate
            written[index]["momentum_buffer"] /= -np.asarray(group["lr"])
        if "dampening" not in group:
            if path not in held.counts:
                raise ValueError(
                    "the state does not say how many steps were taken: pass count."
                )
            step = np.asarray(held.counts[path], np.float32)
            written[index] = {"step": step, **written[index]}
    return {**state_dict, "state": written}


def _choose_fields(group: Mapping[str, Any]) -> dict[str, str]:
    """Return what PyTorch calls the moments of an optimizer with such a group."""
    if "t_alpha" in group:
        raise ValueError(
            "an optimizer of bitsandbytes is read, but not written: write to that of "
            "torch.optim."
        )
    for key, fields in _FIELDS.items():
        if key in group:
            return fields
    raise ValueError(
        f"PyTorch's optimizer has no counterpart here: its groups have "
        f"{', '.join(map(str, group))}."
    )


def _expect_fields(
    own: Mapping[str, Any],
    group: Mapping[str, Any],
    fields: Mapping[str, str],
    path: str,
) -> None:
    """Refuse moments that are not those of PyTorch's optimizer.

    Args:
      own: the moments of a parameter.
      group: its group.
      fields: what PyTorch calls them.
      path: of the parameter.

    Raises:
      ValueError: if it has others.
    """
    if "momentum_decay" in group:
        raise ValueError(
            "NAdam's momentum follows a schedule of its own in PyTorch: its state has "
            "no counterpart here."
        )
    needed = {*fields} - {
        *(() if group.get("amsgrad") else ("raw_nu_max",)),
        *(() if "alpha" not in group or group.get("centered") else ("mu",)),
        *(() if "alpha" not in group or group.get("momentum") else ("trace",)),
    }
    if {*own} != needed:
        raise ValueError(
            f"{path} has the moments {', '.join(sorted(own))}, but that optimizer of "
            f"PyTorch keeps {', '.join(sorted(needed)) or 'none'}"
            + (
                ", a maximum of moments before their correction."
                if "nu_max" in own or "raw_nu_max" in needed
                else "."
            )
        )
