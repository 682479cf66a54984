"""Moments from other frameworks, in a form that `adopt_state` continues."""

from typing import Any, NamedTuple

import numpy as np

from adam_jax.states.buffers import unpack
from adam_jax.states.parts import iterate_nodes, take_apart


class ForeignState(NamedTuple):
    """The moments of parameters that have taken the same number of steps.

    Attributes:
      count: the number of steps, or None if the old state does not say.
      mu: first moments by the path of the parameter, or None.
      nu: second moments, likewise.
      trace: the buffers of momentum, likewise.
      raw_nu_max: the maxima of AMSGrad, likewise, of moments before their correction.
        No optimizer is given them.
      nu_max: what an optimizer with a maximum is given; `read_torch` leaves it None.
    """

    count: int | None = None
    mu: dict[str, np.ndarray] | None = None
    nu: dict[str, np.ndarray] | None = None
    trace: dict[str, np.ndarray] | None = None
    raw_nu_max: dict[str, np.ndarray] | None = None
    nu_max: dict[str, np.ndarray] | None = None


class Held(NamedTuple):
    """The moments of a whole state.

    Attributes:
      moments: arrays by the name of a moment, such as "mu", and the path of the
        parameter.
      counts: the number of steps by the path of the parameter, where it is known.
    """

    moments: dict[str, dict[str, np.ndarray]]
    counts: dict[str, int]


def hold_moments(state: Any, count: int | None) -> Held:
    """Return the moments of a state, wherever they stand in it.

    Args:
      state: an optimizer state, or anything that holds one.
      count: the number of steps, for moments that do not say it.

    Raises:
      ValueError: if a parameter has two moments of one name; if there are no moments.
    """
    held = Held({}, {})
    parts = [take_apart(node, {}) for node in iterate_nodes(unpack(state))]
    known = [part.count for part in parts if part.count is not None]
    for part in parts:
        own = next((x for x in (part.count, count, *known) if x is not None), None)
        for name, tree in part.trees.items():
            moments = held.moments.setdefault(name, {})
            for path, x in tree.items():
                if path in moments:
                    raise ValueError(f"{path} has several moments {name!r}.")
                moments[path] = np.asarray(x)
                if own is not None:
                    held.counts.setdefault(path, int(own))
    if not held.moments:
        raise ValueError(
            "found no moments in the state: pass what tx.init or tx.update returned."
        )
    return held
