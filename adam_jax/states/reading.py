"""Reading optimizer states: their nodes, and their moments as arrays."""

from typing import Any

import jax
import numpy as np
import optax

from adam_jax.coordinates.changing import WithinState
from adam_jax.hyperparams import a_type
from adam_jax.moments.formats import Dense, Stored
from adam_jax.moments.trees import decode
from adam_jax.recipes.notes import collecting
from adam_jax.stages.gathering import MomentsState
from adam_jax.states.buffers import Place, unpack


def find_nodes(state: Any, kind: Any) -> list[Any]:
    """Return every node of one or several types in a state, in order.

    Args:
      state: an optimizer state, or anything that holds one.
      kind: a type, or a tuple of types, as for isinstance.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def find_stored(state: Any) -> list[Stored]:
    """Return every stored moment of any stage in an optimizer state, in order.

    Args:
      state: an optimizer state, or anything that holds one.
    """

    def stored_in(node):
        if isinstance(node, Stored):
            return [node]
        fields = getattr(node, "_fields", ())
        pairs = [(name, f"{name}_format") for name in fields]
        return [
            Stored(getattr(node, name), getattr(node, format))
            for name, format in pairs
            if format in fields and getattr(node, name) is not None
        ]

    nodes = jax.tree.leaves(state, is_leaf=lambda node: bool(stored_in(node)))
    return [one for node in nodes for one in stored_in(node)]


def read_moments(state: Any, like: Any = None) -> list[MomentsState]:
    """Return every `MomentsState` in an optimizer state, with its moments as arrays.

    Args:
      state: an optimizer state, or anything that holds one.
      like: a pytree like the parameters; with it, values that elements share come in
        the shapes of the parameters.

    Returns:
      The states in order, as if they had been stored in float32: without buffers, and
      with `Dense` readers. Inside `within`, moments are in its coordinates, also with
      `like`; with it, those of a number a leaf, as in `adjust_leaves`, are left out.

    Raises:
      ValueError: if `like` does not fit the moments; the message names a leaf.
    """

    def read(values, format, like):
        own = cut_to(values, like)
        moment = decode(Stored(values, format), own)
        if own is not None:
            expect_shapes(moment, own)
        return moment

    def read_nodes(state, like):
        nodes = []
        for node in find_nodes(state, (MomentsState, WithinState)):
            if isinstance(node, WithinState):
                nodes += read_nodes(node.inner_state, None if _turns(node) else like)
                continue
            if is_of_numbers(node, like):
                continue
            mu = read(node.mu, node.mu_format, like)
            nu = read(node.nu, node.nu_format, like)
            plain = {"mu_format": Dense(), "nu_format": Dense()}
            nodes.append(node._replace(mu=mu, nu=nu, **plain))
        return nodes

    return read_nodes(unpack(state), like)


def read_averages(init: Any, state: Any, like: Any) -> list[MomentsState]:
    """Return the moments of a state, together only where both are averages.

    Args:
      init: the function that makes such a state.
      state: the state.
      like: a pytree like the parameters.

    Returns:
      What `read_moments` returns, but mu and nu of one stage come apart unless they are
      an average of gradients and one of their squares. Stages in `within`, whose
      moments are elsewhere, are left out.
    """
    noted: list[bool | None] = []

    def start(like):
        with collecting() as notes:
            nodes = read_moments(_leave_out_turned(init(like)), like)
        noted.extend(notes.averages.get(node.weights) for node in nodes)

    jax.eval_shape(start, like)
    found = []
    nodes = read_moments(_leave_out_turned(state), like)
    for node, averages in zip(nodes, noted, strict=True):
        if averages is False and node.mu is not None and node.nu is not None:
            found += [node._replace(nu=None), node._replace(mu=None)]
        else:
            found.append(node)
    return found


def is_of_numbers(node: MomentsState, like: Any) -> bool:
    """Return whether moments are of a number a leaf, as those in `adjust_leaves`.

    Args:
      node: stored moments, in no buffers.
      like: a pytree like the parameters, or None.
    """
    if like is None:
        return False
    kept = [x for x in (node.mu, node.nu) if x is not None]
    leaves = jax.tree.leaves(kept)
    likes = jax.tree.leaves([cut_to(x, like) for x in kept])
    numbers = bool(leaves) and all(np.shape(x) == () for x in leaves)
    return numbers and any(np.shape(x) != () for x in likes)


def _leave_out_turned(state: Any) -> Any:
    """Return a state without the stages in `within`, whose moments are elsewhere."""
    return jax.tree.map(
        lambda node: () if _turns(node) else node, state, is_leaf=_turns
    )


def _turns(node: Any) -> bool:
    """Return whether moments in a node are in other coordinates than parameters."""
    return isinstance(node, WithinState) and bool(node.coordinates)


def load_moments(state: Any, params: Any = None) -> tuple[Any, Any]:
    """Return mu and nu of an optimizer state as arrays, whatever their format.

    (`optax.tree.get(state, "mu")` returns what is stored: of 8-bit moments, the codes.)

    Args:
      state: an optimizer state, or anything that holds one, such as a TrainState. Under
        `optax.multi_transform`, the moments of each leaf come from the optimizer that
        updates it.
      params: the parameters; needed only for formats that do not know their shapes,
        such as `mean_over`.

    Returns:
      Two pytrees like the parameters, each None if there is no such moment, with
      `optax.MaskedNode()` for leaves that have none.

    Raises:
      ValueError: if the state holds no moments, several for one leaf, or those of
        `within`, in other coordinates; if params are missing or do not fit it.

    Example:

      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adam(1e-3, mu_dtype="8bit", nu_dtype="8bit")
      >>> _, state = tx.update(jnp.ones((64, 64)), tx.init(jnp.ones((64, 64))))
      >>> mu, nu = load_moments(state)
      >>> print(f"{nu.mean():.6f}")
      0.001000
    """
    if any(map(_turns, find_nodes(state, WithinState))):
        raise ValueError(
            "moments inside within(), as in soap(), are in other coordinates than the "
            "parameters: read them there, with adam_jax.read_moments(state)."
        )
    nodes = read_moments(state, params)
    if not nodes:
        raise ValueError(
            "found no MomentsState in the state: it comes from an optimizer without "
            "one, such as sgd or Optax's own, or was restored without its structure."
        )
    mu, nu = nodes[0].mu, nodes[0].nu
    for node in nodes[1:]:
        mu, nu = _merge(mu, node.mu), _merge(nu, node.nu)
    return mu, nu


def is_hole(node: Any) -> bool:
    """Return whether a node stands where a leaf is masked, or has nothing to keep.

    Args:
      node: a node of a tree like the parameters.
    """
    return isinstance(node, optax.MaskedNode)


def cut_to(tree: Any, like: Any) -> Any:
    """Return the leaves of `like` where `tree` has leaves that are not masked out.

    Args:
      tree: a moment as a state holds it, or a tree of `Place()`; or None.
      like: a pytree like the parameters, or None.

    Raises:
      ValueError: if `like` has no array for a leaf of `tree`; the message names its
        path.
    """
    if like is None or tree is None:
        return None
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_end)
    try:
        found = structure.flatten_up_to(like)
    except ValueError:  # such as variables of Flax, of another class
        by_path = dict(jax.tree_util.tree_leaves_with_path(like))
        for path, leaf in leaves:
            if path not in by_path and not is_hole(leaf):
                raise ValueError(
                    f"params do not fit the state: {jax.tree_util.keystr(path)} is not "
                    "in them. Pass the parameters that the state was made for."
                ) from None
        found = [by_path.get(path) for path, _ in leaves]
    for (path, leaf), other in zip(leaves, found, strict=True):
        is_array = hasattr(other, "shape") or jax.tree_util.all_leaves([other])
        if not is_hole(leaf) and not is_array:
            raise ValueError(
                f"params do not fit the state: {jax.tree_util.keystr(path)} is "
                f"{a_type(type(other))}, not an array. Pass the parameters that the "
                "state was made for."
            )
    return structure.unflatten(
        [
            leaf if is_hole(leaf) else other
            for (_, leaf), other in zip(leaves, found, strict=True)
        ]
    )


def expect_shapes(moment: Any, params: Any) -> None:
    """Refuse parameters that have other shapes than their moment.

    Args:
      moment: a pytree of arrays.
      params: a pytree like it.

    Raises:
      ValueError: if a shape differs; the message names its path.
    """

    def expect_shape(path, moment, param):
        if np.shape(moment) != np.shape(param):
            raise ValueError(
                f"params do not fit the state: {jax.tree_util.keystr(path)} has shape "
                f"{np.shape(param)}, its moment {np.shape(moment)}. Pass the "
                "parameters that the state was made for."
            )

    jax.tree_util.tree_map_with_path(expect_shape, moment, params)


def _is_end(node: Any) -> bool:
    return is_hole(node) or isinstance(node, Place)


def _merge(tree: Any, other: Any) -> Any:
    """Merge two trees, each with holes where the other has leaves."""
    if tree is None or is_hole(tree):
        return other
    if other is None or is_hole(other):
        return tree
    if jax.tree_util.all_leaves([tree]):
        raise ValueError(
            "expected one MomentsState for each leaf, found several: read them one by "
            "one with adam_jax.read_moments(state)."
        )
    children, structure = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
    others = structure.flatten_up_to(other)
    return structure.unflatten(
        [_merge(x, y) for x, y in zip(children, others, strict=True)]
    )
