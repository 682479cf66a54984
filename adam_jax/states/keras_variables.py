"""The variables of Keras 3 optimizers: which is which. Keras is not imported."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adam_jax.hyperparams import shown
from adam_jax.states.foreign import as_array, check_paths

# What each optimizer keeps for a parameter, by the end of the variable's name, and what
# it is here. What stands in one row is kept parameter by parameter, and rows follow one
# another. (A row is there if the function of its configuration says so.)
_ADAM = (
    ({"momentum": "mu", "velocity": "nu"}, lambda config: True),
    ({"velocity_hat": "raw_nu_max"}, lambda config: config.get("amsgrad")),
)
_ROWS = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Nadam": _ADAM[:1],
    "Adamax": (({"momentum": "mu", "norm": "nu"}, lambda config: True),),
    "RMSprop": (
        ({"velocity": "nu"}, lambda config: True),
        ({"momentum": "trace"}, lambda config: config.get("momentum", 0) > 0),
        ({"average_gradient": "mu"}, lambda config: config.get("centered")),
    ),
    "Adagrad": (({"accumulator": "nu"}, lambda config: True),),
    "SGD": (({"momentum": "trace"}, lambda config: config.get("momentum", 0) != 0),),
    "Lion": (({"momentum": "mu"}, lambda config: True),),
}
# What every optimizer keeps, before that.
_SUM = "gradient_accumulator"
_SHARED = (
    ({"average": "average"}, lambda config: config.get("use_ema")),
    ({_SUM: None}, lambda config: _accumulates(config) > 1),
)
_ENDINGS = {"iteration", "learning_rate"}.union(
    *(row for rows in (_SHARED, *_ROWS.values()) for row, _ in rows)
)
# So many numbers, or more, a LossScaleOptimizer keeps before the variables of the one
# that it wraps: four, and two of them again for each time that it was built.
_WRAPPED = 4


class Slot(NamedTuple):
    """A variable: the end of its name, what it is here, and its parameter, if any."""

    ending: str
    field: str | None = None
    path: str | None = None


class Kept(NamedTuple):
    """The variables of an optimizer.

    Attributes:
      name: the class of the optimizer.
      config: its configuration.
      wrapping: the values of what a LossScaleOptimizer keeps before them.
      values: the arrays of the variables.
    """

    name: str
    config: Mapping[str, Any]
    wrapping: list[Any]
    values: dict[Slot, np.ndarray]

    @property
    def every(self) -> int:
        """How many gradients make one step."""
        return _accumulates(self.config)

    @property
    def count(self) -> int:
        """The number of steps.

        Raises:
          ValueError: if some gradients have been added up for the next step.
        """
        every, iteration = self.every, int(self.values[Slot("iteration")].item())
        count, rest = divmod(iteration, every)
        sums = [x for slot, x in self.values.items() if slot.ending == _SUM]
        if rest or any(x.any() for x in sums):
            raise ValueError(
                f"at iteration {iteration}, gradients have been added up for a step of "
                f"{every}, which have no place here: save it at a multiple of {every}, "
                f"or set its iteration to {count * every} and these sums to 0, without "
                "them."
            )
        return count

    def scale_of(self, field: str) -> float:
        """Return what a moment there is of ours.

        Args:
          field: which moment it is.

        Raises:
          ValueError: if it is nothing of ours.
        """
        if field != "trace":
            return 1.0
        if self.name != "SGD":
            return -1.0  # what is subtracted there is added here
        rate = self.values[Slot("learning_rate")].item()
        if rate == 0:
            raise ValueError("SGD's momentum is of its learning rate, which is 0.")
        return -rate


def arrange(
    variables: Mapping[str, Any] | Sequence[Any],
    params: Any,
    paths: Sequence[str],
    optimizer: Mapping[str, Any],
) -> Kept:
    """Return the variables of an optimizer by what they are.

    Args:
      variables: as in `read_keras`.
      params: as in `read_keras`.
      paths: as in `read_keras`.
      optimizer: as in `read_keras`.

    Raises:
      ValueError: if variables are not those of such an optimizer with such parameters;
        if paths do not fit params.
    """
    paths = list(paths)
    shapes = check_paths(paths, params)
    name, config = _unwrap(optimizer)
    slots = _list_slots(name, config, paths)
    wrapping, given = _split_wrapping(_in_order(variables), len(slots))
    values = _fit(slots, given, shapes, name)
    return Kept(name, config, [x for _, x in wrapping], values)


def find_shapes(
    variables: Mapping[str, Any] | Sequence[Any],
    paths: Sequence[str],
    optimizer: Mapping[str, Any],
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return arrays of the shapes of parameters, by their paths, from their variables.

    Args:
      variables: as in `read_keras`.
      paths: as in `read_keras`.
      optimizer: as in `read_keras`.
    """
    slots = _list_slots(*_unwrap(optimizer), paths)
    _, given = _split_wrapping(_in_order(variables), len(slots))
    shapes = dict.fromkeys(paths, jax.ShapeDtypeStruct((), np.float32))
    for slot, (_, x) in zip(slots, given, strict=False):
        if slot.path is not None:
            shapes[slot.path] = jax.ShapeDtypeStruct(np.shape(x), np.float32)
    return shapes


