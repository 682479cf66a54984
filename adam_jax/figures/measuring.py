"""Figures of one step: for each leaf, and for the whole tree.

If the tree is sharded, devices exchange nothing but sums.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax import numerics, placement
from adam_jax.checks import check_like
from adam_jax.figures import native_sums
from adam_jax.figures.definitions import QUANTILES, Figure, Step, check_figures
from adam_jax.figures.leaves import Leaf, MissingError, as_stored, name_arrays
from adam_jax.figures.sums import sum_all
from adam_jax.hyperparams import a_type
from adam_jax.placement import AxisName
from adam_jax.stages.gathering import MomentsState


class Measured(NamedTuple):
    """The values of one figure of one step.

    Attributes:
      total: the figure of the whole tree: a scalar, or shape (5,) for `QUANTILES`.
      leaves: the figure of each leaf, in the order of `jax.tree.leaves(params)`: shape
        (leaves,), or (leaves, 5).
    """

    total: jax.Array
    leaves: jax.Array


def measure(
    figures: Mapping[str, Figure], step: Step, *, axis_name: AxisName | None = None
) -> dict[str, Measured]:
    """Measure figures of one step.

    Sums are computed in float32, or in the dtype of the leaves if that is wider.

    Args:
      figures: the figures to measure, by name, as in `FIGURES`.
      step: the step to measure.
      axis_name: in a `jax.shard_map`, the axes along which devices hold pieces of the
        leaves; figures are then those of the whole. A leaf that is the same on all
        devices counts once, if the shard_map checks what varies.

    Returns:
      The measured figures, by name.

    Raises:
      MissingError: if a figure needs a part that the step does not have. It is a
        ValueError.
      TypeError: if `figures` is not a dict of figures, or `step` not a `Step`.
      AssertionError: if the trees of the step do not fit each other.

    Example: the norms of two leaves, and of both together.

      >>> from adam_jax import FIGURES
      >>> step = Step(grads={"w": jnp.array([3.0, 4.0]), "b": jnp.float32(12)})
      >>> measured = measure({"norm": FIGURES["gradient_norm"]}, step)["norm"]
      >>> print(measured.total, measured.leaves)
      13.0 [12.  5.]
    """
    check_figures(figures)
    if not isinstance(step, Step):
        raise TypeError(
            "measure(figures, step) takes a Step, as in Step(grads=grads), got "
            f"{a_type(type(step))}."
        )
    for moments in step.moments:
        if not isinstance(moments, MomentsState):
            raise TypeError(
                "the moments of a Step are those that read_moments(state) returns, got "
                f"{a_type(type(moments))} among them."
            )
    items = tuple((name, figures[name]) for name in sorted(figures))
    try:
        hash(items)
    except TypeError:  # somebody's own functions
        return _measure(items, step, axis_name, _sum_leaf)
    return _compiled(items, axis_name, placement.known_cuts(), step)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    items: tuple[tuple[str, Figure], ...],
    axis_name: AxisName | None,
    cuts: Any,
    step: Step,
) -> Any:
    """Measure, compiled once without jit as well."""
    del cuts  # which `sum_pieces` reads
    return _measure(items, step, axis_name, _traced_once)


def name_sums(figures: Mapping[str, Figure], step: Step) -> dict[str, list[str | None]]:
    """Return what each figure sums, by `name_arrays`.

    Args:
      figures: the figures, by name.
      step: the step that they are measured of.
    """
    arrays = _leaves(step)[0][0]
    names = {}

    def look(arrays):
        for name, figure in figures.items():
            leaf = _as_leaf(arrays, step.learning_rate, step.bound)
            names[name] = name_arrays(leaf, figure.sums(leaf))

    jax.eval_shape(look, arrays)
    return names


def leaves_of(step: Step) -> list[Leaf]:
    """Return the leaves of a step, as figures read them.

    Args:
      step: the step.
    """
    return [_as_leaf(x, step.learning_rate, step.bound) for x in _leaves(step)[0]]


def measure_sums(
    figures: Mapping[str, Figure],
    step: Step,
    sums: Sequence[Mapping[str, jax.Array]],
    *,
    axis_name: AxisName | None = None,
) -> dict[str, Measured]:
    """Do what `measure` does, from sums that are known.

    Args:
      figures: figures all of whose sums have names, in `name_sums`.
      step: the step, of whose leaves only scalars are read.
      sums: for each leaf, the sums by name.
      axis_name: as in `measure`.
    """
    items = tuple((name, figures[name]) for name in sorted(figures))
    named = name_sums(figures, step)
    order = [key for name, _ in items for key in named[name] if key is not None]
    rows = iter([jnp.array([row[key] for key in order]) for row in sums])
    return _measure(items, step, axis_name, lambda *_: next(rows))


def _measure(
    items: tuple[tuple[str, Figure], ...],
    step: Step,
    axis_name: AxisName | None,
    sum_leaf: Any,
) -> dict[str, Measured]:
    leaves, paths = _leaves(step)
    rows = [sum_leaf(items, leaf, step.learning_rate, step.bound) for leaf in leaves]
    rows, pieces = placement.sum_pieces(rows, axis_name, paths)

    def sums_of(figure):  # of a new leaf, since a leaf keeps what was found
        return figure.sums(_as_leaf(leaves[0], step.learning_rate, step.bound))

    sums = [jax.eval_shape(lambda f=f: sums_of(f)) for _, f in items]
    dtype = numerics.compute_dtype(*{row.dtype for row in rows})
    table = jnp.stack([row.astype(dtype) for row in rows])
    # Besides its sums, a figure reads these: for each leaf, and for the whole tree.
    sizes = [_size(leaf) * n for leaf, n in zip(leaves, pieces, strict=True)]
    sizes = np.array(sizes, dtype)
    scalars: dict[str, Any] = {"size": sizes}
    whole: dict[str, Any] = {"size": sizes.sum()}
    for name in ("mu_weight", "nu_weight"):
        if name in leaves[0]:
            weights = [jnp.asarray(leaf[name], dtype) for leaf in leaves]
            scalars[name] = jnp.stack(weights)
            moment = name.removesuffix("_weight")
            kept = next(m for m in step.moments if getattr(m, moment) is not None)
            whole[name] = _weight(kept, moment).astype(dtype)
    measured, end = {}, 0
    for (name, figure), columns in zip(items, sums, strict=True):
        start, end = end, end + len(columns)
        part = table[:, start:end]

        def read(sums, scalars, figure=figure):
            return figure.read(sums, Leaf(**scalars))

        by_leaf = jax.vmap(read)(part, scalars)[: len(paths)]
        total = read(part.sum(axis=0), whole)
        if np.shape(total) not in ((), (len(QUANTILES),)):
            raise TypeError(
                f"the figure {name!r} must read a scalar or shape ({len(QUANTILES)},) "
                f"from its sums, got shape {np.shape(total)}."
            )
        measured[name] = Measured(total, by_leaf)
    return measured


def _sum_leaf(
    items: tuple[tuple[str, Figure], ...],
    arrays: Mapping[str, jax.Array],
    learning_rate: Any,
    bound: Any,
) -> jax.Array:
    """Return all that the figures sum over a leaf, in one array."""

    def make_leaf(given):
        return _as_leaf(given["arrays"], given["learning_rate"], given["bound"])

    def add_up(given):
        leaf = make_leaf(given)
        return sum_all(_list_sums(items, leaf), _beside(items, leaf))

    list_sums = functools.partial(_list_sums, items)
    given = {"arrays": dict(arrays), "learning_rate": learning_rate, "bound": bound}
    return native_sums.sum_leaf(add_up, make_leaf, list_sums, given)


def _list_sums(items: tuple[tuple[str, Figure], ...], leaf: Leaf) -> list[jax.Array]:
    """Return the arrays that the figures sum over a leaf, in order."""
    sums = []
    for name, figure in items:
        found = figure.sums(leaf)
        if not isinstance(found, tuple) or any(np.size(x) != leaf.size for x in found):
            shapes = jax.tree.map(np.shape, found)
            kind = "shapes" if isinstance(found, tuple) else "shape"
            raise TypeError(
                f"the sums of the figure {name!r} must be a tuple of arrays of the "
                f"leaf's shape, got {kind} {shapes}."
            )
        sums += found
    return sums


# A model has many leaves of the same shape.
_traced_once = jax.jit(_sum_leaf, static_argnums=0)


def _beside(items: tuple[tuple[str, Figure], ...], leaf: Leaf) -> dict[str, jax.Array]:
    """Return what the loop of an optimizer reads and writes, if figures need that loop.

    What they are of gradients and parameters alone does not.
    """
    kept = {"grad", "param", "size", "learning_rate", "bound"}
    few = {k: v for k, v in vars(leaf).items() if k in kept}
    try:
        for _, figure in items:
            jax.eval_shape(lambda figure=figure: figure.sums(Leaf(**few)))
    except MissingError:
        large = {"grad", "param", "mu", "nu", "landed"}
        return {k: v for k, v in vars(leaf).items() if k in large}
    return {}


def _leaves(step: Step) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the arrays of each leaf of a step, in the order of its trees.

    Return the paths of the leaves, too. For a tree without any, return one leaf without
    elements: it shows which figures the step allows.
    """
    trees = {"grad": step.grads, "update": step.updates, "param": step.params}
    given = {name: tree for name, tree in trees.items() if tree is not None}
    trees = {name: _by_path(tree) for name, tree in given.items()}
    first = next(iter(given), "")
    shapes = {
        name: {path: np.shape(x) for path, x in tree.items()}
        for name, tree in trees.items()
    }
    for name, own in shapes.items():  # which may have more leaves
        if not shapes[first].items() <= own.items():
            check_like(given[name], given[first], f"{name}s", f"{first}s")
    moments = {}
    pairs = [m for m in step.moments if m.mu is not None and m.nu is not None]
    for name in ("mu", "nu"):
        kept = [m for m in (*step.moments, *pairs) if getattr(m, name) is not None]
        if kept:
            moments[name] = {
                path: {name: x, f"{name}_weight": _weight(m, name)}
                for m in kept
                for path, x in _by_path(getattr(m, name)).items()
            }
    paths = list(next(iter((trees | moments).values()), ()))
    leaves = [_leaf(path, trees, moments) for path in paths or [None]]
    paired = {path for pair in pairs for path in _by_path(pair.nu)}
    if paired or (pairs and not paths):
        for leaf, path in zip(leaves, paths or [None], strict=True):
            leaf["paired"] = jnp.float32(path in paired)
    return leaves, paths


