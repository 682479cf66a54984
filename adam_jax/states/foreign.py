"""Moments from other frameworks, in a form that `adopt_state` continues."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from adam_jax.hyperparams import shown
from adam_jax.states.buffers import unpack
from adam_jax.states.parts import Part, by_name, iterate_nodes, take_apart


class ForeignState(NamedTuple):
    """The moments of parameters that have taken the same number of steps.

    Attributes:
      count: the number of steps, or None if the old state does not say.
      mu: first moments by the path of the parameter, or None.
      nu: second moments, likewise.
      trace: the buffers of momentum, likewise.
      raw_nu_max: the maxima of AMSGrad, likewise, of moments before their correction.
        No optimizer is given them.
      nu_max: what an optimizer with a maximum is given; the readers leave it None.
      scaled_trace: the buffers of momentum of Keras' SGD, likewise, where its learning
        rate follows a schedule: they sum updates, of other rates. No optimizer is given
        them.
      average: averages of the parameters, likewise. No optimizer is given them.
    """

    count: int | None = None
    mu: dict[str, np.ndarray] | None = None
    nu: dict[str, np.ndarray] | None = None
    trace: dict[str, np.ndarray] | None = None
    raw_nu_max: dict[str, np.ndarray] | None = None
    nu_max: dict[str, np.ndarray] | None = None
    scaled_trace: dict[str, np.ndarray] | None = None
    average: dict[str, np.ndarray] | None = None


def as_array(x: Any) -> np.ndarray:
    """Return a tensor, a variable or a dataset as an array; bfloat16 as float32.

    Args:
      x: anything that NumPy can read, or a tensor of PyTorch. In files of NumPy and
        HDF5, numbers in bfloat16 are two bytes without a meaning.

    Raises:
      ValueError: for a tensor whose pieces lie on several devices.
    """
    if hasattr(x, "full_tensor"):
        raise ValueError(
            "the old state is in pieces (a DTensor): gather it in PyTorch, as "
            "get_optimizer_state_dict does with StateDictOptions(full_state_dict=True)."
        )
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if "bfloat16" in str(x.dtype) else x).numpy()
    x = np.asarray(x)
    x = x.view(jnp.bfloat16) if x.dtype == np.dtype("V2") else x
    return x.astype(np.float32) if x.dtype == jnp.bfloat16 else x


def check_paths(paths: Sequence[str], params: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parameters, by path, if paths are of different ones.

    Args:
      paths: for each parameter of the old optimizer, its path in params.
      params: the parameters to go on with.

    Raises:
      ValueError: if a path is there twice, or is none of a parameter.
    """
    shapes = {name: np.shape(x) for name, x in by_name(params).items()}
    expect_each_once(paths)
    unknown = [path for path in paths if path not in shapes]
    if unknown:
        raise ValueError(
            f"params have no {shown(unknown[0])}: paths are among "
            f"{', '.join(list(shapes)[:5])}, ..."
        )
    return shapes


def expect_each_once(paths: Sequence[str]) -> None:
    """Refuse a path that stands for two parameters.

    Args:
      paths: as in `check_paths`, or of a new optimizer.

    Raises:
      ValueError: if a path is there twice.
    """
    twice = [path for path, times in Counter(paths).items() if times > 1]
    if twice:
        raise ValueError(
            f"a path is there twice, {shown(twice[0])}: give each once, as what is "
            "shared is one parameter in the other optimizer, too."
        )


class Held(NamedTuple):
    """The moments of a whole state.

    Attributes:
      moments: arrays by the name of a moment, such as "mu", and the path of the
        parameter.
      counts: the number of steps by the path of the parameter, where it is known.
      unread: the names of what elements share, such as "nu/dense/kernel", where nothing
        tells the shape of the parameter.
    """

    moments: dict[str, dict[str, np.ndarray]]
    counts: dict[str, int]
    unread: list[str]

    def expect_all(self) -> None:
        """Refuse moments that could not be read.

        Raises:
          ValueError: if there are any.
        """
        if self.unread:
            raise ValueError(
                f"elements share {shown(self.unread[0])}, and nothing in the state "
                "tells the shape of the parameter: give each its own first, as "
                "convert_state(state, params=params, nu_dtype='float32') does."
            )


def hold_moments(state: Any, count: int | None) -> Held:
    """Return the moments of a state, wherever they stand in it.

    Args:
      state: an optimizer state, or anything that holds one.
      count: the number of steps, for moments that do not say it.

    Raises:
      ValueError: if a parameter has two moments of one name; if there are no moments,
        or if they are in other coordinates.
    """
    held = Held({}, {}, [])
    parts = [take_apart(node, {}) for node in iterate_nodes(unpack(state))]
    if any(part.coordinates for part in parts):
        raise ValueError(
            "moments inside within(), as in soap(), are in coordinates of their own, "
            "which no other framework knows."
        )
    read = [tree for part in parts for tree in part.trees.values()]
    likes = {path: x for tree in read for path, x in tree.items()}
    known = [part.count for part in parts if part.count is not None]
    for part in parts:
        if _list_unread(part):
            part = take_apart(part.node, likes)
        held.unread.extend(_list_unread(part))
        own = next((x for x in (part.count, count, *known) if x is not None), None)
        for name, tree in part.trees.items():
            moments = held.moments.setdefault(name, {})
            for path, x in tree.items():
                if path in moments:
                    raise ValueError(f"{path} has several moments {name!r}.")
                moments[path] = np.asarray(x)
                if own is not None:
                    held.counts.setdefault(path, int(own))
    if not held.moments and not held.unread:
        raise ValueError(
            "found no moments in the state: pass what tx.init or tx.update returned."
        )
    return held


def _list_unread(part: Part) -> list[str]:
    return [
        f"{name}/{path}"
        for name, tree in part.stored.items()
        for path in tree
        if path not in part.trees[name]
    ]