def _split_wrapping(given: list[Any], kept: int) -> tuple[list[Any], list[Any]]:
    """Return what a LossScaleOptimizer keeps, and the variables of the one inside."""
    count = max(len(given) - kept, 0)
    if count < _WRAPPED or any(np.shape(x) for _, x in given[:count]):
        count = 0
    return given[:count], given[count:]


def _unwrap(optimizer: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the class and the configuration of an optimizer.

    Args:
      optimizer: as in `read_keras`. One that wraps another stands for that.

    Raises:
      ValueError: if it is no optimizer that has a counterpart.
    """
    if not isinstance(optimizer, Mapping) or "class_name" not in optimizer:
        raise ValueError(
            "optimizer must be what keras.optimizers.serialize(model.optimizer) "
            f"returned, such as {{'class_name': 'Adam'}}, got {shown(optimizer)}."
        )
    name, config = optimizer["class_name"], optimizer.get("config") or {}
    if "inner_optimizer" in config:
        return _unwrap(config["inner_optimizer"])
    if name not in _ROWS:
        raise ValueError(
            f"Keras' {name} has no counterpart here: those that have are "
            f"{', '.join(_ROWS)}."
        )
    return name, config


def _in_order(variables: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return variables with their names, or None, in Keras' order.

    Args:
      variables: as in `read_keras`.

    Raises:
      ValueError: if the order is that of their names: "dense_10" is before "dense_2".
    """
    if not isinstance(variables, Mapping):
        return [(getattr(x, "path", None), x) for x in variables]
    names = list(variables)
    if all(name.isdecimal() for name in names):  # in a file, "10" is before "2"
        return [(None, variables[name]) for name in sorted(names, key=int)]
    if names == sorted(names) != sorted(names, key=_by_numbers):
        raise ValueError(
            "variables are sorted by their names, as JAX and HDF5 do it: pass a list "
            "of them in Keras' order."
        )
    return [(name, variables[name]) for name in names]


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Return what sorts a name by the numbers in it."""
    pieces = re.split(r"(\d+)", name)
    return [(int(x), "") if x.isdecimal() else (0, x) for x in pieces]


def _accumulates(config: Mapping[str, Any]) -> int:
    """Return how many gradients make one step."""
    return config.get("gradient_accumulation_steps") or 1


def _list_slots(
    name: str, config: Mapping[str, Any], paths: Sequence[str]
) -> list[Slot]:
    """Return what an optimizer keeps, in Keras' order.

    Args:
      name: its class.
      config: its configuration.
      paths: for each of its parameters, in its order, the path here.
    """
    constant = isinstance(config.get("learning_rate", 0.0), int | float)
    slots = [Slot("iteration")] + [Slot("learning_rate")] * constant
    for row, is_there in (*_SHARED, *_ROWS[name]):
        if not is_there(config):
            continue
        if name == "SGD" and not constant:
            row = {
                key: x and x.replace("trace", "scaled_trace") for key, x in row.items()
            }
        kept = list(row.items())
        slots += [Slot(x, field, path) for path in paths for x, field in kept]
    if name == "Nadam":
        slots.append(Slot("variable"))  # the product of its decay rates
    return slots


def _fit(
    slots: list[Slot],
    given: list[tuple[Any, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
) -> dict[Slot, np.ndarray]:
    """Return the arrays of variables.

    Args:
      slots: what the optimizer keeps.
      given: variables with their names, or None, in the same order.
      shapes: those of the parameters, by their paths.
      name: the class of the optimizer.

    Raises:
      ValueError: if they are not those of the slots, in number, name or shape.
    """
    if len(given) != len(slots):
        number = len({slot.path for slot in slots if slot.path is not None})
        raise ValueError(
            f"{name}, as it is configured, keeps {len(slots)} variables of {number} "
            f"parameters, but there are {len(given)}: give the path of each trainable "
            "variable, and of variables with equal paths a list, not a mapping."
        )
    if name == "Nadam" and len(slots) > 3:  # in older versions, the product is first
        first = slots.index(next(slot for slot in slots if slot.ending == "momentum"))
        if np.shape(given[first][1]) == () != shapes[slots[first].path or ""]:
            slots = [*slots[:first], slots[-1], *slots[first:-1]]
    for number, (slot, (old, value)) in enumerate(zip(slots, given, strict=True)):
        ends = [x for x in _ENDINGS if old and f"_{old}".endswith((f"_{x}", f"/{x}"))]
        found = max(ends, key=len, default=slot.ending)
        shape = () if slot.path is None else shapes[slot.path]
        if found != slot.ending or np.shape(value) != shape:
            raise ValueError(
                f"variable {number} is {old or 'one'} of shape {np.shape(value)}, "
                f"where {name}, as it is configured, keeps the {slot.ending} "
                + (f"of {slot.path}, of shape {shape}" if slot.path else "of all")
                + ": give variables and paths in Keras' order."
            )
    return {slot: as_array(x) for slot, (_, x) in zip(slots, given, strict=True)}