def _weight(state: MomentsState, moment: str) -> jax.Array:
    """Return the weight of past gradients in mu or nu."""
    return state.weights[("mu", "nu").index(moment), 0]


def _by_path(tree: Any) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _leaf(path: Any, trees: Any, moments: Any) -> dict[str, Any]:
    """Return the arrays of a leaf, and the weights of its moments, by name."""
    none = np.zeros([0], np.float32)
    arrays = {name: tree[path] if tree else none for name, tree in trees.items()}
    weights = {}
    for name, found in moments.items():  # masked leaves have none: as if it were 0
        zeros = jnp.zeros(jnp.shape(next(iter(arrays.values()), none)))
        moment = found.get(path, {name: zeros, f"{name}_weight": 1.0})
        arrays[name] = moment[name]
        weights[f"{name}_weight"] = numerics.widen(moment[f"{name}_weight"])
    return _shard_alike(arrays) | weights


def _size(arrays: Mapping[str, jax.Array]) -> int:
    """Return the number of elements of a leaf."""
    return next((x.size for k, x in arrays.items() if not k.endswith("_weight")), 0)


def _as_leaf(arrays: Mapping[str, jax.Array], learning_rate: Any, bound: Any) -> Leaf:
    """Return a leaf of these arrays, in float32 or wider."""
    stored = ("grad", "update", "param")
    parts: dict[str, Any] = {
        name: as_stored(x) if name in stored else numerics.widen(x)
        for name, x in arrays.items()
    }
    if "update" in arrays and "param" in arrays:
        landed = arrays["param"] + arrays["update"]
        parts["landed"] = as_stored(landed.astype(arrays["param"].dtype))
    if learning_rate is not None:
        parts["learning_rate"] = jnp.asarray(learning_rate)
    return Leaf(size=_size(arrays), bound=bound, **parts)


def _shard_alike(parts: dict[str, Any]) -> dict[str, jax.Array]:
    """Return the arrays of a leaf in the device's memory, all sharded in the same way.

    On explicit axes, moments may be sharded over more of them than parameters. Then all
    are sharded as those in the smallest pieces: no device needs to send anything.
    """
    arrays = {k: placement.on_device(jnp.asarray(x)) for k, x in parts.items()}
    shardings = {jax.typeof(x).sharding for x in arrays.values() if jnp.ndim(x)}
    if len(shardings) > 1:
        finest = max(shardings, key=placement.count_shards)
        for name, x in arrays.items():
            if placement.count_shards(finest) > 1 and len(finest.spec) == jnp.ndim(x):
                arrays[name] = jax.sharding.reshard(x, finest)
    return arrays
